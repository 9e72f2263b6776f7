"""Steps that all tests of batches share: upload, create, wait for the end, read both files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import httpx
import orjson
import trio

from tests.world import World
from trio_gateway.services.revocation import CHANNEL

CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
MODEL = "llama3.2"
TERMINAL = {"completed", "failed", "expired", "cancelled"}
ENDS = {"completed_at", "failed_at", "expired_at", "cancelled_at"}
PATIENCE = 60.0  # seconds for a small batch to end
FIRST_POLL, LONGEST_POLL = 0.05, 1.0  # seconds

# What waits for its time: a retry, a window that is full, a budget that is spent.
_TIME_PASSES = """
WITH lines AS (
    UPDATE gateway.batch_lines SET not_before = '-infinity' WHERE state = 'queued'
), resumed AS (
    UPDATE gateway.batches SET resume_at = NULL WHERE resume_at IS NOT NULL RETURNING id
) SELECT pg_notify($1, 'batch:' || id) FROM gateway.batches WHERE status = 'in_progress'
"""
_WINDOW_ENDS = """
WITH moved AS (UPDATE gateway.batches SET expires_at = now() WHERE id = $2 RETURNING id)
SELECT pg_notify($1, 'batch:' || id) FROM moved
"""


def ask(custom_id: str, text: str = "one two three", **body: Any) -> dict[str, Any]:
    """Return one line that asks for a chat."""
    return {
        "custom_id": custom_id,
        "method": "POST",
        "url": CHAT,
        "body": {"model": MODEL, "messages": [{"role": "user", "content": text}]} | body,
    }


def asks(count: int, prefix: str = "c", **body: Any) -> list[dict[str, Any]]:
    """Return so many lines, each with a text of its own: its custom_id."""
    return [ask(f"{prefix}{number}", f"{prefix}{number}", **body) for number in range(count)]


def jsonl(lines: Iterable[Any]) -> bytes:
    """Write JSON lines; what is bytes already is a line as it stands."""
    return b"".join(
        (line if isinstance(line, bytes) else orjson.dumps(line)) + b"\n" for line in lines
    )


def read(content: bytes) -> list[dict[str, Any]]:
    """Read JSON lines; the last one too must end."""
    assert not content or content.endswith(b"\n")
    return [orjson.loads(line) for line in content.split(b"\n") if line]


@dataclass(frozen=True)
class Results:
    """Both files of an ended batch, by custom_id, in their order."""

    batch: dict[str, Any]
    output: dict[str, dict[str, Any]]
    errors: dict[str, dict[str, Any]]

    def codes(self) -> Counter[str]:
        """Count the errors by their codes."""
        return Counter(line["error"]["code"] for line in self.errors.values())


def agree(batch: dict[str, Any], output: bytes | None, errors: bytes | None) -> Results:
    """Check an ended batch against the contents of its files, None where it names none.

    Every custom_id is there once, the counts are those of the lines, and the one time of an end
    is set.
    """
    assert batch["status"] in TERMINAL
    assert {name for name in ENDS if batch[name] is not None} == {f"{batch['status']}_at"}
    found = [read(content) if content is not None else None for content in (output, errors)]
    assert [] not in found, "an empty file"
    good, bad = found[0] or [], found[1] or []
    ids = [line["custom_id"] for line in good + bad]
    assert len(set(ids)) == len(ids)
    assert len({line["id"] for line in good + bad}) == len(ids)
    counts = batch["request_counts"]
    assert counts == {"total": len(ids), "completed": len(good), "failed": len(bad)}
    assert all(line["error"] is None and line["response"]["status_code"] == 200 for line in good)
    assert all(line["error"]["code"] and line["error"]["message"] for line in bad)
    return Results(
        batch,
        {line["custom_id"]: line for line in good},
        {line["custom_id"]: line for line in bad},
    )


class Batcher:
    """What the owner of a key does with files and batches, over HTTP."""

    def __init__(self, client: httpx.AsyncClient, key: Any) -> None:
        """`client` knows the gateway's address."""
        self.client = client
        self.headers = {"authorization": f"Bearer {key['key']}"}

    async def upload(self, content: bytes, name: str = "input.jsonl") -> str:
        """Store a file; return its id."""
        answer = await self.client.post(
            "/v1/files",
            data={"purpose": "batch"},
            files={"file": (name, content)},
            headers=self.headers,
        )
        assert answer.status_code == 200, answer.text
        return str(answer.json()["id"])

    async def create(self, file_id: str, endpoint: str = CHAT, **more: Any) -> dict[str, Any]:
        """Create a batch."""
        body = {"input_file_id": file_id, "endpoint": endpoint, "completion_window": "24h"}
        answer = await self.client.post("/v1/batches", json=body | more, headers=self.headers)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        assert found["status"] == "validating"
        return found

    async def begin(self, lines: Iterable[Any], endpoint: str = CHAT) -> str:
        """Upload lines and create a batch of them; return its id."""
        found = await self.create(await self.upload(jsonl(lines)), endpoint)
        return str(found["id"])

    async def show(self, batch_id: str) -> dict[str, Any]:
        """Return a batch as it is now."""
        answer = await self.client.get(f"/v1/batches/{batch_id}", headers=self.headers)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    async def cancel(self, batch_id: str) -> httpx.Response:
        """Ask for a cancel."""
        return await self.client.post(f"/v1/batches/{batch_id}/cancel", headers=self.headers)

    async def until(
        self, batch_id: str, condition: Any = None, limit: float = PATIENCE
    ) -> dict[str, Any]:
        """Wait until a batch has ended, or meets a condition; return it."""
        pause = FIRST_POLL
        found: dict[str, Any] = {}
        try:
            with trio.fail_after(limit):
                while True:
                    found = await self.show(batch_id)
                    over = found["status"] in TERMINAL
                    if over if condition is None else condition(found):
                        return found
                    assert not over, found
                    await trio.sleep(pause)
                    pause = min(LONGEST_POLL, pause * 2)
        except trio.TooSlowError:
            raise AssertionError(f"after {limit} s: {found}") from None

    async def content(self, file_id: str | None) -> bytes | None:
        """Download a file, None where there is none."""
        if file_id is None:
            return None
        answer = await self.client.get(f"/v1/files/{file_id}/content", headers=self.headers)
        assert answer.status_code == 200, answer.text
        return answer.content

    async def ended(self, batch_id: str, limit: float = PATIENCE) -> Results:
        """Wait for the end; return both files, checked."""
        batch = await self.until(batch_id, limit=limit)
        return agree(
            batch,
            await self.content(batch["output_file_id"]),
            await self.content(batch["error_file_id"]),
        )


def batcher(world: World, key: Any = None) -> Batcher:
    """Make the batcher of a key, the world's own unless another is given."""
    return Batcher(world.client, key or world.key)


async def time_passes(world: World) -> None:
    """Let whatever waits for its time wait no longer."""
    await world.rows(_TIME_PASSES, CHANNEL)


async def window_ends(world: World, batch_id: str) -> None:
    """Let the completion window of a batch be over."""
    await world.rows(_WINDOW_ENDS, CHANNEL, batch_id)


async def booked(world: World, batch_id: str) -> list[dict[str, Any]]:
    """Return the ledger rows of a batch, oldest first, once every call is settled."""
    return [row for row in await world.ledger() if row["batch_id"] == batch_id]


def seen(world: World) -> list[str]:
    """Return the texts that upstream was asked, in order."""
    bodies = [each.body for each in world.sim.generations]
    return [body["messages"][-1]["content"] for body in bodies if "messages" in body]


async def hurried(world: World, owner: Batcher, batch_id: str, limit: float = PATIENCE) -> Results:
    """Wait for the end of a batch for which time passes quickly; return both files, checked."""
    with trio.fail_after(limit):
        while (await owner.show(batch_id))["status"] not in TERMINAL:
            await time_passes(world)
            await trio.sleep(FIRST_POLL)
    return await owner.ended(batch_id)
