"""A load of calls of every shape, each checked to its end; whatever is not whole has failed."""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import httpx
import trio

CALL_SECONDS = 60.0
TICK = 0.05
SHAPES = tuple(itertools.product(("/api/chat", "/v1/chat/completions"), (True, False)))


@dataclass(frozen=True)
class Call:
    """One call as its caller saw it; `fault` is None where all of the answer came."""

    path: str
    streamed: bool
    ended_at: float
    seconds: float
    request_id: str | None
    fault: str | None


@dataclass
class Load:
    """Callers in closed loops until `stop` is set.

    Each has an address of its own. Where `kept` is true it keeps its connection, as an SDK does.
    """

    base_url: str
    key: str
    callers: int
    most: int
    pause: float = 0.05  # seconds between two calls of one caller
    kept: bool = True
    stop: trio.Event = field(default_factory=trio.Event)
    calls: list[Call] = field(default_factory=list)
    begun: int = 0

    async def run(self) -> None:
        """Call until told to stop, or `most` calls were begun."""
        async with trio.open_nursery() as nursery:
            for number in range(self.callers):
                nursery.start_soon(self._caller, number)

    async def more(self, count: int, limit: float = CALL_SECONDS) -> None:
        """Wait until that many more calls have ended; raises trio.TooSlowError."""
        wanted = len(self.calls) + count
        with trio.fail_after(limit):
            while len(self.calls) < wanted and self.begun < self.most:  # noqa: ASYNC110
                await trio.sleep(TICK)

    def faults(self, since: int = 0) -> dict[str, int]:
        """Count what went wrong from the call of that number on, by what it was."""
        return dict(Counter(call.fault for call in self.calls[since:] if call.fault is not None))

    async def _caller(self, number: int) -> None:
        headers = {"authorization": f"Bearer {self.key}"}
        transport = httpx.AsyncHTTPTransport(local_address=address_of(number))
        async with httpx.AsyncClient(
            base_url=self.base_url, headers=headers, timeout=CALL_SECONDS, transport=transport
        ) as client:
            for turn in itertools.count(number):
                if self.stop.is_set() or self.begun >= self.most:
                    return
                self.begun += 1
                path, streamed = SHAPES[turn % len(SHAPES)]
                self.calls.append(await make_call(client, path, streamed=streamed, kept=self.kept))
                await trio.sleep(self.pause)


def address_of(number: int) -> str:
    """Return an address of loopback for a caller: nginx limits what comes from one address."""
    return (
        f"127.0.{1 + number // 250}.{1 + number % 250}" if sys.platform == "linux" else "127.0.0.1"
    )


async def make_call(
    client: httpx.AsyncClient, path: str, *, streamed: bool, kept: bool = True
) -> Call:
    """Make a call and read it to its end; `kept` leaves the connection open for the next."""
    body = {
        "model": "llama3.2",
        "messages": [{"role": "user", "content": "one two three"}],
        "stream": streamed,
    }
    began, request_id, fault = time.monotonic(), None, None
    try:
        more = {} if kept else {"connection": "close"}
        async with client.stream("POST", path, json=body, headers=more) as answer:
            request_id = answer.headers.get("x-request-id")
            text = (await answer.aread()).decode()
            fault = _fault(answer.status_code, text, path, streamed=streamed)
    except httpx.HTTPError as error:
        fault = type(error).__name__
    ended = time.monotonic()
    return Call(path, streamed, ended, ended - began, request_id, fault)


def _fault(status: int, text: str, path: str, *, streamed: bool) -> str | None:
    if status != 200:
        return f"status {status}"
    native = path.startswith("/api/")
    if streamed and not native:
        return None if text.rstrip().endswith("data: [DONE]") else "cut stream"
    try:
        last: Any = json.loads(text.rstrip().rsplit("\n", 1)[-1])
    except ValueError:
        return "broken answer"
    whole = last.get("done") is True if native else "usage" in last
    return None if whole else "cut answer"
