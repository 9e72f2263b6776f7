"""The Redis client behind sentinels: it writes to the primary, whoever that is, or to nobody."""

import contextlib
import ssl
import subprocess
import time
from dataclasses import dataclass
from functools import partial

import pytest
import trio

from tests.proxy import Door
from tests.sentinels import FAILOVER, ensemble, until
from trio_gateway.clients import redis as client
from trio_gateway.clients import sentinel
from trio_gateway.clients.redis import Redis
from trio_gateway.core.errors import StoreUnavailable

ADD = "return redis.call('INCRBY', KEYS[1], ARGV[1])"


@contextlib.asynccontextmanager
async def running(url):
    """A client that has not connected yet."""
    redis = Redis(url, {"add": ADD})
    async with trio.open_nursery() as nursery:
        nursery.start_soon(redis.run)
        yield redis
        nursery.cancel_scope.cancel()


@contextlib.asynccontextmanager
async def opened(url):
    """A connected client."""
    async with running(url) as redis:
        await until(lambda: redis.connected, 20)
        yield redis


@dataclass
class Fake:
    """A sentinel that says what it is told to."""

    names: int  # the primary's port
    epoch: int = 0
    port: int = 0
    asked: int = 0
    words: bytes | None = None

    def answer(self):
        if self.words is not None:
            return self.words
        fields = ["config-epoch", str(self.epoch), "num-other-sentinels", "2"]
        return array("127.0.0.1", str(self.names)) + array(*fields) + b"*0\r\n+OK\r\n"

    async def serve(self, stream):
        with contextlib.suppress(trio.BrokenResourceError):
            while await stream.receive_some():
                self.asked += 1
                await stream.send_all(self.answer())


def array(*words):
    texts = "".join(f"${len(word)}\r\n{word}\r\n" for word in words)
    return f"*{len(words)}\r\n{texts}".encode()


def was_asked(fake, least):
    return fake.asked >= least


def names(redises, port):
    return redises.primary() == port


@contextlib.asynccontextmanager
async def faked(*fakes):
    """Run fake sentinels; lend the address that names them."""
    async with trio.open_nursery() as nursery:
        for fake in fakes:
            listeners = await nursery.start(
                partial(trio.serve_tcp, host="127.0.0.1"), fake.serve, 0
            )
            fake.port = listeners[0].socket.getsockname()[1]
        hosts = ",".join(f"127.0.0.1:{fake.port}" for fake in fakes)
        yield f"redis+sentinel://{hosts}/books"
        nursery.cancel_scope.cancel()


@pytest.fixture
async def redises(tmp_path):
    async with ensemble(tmp_path) as found:
        yield found


async def test_it_speaks_to_the_primary_and_survives_its_death(redises):
    """A kill ends the connection; commands fail at once until the promoted replica is found."""
    first, second = redises.data
    async with opened(redises.url) as redis:
        assert await redis.script("add", ["n"], [5]) == 5
        assert redises.ask(first, "GET", "n") == b"5"
        before, connected_at = redis.run_id, redis.connected_at
        await until(lambda: redises.ask(second, "GET", "n") == b"5")
        redises.kill(first)
        await until(lambda: not redis.connected)
        began = time.monotonic()
        with pytest.raises(StoreUnavailable):
            await redis.command("GET", "n")
        assert time.monotonic() - began < 1  # rather than after a wait for an answer
        await until(lambda: redis.connected, FAILOVER)
        assert redis.connected_at > connected_at
        assert redis.run_id not in {before, ""}
        assert await redis.script("add", ["n"], [1]) == 6
        assert redises.ask(second, "GET", "n") == b"6"


async def test_a_primary_that_steps_down_is_left_and_knows_no_counters_when_it_is_back(redises):
    """Two failovers without a death: each has another run id, though the process is the same."""
    first, second = redises.data
    async with opened(redises.url) as redis:
        seen = [redis.run_id]
        for here, there in ((first, second), (second, first)):
            await until(partial(names, redises, here))
            with trio.fail_after(2 * FAILOVER):
                # refused while the sentinels have not seen the new replica
                while True:
                    with contextlib.suppress(Exception):
                        redises.ask(redises.watchers[0], "SENTINEL", "FAILOVER", "books")
                        break
                    await trio.sleep(0.1)
            await until(lambda: redis.connected and redis.run_id != seen[-1])
            seen.append(redis.run_id)
            assert await redis.command("SET", "where", there) == b"OK"
            assert redises.ask(there, "GET", "where") == str(there).encode()
        assert seen[2].startswith(f"{seen[0]}:")
        assert len(set(seen)) == 3
        await until(partial(redises.follows, second))


@pytest.mark.parametrize("how", ["kill", "freeze"])
async def test_a_sentinel_that_is_away_is_passed_over(redises, how, monkeypatch):
    """Gone or silent: the others are enough, at once while most of them answer."""
    getattr(redises, how)(redises.watchers[0])
    with monkeypatch.context() as patient:
        for limit in ((sentinel, "ASK_LIMIT"), (client, "CONNECT_LIMIT")):
            patient.setattr(*limit, 60.0)
        async with opened(redises.url) as redis:
            assert await redis.command("PING") == b"PONG"
    getattr(redises, how)(redises.watchers[2])
    async with opened(redises.url) as redis:
        assert await redis.command("PING") == b"PONG"


async def test_without_any_sentinel_there_is_no_new_connection(redises):
    """One that is there goes on; a new one is refused in bounded time, until one is back."""
    async with opened(redises.url) as before:
        for port in redises.watchers:
            redises.kill(port)
        async with running(redises.url) as redis:
            with trio.fail_after(20):
                await until(lambda: redis.trouble)
                with pytest.raises(StoreUnavailable):
                    await redis.command("PING")
            assert redis.trouble == "no sentinel answers"
            assert await before.command("PING") == b"PONG"
            redises.watch(redises.watchers[1], redises.data[0])
            await until(lambda: redis.connected)
            assert redis.trouble == ""


async def test_a_name_that_no_sentinel_knows_is_told(redises):
    """It is tried again, as somebody may yet teach them."""
    async with running(redises.address(name="other")) as redis:
        await until(lambda: redis.trouble)
        assert redis.trouble == "no sentinel knows a primary of that name"
        assert not redis.connected


async def test_passwords_of_servers_and_sentinels_are_used_and_not_shown(tmp_path):
    """Each is told apart from the other where it is wrong."""
    async with ensemble(tmp_path, password="p/s@1", sentinel_password="s+&:2") as redises:
        async with opened(redises.url) as redis:
            assert await redis.command("PING") == b"PONG"
        for wrong, trouble in (
            (redises.url.replace("p%2Fs", "hidden"), "WRONGPASS"),
            (redises.url.replace(":p%2Fs%401@", ""), "NOAUTH"),
            (f"{redises.url}hidden", "a sentinel refuses the sentinel_password: WRONGPASS"),
            (redises.url.partition("?")[0], "a sentinel refuses: NOAUTH"),
        ):
            async with running(wrong) as redis:
                await until(partial(getattr, redis, "trouble"))
                assert redis.trouble == trouble


async def test_a_server_that_became_a_replica_is_left_at_the_first_refused_write(redises):
    """By a command as by a script; whoever asked is told that the store is not available."""
    first, second = redises.data
    for port in redises.watchers:  # which would make one of the two the primary again
        redises.kill(port)
    fake = Fake(first)
    async with faked(fake) as url, opened(url) as redis:
        for write in (("SET", "n", 1), ("EVALSHA", client._digest(ADD), 1, "n", 1)):
            asked = fake.asked
            redises.ask(first, "REPLICAOF", "127.0.0.1", second)
            with pytest.raises(StoreUnavailable):
                await redis.command(*write)
            await until(lambda: not redis.connected)
            # nor is it taken again while it is one, whatever the sentinel says
            await until(partial(was_asked, fake, asked + 2))
            assert redis.trouble == "the server that the sentinels name is a replica"
            assert not redis.connected
            redises.ask(first, "REPLICAOF", "NO", "ONE")
            await until(lambda: redis.connected)


async def test_the_newest_word_counts(redises):
    """A sentinel that missed a failover is not believed, in whatever order they are named."""
    first, second = redises.data
    stale, fresh = Fake(second, epoch=2), Fake(first, epoch=3)
    for fakes in ((stale, fresh), (fresh, stale)):
        async with faked(*fakes) as url, opened(url) as redis:
            await redis.command("SET", "by", "newest")
            assert redises.ask(first, "GET", "by") == b"newest"
            assert redis.run_id.endswith(":3")


async def test_a_primary_that_was_replaced_and_does_not_know_is_left(redises, monkeypatch):
    """Once most sentinels say so; one alone may be wrong."""
    monkeypatch.setattr(client, "FOLLOW", 0.05)
    first, second = redises.data
    for port in redises.watchers:
        redises.kill(port)
    redises.ask(second, "REPLICAOF", "NO", "ONE")
    fakes = [Fake(first, 1), Fake(first, 1), Fake(first, 1)]
    async with faked(*fakes) as url, opened(url) as redis:
        fakes[1].words = fakes[2].words = b"-ERR away\r\n" * 4
        fakes[0].names, fakes[0].epoch = second, 2
        asked = fakes[0].asked
        await until(partial(was_asked, fakes[0], asked + 4))
        assert redis.connected
        assert redis.run_id.endswith(":1")
        fakes[1].words, fakes[1].names, fakes[1].epoch = None, second, 2
        await until(lambda: redis.connected and redis.run_id.endswith(":2"))
        await redis.command("SET", "by", "followed")
        assert redises.ask(second, "GET", "by") == b"followed"


@pytest.fixture
def certificate(tmp_path):
    """A certificate for 127.0.0.1 that signs itself, and the context of the server's side."""
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    words = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    words += [
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=redis",
        "-addext",
        "subjectAltName=IP:127.0.0.1",
    ]
    words += ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run(words, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return certificate, context


async def test_tls_is_spoken_to_the_sentinels_and_to_the_primary(
    redis_url, certificate, monkeypatch
):
    """With a certificate that is trusted, and with no other."""
    path, context = certificate
    fake, door = Fake(0), Door(redis_url)
    async with trio.open_nursery() as nursery:
        serve = partial(trio.serve_ssl_over_tcp, host="127.0.0.1", ssl_context=context)
        fronts = [await nursery.start(serve, each.serve, 0) for each in (fake, door)]
        ports = [front[0].transport_listener.socket.getsockname()[1] for front in fronts]
        fake.names = ports[1]
        url = f"rediss+sentinel://127.0.0.1:{ports[0]}/books"
        async with running(url) as redis:
            await until(partial(getattr, redis, "trouble"))
            assert (redis.trouble, fake.asked) == ("no sentinel answers", 0)
        monkeypatch.setenv("SSL_CERT_FILE", str(path))
        async with opened(url) as redis:
            assert await redis.command("PING") == b"PONG"
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "words",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"+OK\r\n+OK\r\n+OK\r\n+OK\r\n",
        b":1\r\n:1\r\n:1\r\n:1\r\n",
        b"*1\r\n+h\r\n*0\r\n*0\r\n+OK\r\n",
        b"*2\r\n+h\r\n+99999\r\n*0\r\n*0\r\n+OK\r\n",
        b"*2\r\n+h\r\n+1\r\n*1\r\n+odd\r\n*0\r\n+OK\r\n",
        b"*2\r\n+h\r\n+1\r\n*-1\r\n*-1\r\n+OK\r\n",
        array("127.0.0.1", "1") + array("config-epoch", "x") + b"*0\r\n+OK\r\n",
        array("a..b", "1")
        + array("config-epoch", "1", "num-other-sentinels", "2")
        + b"*0\r\n+OK\r\n",
        b"-ERR unknown command `SENTINEL`\r\n" * 4,
        b"-NOPERM no\r\n" * 4,
    ],
)
async def test_a_sentinel_that_is_none_breaks_nothing(words):
    """Whatever answers there: there is a reason and no connection, and it is tried again."""
    fake = Fake(1, words=words)
    async with faked(fake) as url, running(url) as redis:
        await until(lambda: fake.asked > 1)
        assert redis.trouble
        assert not redis.connected
