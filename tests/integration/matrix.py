"""Every route against every control: what is expected is declared once for each kind of route."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson

from trio_gateway.core import errors
from trio_gateway.web.routes import EXACT, MODEL_ROUTE, NAMED

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

MODEL = "qwen3:8b"
EMBEDDER = "nomic-embed-text"

ABSENT = "file-absent"
BOUNDARY = "0123456789"
FORM = f"multipart/form-data; boundary={BOUNDARY}"

# A new route has to be put here, and so meets every control below.
KINDS = {
    "GET /": "open",
    "HEAD /": "open",
    "GET /healthz": "open",
    "GET /readyz": "ready",
    "GET /api/tags": "listing",
    "GET /api/ps": "listing",
    "GET /api/version": "listing",
    "GET /v1/models": "listing",
    "GET /v1/models/{model}": "named",
    "POST /api/show": "show",
    "POST /api/chat": "inference",
    "POST /api/generate": "inference",
    "POST /api/embed": "inference",
    "POST /api/embeddings": "inference",
    "POST /v1/chat/completions": "inference",
    "POST /v1/completions": "inference",
    "POST /v1/embeddings": "inference",
    "GET /v1/files": "listing",
    "POST /v1/files": "upload",
    "GET /v1/files/{id}": "absent",
    "DELETE /v1/files/{id}": "absent",
    "GET /v1/files/{id}/content": "absent",
    "GET /v1/batches": "listing",
    "POST /v1/batches": "create",
    "GET /v1/batches/{id}": "absent",
    "POST /v1/batches/{id}/cancel": "absent",
}
TABLE = {path.replace(MODEL_ROUTE, "/v1/models/{model}"): m for path, m in (EXACT | NAMED).items()}

Outcome = type[errors.GatewayError] | int
GUARDED = ("listing", "named", "show", "inference", "upload", "create", "absent")
ALL = ("open", "ready", *GUARDED)
OPEN = {"open": 200, "ready": 200}
NAMING = ("named", "show", "inference")  # a model
READING = ("show", "inference", "create")  # JSON


def _refused(error: type[errors.GatewayError], *kinds: str) -> dict[str, Outcome]:
    """Expect the error on these kinds, and on all others what each answers if nothing is wrong."""
    return dict.fromkeys(ALL, 200) | {"absent": errors.NotFound} | dict.fromkeys(kinds, error)


EXPECTED: Mapping[str, Mapping[str, Outcome]] = {
    "nothing wrong": _refused(errors.GatewayError),
    "no key": _refused(errors.Unauthenticated, *GUARDED),
    "malformed key": _refused(errors.Unauthenticated, *GUARDED),
    "unknown key": _refused(errors.Unauthenticated, *GUARDED),
    "two keys": _refused(errors.InvalidCall, *ALL),
    "two lengths": _refused(errors.InvalidCall, *ALL),
    "wrong method": _refused(errors.MethodNotAllowed, *ALL),
    "forbidden model": _refused(errors.ModelNotFound, *NAMING),
    "unknown model": _refused(errors.ModelNotFound, *NAMING),
    "content encoding": _refused(errors.UnsupportedMedia, *GUARDED),
    "body too large": _refused(errors.CallTooLarge, *READING) | {"upload": errors.InvalidCall},
    "duplicate key in the body": _refused(errors.InvalidCall, *READING, "upload"),
    "no JSON": _refused(errors.InvalidCall, *READING, "upload"),
    "no requests left": _refused(errors.RateLimited, "inference"),
    "no budget left": _refused(errors.BudgetExhausted, "inference"),
    "draining": _refused(errors.ShuttingDown, *GUARDED) | {"ready": 503},
    "Redis away": _refused(errors.StoreUnavailable, "inference") | {"ready": 503},
    "PostgreSQL away": _refused(errors.StoreUnavailable, *GUARDED) | {"ready": 503},
    "PostgreSQL away, malformed key": _refused(errors.Unauthenticated, *GUARDED) | {"ready": 503},
}


@dataclass
class Case:
    """One request; a control changes it before it is sent."""

    method: str
    path: str
    kind: str
    model: str
    headers: list[tuple[str, str]]
    body: bytes | None = None

    @property
    def target(self) -> str:
        """The path, with the model or the id where it names one."""
        return self.path.replace("{model}", self.model).replace("{id}", ABSENT)


def cases(key: str, control: Callable[[Case], None] | None = None) -> list[Case]:
    """Return a request that should work for every method of every route, changed by a control."""
    made = []
    for path, methods in TABLE.items():
        for method in methods:
            kind = KINDS[f"{method} {path}"]
            case = Case(method, path, kind, MODEL, [("Authorization", f"Bearer {key}")])
            if kind == "upload":
                case.headers.append(("Content-Type", FORM))
            if control is not None:
                control(case)
            if method == "POST" and case.body is None:
                case.body = (
                    upload() if kind == "upload" else orjson.dumps(body_of(path, case.model))
                )
            made.append(case)
    return made


def upload() -> bytes:
    """Return the least form that stores a file."""
    parts = ('name="purpose"\r\n\r\nevals', 'name="file"; filename="a"\r\n\r\nx')
    said = [f"--{BOUNDARY}\r\nContent-Disposition: form-data; {part}\r\n" for part in parts]
    return f"{''.join(said)}--{BOUNDARY}--\r\n".encode()


def body_of(path: str, model: str) -> dict[str, Any]:
    """Return the least body that a route takes."""
    if path == "/v1/batches":
        endpoint = "/v1/embeddings"
        return {"input_file_id": ABSENT, "endpoint": endpoint, "completion_window": "24h"}
    if model == MODEL and "embed" in path:
        model = EMBEDDER
    if "chat" in path:
        return {"model": model, "messages": [{"role": "user", "content": "hi"}]}
    if "embed" in path and path != "/api/embeddings":
        return {"model": model, "input": "hi"}
    return {"model": model} if path == "/api/show" else {"model": model, "prompt": "hi"}


def wrong(case: Case, answer: Any, expected: Outcome) -> str | None:
    """Say how an answer differs from what is expected, None where it does not."""
    if answer.header("x-request-id") is None:
        return "no x-request-id"
    status = expected if isinstance(expected, int) else expected.status
    if answer.status != status:
        return f"{answer.status} in place of {status}: {answer.body[:200]!r}"
    if isinstance(expected, int) or case.method == "HEAD":
        return None
    error = orjson.loads(answer.body)["error"]
    if not case.path.startswith("/v1"):
        worded = issubclass(expected, errors.InvalidCall | errors.LimitReached)
        text_known = error == expected.default_message or (worded and isinstance(error, str))
        return None if text_known else f"said {error!r}"
    return None if error["code"] == expected.default_code else f"code {error['code']}"
