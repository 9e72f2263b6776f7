"""Live numbers: what they say, and that no stream outlives its reason."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio

from tests.dashboard.visitor import Visitor, visiting
from trio_gateway.services import workers
from trio_gateway.services.workers import Beacon
from trio_gateway.simulator.script import Script
from trio_gateway.web.admin.dashboard import feed as feeds


class Stream:
    """One open stream, on a socket of its own."""

    def __init__(self, socket: trio.SocketStream) -> None:
        self._socket = socket
        self._rest = b""

    async def line(self) -> bytes | None:
        """Return the next line; None at the end."""
        while b"\n" not in self._rest:
            more = await self._socket.receive_some(65_536)
            if not more:
                return None
            self._rest += more
        line, _, self._rest = self._rest.partition(b"\n")
        return None if line == b"0\r" else line

    async def next(self) -> Any:
        """Return the next event's numbers; None at the end."""
        with trio.fail_after(15):
            while (line := await self.line()) is not None:
                if line.startswith(b"data: "):
                    return json.loads(line.removeprefix(b"data: "))
        return None

    async def until(self, **wanted: str) -> None:
        """Wait for numbers that are these."""
        numbers = None
        with trio.move_on_after(30):
            while True:
                numbers = await self.next()
                if numbers is None or wanted.items() <= numbers.items():
                    break
        assert numbers is not None
        assert {name: numbers[name] for name in wanted} == wanted

    async def end(self) -> None:
        """Wait for it."""
        with trio.fail_after(15):
            while await self.next() is not None:
                pass


@contextlib.asynccontextmanager
async def listening(visitor: Visitor) -> AsyncIterator[Stream]:
    """Open a stream; leaving the block hangs up."""
    cookie = visitor.cookies["tg-session"]
    host, port = visitor.base_url.host, visitor.base_url.port or 80
    async with await trio.open_tcp_stream(host, port) as socket:
        head = f"GET /events HTTP/1.1\r\nHost: {host}\r\nCookie: tg-session={cookie}\r\n\r\n"
        await socket.send_all(head.encode())
        stream = Stream(socket)
        assert await stream.line() == b"HTTP/1.1 200 \r"
        yield stream


def feed_of(admin: Any) -> Any:
    return admin.office.feed


async def gone(admin: Any) -> None:
    """Wait until nobody listens, and the poll has ended."""
    with trio.fail_after(15):
        while len(feed_of(admin)) or feed_of(admin).polling:  # noqa: ASYNC110
            await trio.sleep(0.02)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Poll more often than people need, so that the tests wait less."""
    monkeypatch.setattr(feeds, "EVERY", 0.1)


async def test_numbers_follow_what_happens(world, admin, visitor):
    """A call under way is counted at once, and not any more when it is over."""
    world.sim.play(Script(tokens=2000, token_gap=0.1))  # goes on until its client hangs up
    body = {"model": "llama3.2", "max_tokens": 2000}
    body |= {"messages": [{"role": "user", "content": "go on"}]}
    async with listening(visitor) as stream:
        await stream.until(calls="0", workers="1")
        async with trio.open_nursery() as calls:
            calls.start_soon(world.post, "/v1/chat/completions", body)
            await stream.until(calls="1")
            calls.cancel_scope.cancel()
        await stream.until(calls="0")
        assert "requests" not in await stream.next()  # sums are shown with their charts


async def test_all_streams_share_one_poll(admin, visitor):
    """Ten pages cost the stores as much as one."""
    feed = await polled(admin, visitor)
    polls = 0
    poll = feed._poll

    async def counted() -> Any:
        nonlocal polls
        polls += 1
        return await poll() | {"poll": polls}

    feed._poll = counted
    async with contextlib.AsyncExitStack() as stack:
        streams = [await stack.enter_async_context(listening(visitor)) for _ in range(10)]
        since = polls
        shown = [await polls_of(stream, since, since + 3) for stream in streams]
        told = sum(map(len, shown))  # as many polls, if each stream had its own
        assert len(set().union(*shown)) < told / 3
    await gone(admin)


async def polls_of(stream: Stream, since: int, last: int) -> set[int]:
    """Return which polls after one a stream tells of, at least to the last."""
    found = {0}
    while max(found) < last:
        found.add((await stream.next())["poll"])
    return {number for number in found if number > since}


async def polled(admin: Any, visitor: Visitor) -> Any:
    """Return the feed, which the first stream makes."""
    async with listening(visitor) as stream:
        await stream.next()
    await gone(admin)
    return feed_of(admin)


async def test_a_hang_up_ends_the_stream_and_the_poll(admin, visitor):
    """When the client leaves nothing is left of its stream, and with the last the poll ends."""
    async with listening(visitor) as stream:
        await stream.next()
        assert len(feed_of(admin)) == 1
    await gone(admin)


async def test_streams_end_with_their_session(world, admin):
    """By signing out, by an end from outside, with the token, and by time: within seconds."""
    ends = (  # each concerns both sessions
        "DELETE FROM gateway.admin_sessions",
        "UPDATE gateway.admin_sessions SET expires_at = now()",
        "UPDATE gateway.admins SET disabled_at = now()",
    )
    for query in ("", *ends):
        async with (
            visiting(admin) as visitor,
            visiting(admin, "viewer") as other,
            listening(visitor) as stream,
            listening(other) as unconcerned,
        ):
            await stream.next()
            await unconcerned.next()
            if query:
                await world.rows(query)
            else:
                await visitor.done("/logout")
            with trio.fail_after(10):
                await stream.end()
            if not query:
                assert await unconcerned.next() is not None
        await gone(admin)


async def test_streams_end_with_the_listener(admin, visitor):
    """A listener that is to go ends its streams, and takes no new ones."""
    async with listening(visitor) as stream:
        await stream.next()
        admin.app.begin_drain()
        with trio.fail_after(10):
            await stream.end()
    await gone(admin)
    assert (await visitor.get("/events")).status_code == 503


async def test_streams_are_bounded(admin, visitor, monkeypatch):
    """Past the bounds a stream is a 503 with Retry-After; one that ends makes room."""
    monkeypatch.setattr(feeds, "MOST", 3)
    monkeypatch.setattr(feeds, "MOST_OF_ONE", 2)
    async with visiting(admin, "viewer") as other, listening(other):
        async with listening(visitor), listening(visitor):
            answer = await visitor.get("/events")
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "10")
            assert (await other.get("/events")).status_code == 503
        with trio.fail_after(15):
            while len(feed_of(admin)) > 1:  # noqa: ASYNC110
                await trio.sleep(0.02)
        async with listening(visitor) as stream:
            await stream.next()
    await gone(admin)


async def test_a_stream_has_a_longest_life(admin, visitor, monkeypatch):
    """What a client leaves unread stays small: browsers come back by themselves."""
    monkeypatch.setattr(feeds, "LONGEST", 1.5)
    async with listening(visitor) as stream:
        with trio.fail_after(30):
            await stream.end()
    await gone(admin)


async def test_an_open_page_keeps_no_session_alive(world, admin, visitor):
    """Neither events nor a part that renews itself count as somebody being there."""
    await world.rows("UPDATE gateway.admin_sessions SET seen_at = now() - interval '20 minutes'")
    (before,) = await world.rows("SELECT seen_at FROM gateway.admin_sessions")
    async with listening(visitor) as stream:
        await stream.next()
    assert (await visitor.get("/calls", headers={"x-renewal": "1"})).status_code == 200
    assert await world.rows("SELECT seen_at FROM gateway.admin_sessions") == [before]
    await visitor.see("/calls")
    assert await world.rows("SELECT seen_at FROM gateway.admin_sessions") != [before]


async def test_a_poll_that_breaks_ends_the_streams(world, admin, visitor, monkeypatch):
    """What was not foreseen ends the poll and its streams; the next stream begins a new one."""
    monkeypatch.setattr(workers, "GONE_AFTER", 600.0)  # the report outlives a slow start
    beacon = Beacon(world.gateway.redis, lambda: {"host": "h", "slot": "9", "pid": 1})
    await beacon._report()
    async with listening(visitor) as stream:
        assert await stream.next() is None
    await world.gateway.redis.command("ZREM", "tg:workers", beacon._name)
    async with listening(visitor) as stream:
        assert (await stream.next())["missing"] == []
    await gone(admin)


@pytest.mark.parametrize("role", ["admin", "viewer"])
async def test_both_roles_may_listen(admin, role):
    """Numbers are for everybody who may see pages."""
    async with visiting(admin, role) as visitor, listening(visitor) as stream:
        assert await stream.next() is not None
