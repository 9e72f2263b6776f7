"""Uploads and downloads that end early, and what they leave: nothing."""

from __future__ import annotations

import orjson
import pytest
import trio

from tests import raw_http
from tests.integration.caller import connected, until
from tests.integration.forms import (
    BATCH,
    EVALS,
    GOOD,
    JSONL,
    TYPE,
    begun,
    blobs,
    chunk,
    file,
    form,
    head,
    nothing_left,
)
from tests.world import open_world
from trio_gateway.core.errors import ShuttingDown

MIB = 1 << 20
REVOKE = "INSERT INTO gateway.revocations (key_id, reason) VALUES ($1, 'test')"


async def told(caller):
    """Read a refusal, and return status, code and param."""
    received = await caller.until(b"\r\n\r\n{")
    while True:
        body = received.split(b"\r\n\r\n", 1)[1]
        try:
            error = orjson.loads(body)["error"]
        except orjson.JSONDecodeError:
            received += await caller.stream.receive_some()
        else:
            return caller.status, error["code"], error["param"]


async def half_sent(world, caller, key=None, **options):
    """Send the beginning of an upload, and wait until it is being written."""
    before = len(blobs(world))
    await caller.stream.send_all(begun(world, key, **options) + BATCH + head() + JSONL)
    await caller.stream.send_all(b"x" * (3 * MIB))
    await until(lambda: len(blobs(world)) > before)


@pytest.mark.parametrize("how", ["leave", "reset"])
async def test_a_hang_up_in_the_middle_leaves_nothing(world, how):
    """Neither a file, nor a blob, nor a task, though more had come than anybody took."""
    await world.get("/v1/files")
    tasks = trio.lowlevel.current_statistics().tasks_living
    async with connected(world) as caller:
        await half_sent(world, caller)
        if how == "leave":
            await caller.leave()
        else:
            caller.reset()
        await nothing_left(world)
        await until(lambda: trio.lowlevel.current_statistics().tasks_living <= tasks)


async def test_a_body_that_stops_coming_is_given_up(database, redis_url):
    """408 after BODY_TIMEOUT; pieces that keep coming do not count against it."""
    async with open_world(database, redis_url, body_timeout=1.5) as world:
        async with connected(world) as caller:
            await half_sent(world, caller)
            for _ in range(4):
                await trio.sleep(0.5)
                await caller.stream.send_all(b"x")
            assert await told(caller) == (408, "request_timeout", None)
        await nothing_left(world)


async def test_an_upload_has_an_end_however_steadily_it_comes(database, redis_url):
    """408 after CALL_TIMEOUT."""
    async with open_world(database, redis_url, call_timeout=2) as world:
        async with connected(world) as caller, trio.open_nursery() as nursery:
            await half_sent(world, caller)

            async def trickle():
                while True:
                    await caller.stream.send_all(b"x")
                    await trio.sleep(0.05)

            nursery.start_soon(trickle)
            assert await told(caller) == (408, "request_timeout", None)
            nursery.cancel_scope.cancel()
        await nothing_left(world)


@pytest.mark.parametrize("announced", [True, False])
async def test_a_file_over_the_limit_is_refused_before_its_end(database, redis_url, announced):
    """413 that names the limit, be the length known or not, while the client still sends."""
    async with open_world(database, redis_url, max_file_bytes=MIB) as world:
        async with connected(world) as caller:
            unknown = {"Transfer-Encoding": "chunked"}
            known = begun(world, length=100 * MIB)
            await caller.stream.send_all(known if announced else begun(world, length=0, **unknown))
            first = EVALS + head()
            await caller.stream.send_all(first if announced else chunk(first))
            for _ in range(3):
                piece = b"x" * (MIB // 2)
                await caller.stream.send_all(piece if announced else chunk(piece))
            assert await told(caller) == (413, "request_too_large", "file")
            assert str(MIB).encode() in caller.received
        await nothing_left(world)
        for size, status in ((MIB, 200), (MIB + 1, 413)):
            body = form(EVALS, file(b"x" * size))
            answer = await world.client.post(
                "/v1/files",
                content=body,
                headers=world.auth() | {"content-type": TYPE},
            )
            assert answer.status_code == status


async def test_the_rest_of_a_refused_upload_is_taken_in(database, redis_url):
    """A client that looks for the answer only when it has sent it all finds one."""
    async with open_world(database, redis_url, max_file_bytes=MIB) as world:
        body = form(EVALS, file(b"x" * (30 * MIB)))
        async with connected(world) as caller:
            await caller.stream.send_all(begun(world, length=len(body)) + body)
            assert await told(caller) == (413, "request_too_large", "file")
        await nothing_left(world)


async def test_what_stands_beside_the_file_has_a_limit(world):
    """A form of nothing but other fields does not go on for ever."""
    async with connected(world) as caller:
        await caller.stream.send_all(begun(world, length=100 * MIB) + EVALS)
        await caller.stream.send_all(
            head().replace(b"file", b"elif") + b"--not the end" * (MIB // 8)
        )
        status, code, _ = await told(caller)
        assert (status, code) == (413, "request_too_large")
    await nothing_left(world)


@pytest.mark.parametrize("sent", [GOOD, EVALS + head() + b"x" * (5 * MIB)])
async def test_an_upload_without_a_key_is_not_read(world, sent):
    """401 at once, whatever comes behind it; nothing is written."""
    async with connected(world) as caller:
        bad = begun(world, {"key": "sk-tg-nothing"}, length=max(len(sent), 10 * MIB))
        await caller.stream.send_all(bad + sent)
        assert await told(caller) == (401, "invalid_api_key", None)
    await nothing_left(world)


async def test_a_revoked_key_cuts_its_upload(world):
    """401 while the body is still coming, and nothing is kept."""
    key = await world.keyring.issue("acme", {})
    async with connected(world) as caller:
        await half_sent(world, caller, key)
        await world.rows(REVOKE, key["id"])
        assert await told(caller) == (401, "invalid_api_key", None)
    await nothing_left(world)


async def test_a_drain_refuses_uploads_and_lets_the_one_under_way_end(world):
    """503 for the new one; the other is stored."""
    content = b"x" * (3 * MIB)
    whole = form(BATCH, head() + JSONL + content + b"\r\n")
    sent = len(BATCH + head() + JSONL) + 3 * MIB
    async with connected(world) as caller:
        await half_sent(world, caller, length=len(whole))
        world.gateway.begin_drain()
        await world.gateway.refusing.wait()
        async with connected(world) as late:
            await late.stream.send_all(begun(world, length=len(GOOD)) + GOOD)
            assert await told(late) == (503, "shutting_down", None)
        await caller.stream.send_all(whole[sent:])
        received = await caller.until(b'"object"')
        assert received.startswith(b"HTTP/1.1 200 ")
    assert len(await world.rows("SELECT id FROM gateway.files")) == 1


async def test_one_tenant_cannot_take_all_the_room_for_uploads(world):
    """The fifth at once is 503 with Retry-After; another tenant's goes on, and a later one."""
    stranger = await world.tenant_with_key("stranger")
    async with connected(world) as a, connected(world) as b, connected(world) as c:
        for caller in (a, b, c):
            await half_sent(world, caller)
        async with connected(world) as d:
            await half_sent(world, d)
            line = "POST /v1/files"
            headers = {"Content-Type": TYPE}
            full = await raw_http.ask(world.port, line, world.auth() | headers, GOOD)
            assert (full.status, full.json()["error"]["code"]) == (503, "overloaded")
            assert int(full.header("retry-after") or 0) > 0
            other = await raw_http.ask(world.port, line, world.auth(stranger) | headers, GOOD)
            assert other.status == 200
            await d.leave()
        await until(lambda: len(world.gateway.live) == 3)
        assert (await raw_http.ask(world.port, line, world.auth() | headers, GOOD)).status == 200


async def test_a_connection_is_used_again_after_an_upload(world):
    """Two uploads and a list on one."""
    async with raw_http.connect(world.port) as client:
        for _ in range(2):
            await client.send(begun(world, length=len(GOOD)) + GOOD)
            assert (await client.answer()).status == 200
        await client.send(raw_http.request("GET /v1/files", world.auth()))
        assert len((await client.answer()).json()["data"]) == 2


@pytest.mark.parametrize("size", [1, 100])
async def test_a_form_may_come_in_any_pieces(world, size):
    """Chunks that cut through boundaries and headers change nothing."""
    body = form(BATCH, file(JSONL * 3))
    async with raw_http.connect(world.port) as client:
        await client.send(begun(world, length=0, **{"Transfer-Encoding": "chunked"}))
        for at in range(0, len(body), size):
            await client.send(chunk(body[at : at + size]))
        await client.send(b"0\r\n\r\n")
        answer = await client.answer()
    assert (answer.status, answer.json()["bytes"]) == (200, len(JSONL) * 3)


async def downloading(world, caller, size=16 * MIB, key=None):
    """Store a large file, ask for it, and read the head of the answer."""
    headers = world.auth() | {"content-type": TYPE}
    body = form(EVALS, file(b"x" * size))
    made = (await world.client.post("/v1/files", content=body, headers=headers)).json()
    line = f"GET /v1/files/{made['id']}/content"
    await caller.stream.send_all(raw_http.request(line, world.auth(key)))
    await caller.until(b"\r\n\r\n")


async def cut_short(caller, size=16 * MIB):
    """Require that the answer broke before its end."""
    with pytest.raises((trio.BrokenResourceError, AssertionError)):
        while True:
            await caller.until(b"never")
    assert len(caller.received) < size


async def test_a_client_that_stops_reading_is_cut_off(database, redis_url):
    """After WRITE_STALL_TIMEOUT, and so nothing of the download is left."""
    async with (
        open_world(database, redis_url, write_stall_timeout=0.3) as world,
        connected(world, buffer=4096) as caller,
    ):
        await downloading(world, caller)
        await world.settled()
        await cut_short(caller)


async def test_a_revoked_key_cuts_its_download(world):
    """Nobody takes what came for the whole: the connection breaks."""
    key = await world.keyring.issue("acme", {})
    async with connected(world, buffer=4096) as caller:
        await downloading(world, caller, key=key)
        await world.rows(REVOKE, key["id"])
        await world.settled()
        await cut_short(caller)


@pytest.mark.parametrize(
    ("how", "levels"), [("revoked", {"info"}), ("stopped", {"info"}), ("lost", {"warning"})]
)
async def test_a_download_that_was_cut_on_purpose_is_no_warning(
    database, redis_url, capfd, how, levels
):
    """Only what failed is one: a revocation and a stop are what somebody wanted."""
    async with (
        open_world(database, redis_url, log_level="info") as world,
        connected(world, buffer=4096) as caller,
    ):
        key = await world.keyring.issue("acme", {})
        await downloading(world, caller, key=key)
        if how == "revoked":
            await world.rows(REVOKE, key["id"])
        elif how == "stopped":
            world.gateway.live.cut([key["id"]], ShuttingDown)
        else:
            for path in (world.blobs / "files").rglob("file-*"):
                path.unlink()
            await cut_short(caller)
        await world.settled()
    said = [line for line in capfd.readouterr().err.splitlines() if '"download_' in line]
    assert {orjson.loads(line)["level"] for line in said} == levels


async def test_a_client_that_leaves_its_download_leaves_nothing(world):
    """The task ends with the connection."""
    async with connected(world, buffer=4096) as caller:
        await downloading(world, caller)
        caller.reset()
        await world.settled()


async def test_a_blob_that_goes_during_a_download_breaks_it(world):
    """Never a clean end before the announced length."""
    async with connected(world, buffer=4096) as caller:
        await downloading(world, caller)
        for path in (world.blobs / "files").rglob("file-*"):
            path.unlink()
        await cut_short(caller)
        await world.settled()
