"""Every route against every control: what is expected is declared once for each kind of route."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson

from trio_gateway.core import errors
from trio_gateway.web.routes import EXACT, MODEL_METHODS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

MODEL = "qwen3:8b"
EMBEDDER = "nomic-embed-text"

# A new route has to be put here, and so meets every control below.
KINDS = {
    "/": "open",
    "/healthz": "open",
    "/readyz": "ready",
    "/api/tags": "listing",
    "/api/ps": "listing",
    "/api/version": "listing",
    "/v1/models": "listing",
    "/v1/models/{model}": "named",
    "/api/show": "show",
    "/api/chat": "inference",
    "/api/generate": "inference",
    "/api/embed": "inference",
    "/api/embeddings": "inference",
    "/v1/chat/completions": "inference",
    "/v1/completions": "inference",
    "/v1/embeddings": "inference",
}
TABLE = {**EXACT, "/v1/models/{model}": MODEL_METHODS}

Outcome = type[errors.GatewayError] | int
ALL = ("open", "ready", "listing", "named", "show", "inference")
GUARDED = ("listing", "named", "show", "inference")
OPEN = {"open": 200, "ready": 200}


def _refused(error: type[errors.GatewayError], *kinds: str) -> dict[str, Outcome]:
    """Expect the error on these kinds, and success on all others."""
    return {kind: error if kind in kinds else 200 for kind in ALL}


EXPECTED: Mapping[str, Mapping[str, Outcome]] = {
    "nothing wrong": _refused(errors.GatewayError),
    "no key": _refused(errors.Unauthenticated, *GUARDED),
    "malformed key": _refused(errors.Unauthenticated, *GUARDED),
    "unknown key": _refused(errors.Unauthenticated, *GUARDED),
    "two keys": _refused(errors.InvalidCall, *ALL),
    "two lengths": _refused(errors.InvalidCall, *ALL),
    "wrong method": _refused(errors.MethodNotAllowed, *ALL),
    "forbidden model": _refused(errors.ModelNotFound, "named", "show", "inference"),
    "unknown model": _refused(errors.ModelNotFound, "named", "show", "inference"),
    "content encoding": _refused(errors.UnsupportedMedia, *GUARDED),
    "body too large": _refused(errors.CallTooLarge, "show", "inference"),
    "duplicate key in the body": _refused(errors.InvalidCall, "show", "inference"),
    "no JSON": _refused(errors.InvalidCall, "show", "inference"),
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
        """The path, with the model where it names one."""
        return self.path.replace("{model}", self.model)


def cases(key: str, control: Callable[[Case], None] | None = None) -> list[Case]:
    """Return a request that should work for every method of every route, changed by a control."""
    made = []
    for path, methods in TABLE.items():
        for method in methods:
            case = Case(method, path, KINDS[path], MODEL, [("Authorization", f"Bearer {key}")])
            if control is not None:
                control(case)
            if method == "POST" and case.body is None:
                case.body = orjson.dumps(body_of(path, case.model))
            made.append(case)
    return made


def body_of(path: str, model: str) -> dict[str, Any]:
    """Return the least body that a route takes."""
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
        worded = issubclass(expected, errors.InvalidCall | errors.Refused)
        text_known = error == expected.default_message or (worded and isinstance(error, str))
        return None if text_known else f"said {error!r}"
    return None if error["code"] == expected.default_code else f"code {error['code']}"
