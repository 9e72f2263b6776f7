"""The Redis client: one connection, commands in order, and no answer but a good one."""

import contextlib

import pytest
import trio

from tests.account import until
from tests.proxy import open_door
from trio_gateway.clients import redis as client
from trio_gateway.clients.redis import Redis
from trio_gateway.core.errors import StoreUnavailable

ADD = "return redis.call('INCRBY', KEYS[1], ARGV[1])"
FAIL = "return redis.error_reply('WRONG')"


@contextlib.asynccontextmanager
async def opened(url, **scripts):
    """A connected client."""
    redis = Redis(url, scripts or {"add": ADD, "fail": FAIL})
    async with trio.open_nursery() as nursery:
        with trio.fail_after(60):
            await nursery.start(redis.run)
            yield redis
        nursery.cancel_scope.cancel()


@pytest.fixture
async def redis(redis_url):
    async with opened(redis_url) as found:
        yield found


async def test_answers_are_raw(redis):
    """Bytes, ints, lists and None, as the server sends them."""
    assert await redis.command("SET", "k", b"\x00v") == b"OK"
    assert await redis.command("GET", "k") == b"\x00v"
    assert await redis.command("GET", "none") is None
    assert await redis.command("INCRBY", "n", 7) == 7
    assert await redis.command("MGET", "k", "n", "none") == [b"\x00v", b"7", None]


async def test_scripts_run_by_their_names(redis):
    """With their keys and arguments."""
    assert await redis.script("add", ["n"], [5]) == 5
    assert await redis.answer(redis.send_script("add", ["n"], [6])) == 11


async def test_commands_are_executed_in_the_order_given(redis):
    """Whoever gives them, and whether or not anybody waits for the answers."""
    for number in range(1000):
        redis.send("RPUSH", "list", number)
    found = await redis.command("LRANGE", "list", 0, -1)
    assert found == [str(number).encode() for number in range(1000)]


async def test_each_caller_gets_its_own_answer(redis):
    """However many share the connection, also where some do not wait to the end."""
    found = {}

    async def ask(number):
        found[number] = await redis.command("ECHO", number)

    async def leave(number):
        with trio.move_on_after(0):
            await redis.command("ECHO", number)

    async with trio.open_nursery() as nursery:
        for number in range(300):
            nursery.start_soon(ask, number)
            nursery.start_soon(leave, -number)
    assert found == {number: str(number).encode() for number in range(300)}


async def test_an_error_is_one_commands_own(redis):
    """It is StoreUnavailable for its caller, and nothing for the others."""
    await redis.command("SET", "text", "x")
    bad = [redis.send("INCR", "text"), redis.send_script("fail", [], [])]
    good = redis.send("ECHO", "y")
    for pending in bad:
        with pytest.raises(StoreUnavailable):
            await redis.answer(pending)
    assert await redis.answer(good) == b"y"


async def test_scripts_that_the_server_forgot_are_loaded_again(redis):
    """SCRIPT FLUSH is not noticed by anyone."""
    await redis.command("SCRIPT", "FLUSH")
    pending = [redis.send_script("add", ["n"], [1]) for _ in range(20)]
    for one in pending:
        await redis.answer(one)
    assert await redis.script("add", ["n"], [0]) == 20


async def test_it_knows_which_server_it_speaks_to(redis):
    """The run id, and since when."""
    info = (await redis.command("INFO", "server")).decode()
    assert f"run_id:{redis.run_id}" in info
    assert redis.connected
    assert redis.connected_at <= trio.current_time()


@pytest.mark.parametrize("url", ["", "http://x", "localhost:6379", "redis://h:port/0"])
def test_a_bad_address_is_refused_at_once(url):
    """And not echoed: it may hold a password."""
    with pytest.raises(ValueError, match=r"^REDIS_URL is not a Redis address$"):
        Redis(url, {})


async def test_without_a_connection_every_command_fails_at_once(redis_url):
    """Nothing is queued for later: the gateway fails closed."""
    async with open_door(redis_url) as door, opened(door.url) as redis:
        await redis.command("SET", "k", "v")
        door.shut()
        await until(lambda: not redis.connected)
        pending = redis.send("SET", "k", "w")
        assert pending.done
        with pytest.raises(StoreUnavailable):
            await redis.answer(pending)
        before = redis.connected_at
        door.reopen()
        await until(lambda: redis.connected)
        assert redis.connected_at > before
        assert await redis.command("GET", "k") == b"v"


async def test_commands_under_way_fail_when_the_connection_breaks(redis_url):
    """Whether they were executed is for the caller to find out."""
    async with open_door(redis_url) as door, opened(door.url) as redis:
        door.swallow()
        pending = redis.send("INCR", "n")
        await door.swallowed.wait()
        door.cut()
        with pytest.raises(StoreUnavailable):
            await redis.answer(pending)
        door.reopen()
        await until(lambda: redis.connected)
        assert await redis.command("GET", "n") == b"1"


async def test_an_overdue_answer_ends_the_connection(redis_url, monkeypatch):
    """A server that hangs is as good as gone, and a new connection is tried."""
    async with open_door(redis_url) as door, opened(door.url) as redis:
        door.swallow()
        with monkeypatch.context() as impatient:
            impatient.setattr(client, "REPLY_LIMIT", 0.15)
            with pytest.raises(StoreUnavailable):
                await redis.command("INCR", "n")
        door.reopen()
        await until(lambda: redis.connected)
        assert await redis.command("GET", "n") == b"1"


async def test_a_server_that_never_greets_is_tried_again(redis_url, monkeypatch):
    """Within its limit; started only once there is a connection."""
    monkeypatch.setattr(client, "CONNECT_LIMIT", 0.05)
    async with open_door(redis_url) as door, trio.open_nursery() as nursery:
        door.swallow()
        redis = Redis(door.url, {})
        with trio.move_on_after(0.3) as scope:
            await nursery.start(redis.run)
        assert scope.cancelled_caught
        assert not redis.connected
        monkeypatch.setattr(client, "CONNECT_LIMIT", 3.0)
        door.reopen()
        with trio.fail_after(20):
            await nursery.start(Redis(door.url, {}).run)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "words",
    [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"+OK\r\n+OK\r\n", b"$6\r\nab:c\r\n\r\n", b"-NO way\r\n"],
    ids=["not Redis", "no text", "no run id", "refused"],
)
async def test_a_server_that_is_no_redis_is_no_connection(words):
    """Whatever answers there: it is tried again, and nothing falls over."""
    attempts = 0

    async def answer(stream):
        nonlocal attempts
        attempts += 1
        await stream.receive_some()
        await stream.send_all(words)
        await stream.receive_some()

    async with trio.open_nursery() as nursery:
        serve = await nursery.start(trio.serve_tcp, answer, 0)
        port = serve[0].socket.getsockname()[1]
        redis = Redis(f"redis://127.0.0.1:{port}/0", {})
        nursery.start_soon(redis.run)
        with trio.fail_after(20):
            await until(lambda: attempts >= 2)
        assert not redis.connected
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("words", [b"+OK\r\n", b"nonsense\r\n"])
async def test_an_answer_that_nobody_asked_for_ends_the_connection(words):
    """From then on nobody could tell whose answer is whose."""
    greeted = trio.Event()

    async def answer(stream):
        await stream.receive_some()
        await stream.send_all(b"$8\r\nrun_id:x\r\n")
        await greeted.wait()
        await stream.send_all(words)
        await stream.receive_some()

    async with trio.open_nursery() as nursery:
        serve = await nursery.start(trio.serve_tcp, answer, 0)
        redis = Redis(f"redis://127.0.0.1:{serve[0].socket.getsockname()[1]}/0", {})
        await nursery.start(redis.run)
        assert redis.run_id == "x"
        greeted.set()
        with trio.fail_after(20):
            await until(lambda: not redis.connected)
        nursery.cancel_scope.cancel()


async def test_an_answer_may_be_waited_for_whatever_is_cancelled(redis_url):
    """Not cancellable: for a command whose outcome must be known."""
    async with open_door(redis_url) as door, opened(door.url) as redis:
        with trio.CancelScope() as scope:
            pending = redis.send("INCR", "n")
            scope.cancel()
            assert await redis.answer(pending, cancellable=False) == 1
            with trio.move_on_after(0):
                await redis.command("INCR", "n")
        assert await redis.command("GET", "n") == b"2"


async def test_too_many_commands_under_way_are_an_outage(redis_url, monkeypatch):
    """The memory that waiting may take is bounded."""
    monkeypatch.setattr(client, "WAITING", 3)
    async with open_door(redis_url) as door, opened(door.url) as redis:
        door.swallow()
        pending = [redis.send("PING") for _ in range(5)]
        assert [one.done for one in pending] == [False, False, False, True, True]


async def test_an_address_may_name_user_password_and_database(redis_url, redis):
    """They are used at every connect; a wrong password is no connection."""
    await redis.command("ACL", "SETUSER", "tester", "on", ">open", "~*", "+@all")
    try:
        async with open_door(redis_url) as door:
            place = door.url.removeprefix("redis://").removesuffix("/0")
            async with opened(f"redis://tester:open@{place}/3", add=ADD) as named:
                await named.script("add", ["n"], [1])
                assert await named.command("ACL", "WHOAMI") == b"tester"
            assert await redis.command("GET", "n") is None
            with trio.move_on_after(0.3) as scope:
                async with trio.open_nursery() as nursery:
                    await nursery.start(Redis(f"redis://tester:shut@{place}/3", {}).run)
            assert scope.cancelled_caught
    finally:
        await redis.command("ACL", "DELUSER", "tester")


async def test_a_password_alone_is_the_default_users(redis_url, redis):
    """As servers before version 6 know it."""
    await redis.command("CONFIG", "SET", "requirepass", "sesame")
    try:
        async with open_door(redis_url) as door:
            place = door.url.removeprefix("redis://")
            async with opened(f"redis://:sesame@{place}") as named:
                assert await named.command("ACL", "WHOAMI") == b"default"
    finally:
        await redis.command("CONFIG", "SET", "requirepass", "")
