"""One tenant of a site as its callers and its ledger see it, to be compared with itself later."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx
import trio

from deploy.staging.programs import TICK, ProgramFailed

if TYPE_CHECKING:
    from deploy.staging.site import Site

BUDGET = 1_000_000
SOON = 60.0  # seconds for a batch, and for a gateway whose Redis is new
ENDED = ("completed", "failed", "expired", "cancelled")
LINE = {
    "method": "POST",
    "url": "/v1/chat/completions",
    "body": {"model": "llama3.2", "messages": [{"role": "user", "content": "one two three"}]},
}
CALL = {"model": "llama3.2", "prompt": "one two three", "stream": False}


@dataclass(frozen=True)
class State:
    """What must be the same after a restore."""

    ledger_rows: int
    charged_tokens: int  # by the ledger
    spent_tokens: int  # by the counters, as the headers of a call tell
    files: dict[str, str]  # contents by id, as SHA-256
    batches: dict[str, Any]


class Account:
    """A tenant's key on one gateway."""

    def __init__(self, site: Site, base_url: str, key: str) -> None:
        """Nothing is asked yet."""
        self._site = site
        headers = {"authorization": f"Bearer {key}"}
        self.client = httpx.AsyncClient(base_url=base_url, headers=headers, timeout=SOON)

    async def call(self) -> httpx.Response:
        """Make a call; wait where the gateway says 503, as one does whose Redis is new."""
        with trio.fail_after(SOON):
            # another process cannot set an event of ours, here and below
            while (answer := await self.client.post("/api/generate", json=CALL)).status_code == 503:  # noqa: ASYNC110
                await trio.sleep(TICK)
        return answer

    async def batch(self, key: str, lines: int = 6) -> tuple[str, bool]:
        """Upload a file and run a batch of it to its end.

        Returns the batch's id, and whether it is the one that this idempotency key made before.
        """
        content = b"".join(
            json.dumps({"custom_id": f"line-{number}", **LINE}).encode() + b"\n"
            for number in range(lines)
        )
        upload = await self.client.post(
            "/v1/files", data={"purpose": "batch"}, files={"file": ("lines.jsonl", content)}
        )
        made = await self.create(key, _json(upload)["id"])
        with trio.fail_after(SOON):
            while _json(await self.client.get(f"/v1/batches/{made['id']}"))["status"] not in ENDED:  # noqa: ASYNC110
                await trio.sleep(TICK)
        return made["id"], made["replayed"]

    async def create(self, key: str, file_id: str) -> dict[str, Any]:
        """Create a batch under an idempotency key; `replayed` tells whether it was there."""
        answer = await self.client.post(
            "/v1/batches",
            json={
                "input_file_id": file_id,
                "endpoint": LINE["url"],
                "completion_window": "24h",
                "idempotency_key": key,
            },
        )
        return {**_json(answer), "replayed": answer.headers.get("idempotent-replayed") == "true"}

    async def state(self) -> State:
        """Look at all of it; makes one call, which is counted in neither sum."""
        answer = await self.call()
        request_id = answer.headers["x-request-id"]
        held = await self._held(request_id)
        query = "SELECT count(*) AS n, coalesce(sum(charged_tokens), 0) AS sum FROM gateway.ledger"
        (sums,) = await self._site.query(f"{query} WHERE request_id <> $1", request_id)
        remaining = int(answer.headers["x-budget-remaining-tokens"])
        files = _json(await self.client.get("/v1/files"))["data"]
        contents = {
            one["id"]: await self.client.get(f"/v1/files/{one['id']}/content") for one in files
        }
        return State(
            ledger_rows=sums["n"],
            charged_tokens=int(sums["sum"]),
            spent_tokens=BUDGET - remaining - held,
            files={
                name: hashlib.sha256(_whole(content)).hexdigest()
                for name, content in contents.items()
            },
            batches={one["id"]: one for one in _json(await self.client.get("/v1/batches"))["data"]},
        )

    async def _held(self, request_id: str) -> int:
        """Return what a call held, once its row has been written."""
        query = "SELECT held_tokens FROM gateway.ledger WHERE request_id = $1"
        with trio.fail_after(SOON):
            while not (rows := await self._site.query(query, request_id)):  # noqa: ASYNC110
                await trio.sleep(TICK)
        return int(rows[0]["held_tokens"])


def _whole(answer: httpx.Response) -> bytes:
    if answer.status_code != 200:
        raise ProgramFailed(f"{answer.request.url.path} answered {answer.status_code}")
    return answer.content


def _json(answer: httpx.Response) -> Any:
    return json.loads(_whole(answer))
