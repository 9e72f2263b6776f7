"""What the simulated Ollama does when it is told to misbehave."""

from __future__ import annotations

import httpx
import orjson
import pytest
import trio
import trio.testing

from trio_gateway.simulator.canaries import SECRET_SIGNIN_URL
from trio_gateway.simulator.script import Script, parse_scripts
from trio_gateway.simulator.stream import Died

from .conftest import ask, lines, post_raw


async def post(client, **more):
    """Send one chat request under a timeout."""
    with trio.fail_after(30):
        return await client.post("/api/chat", json=ask(**more))


@pytest.mark.parametrize("status", [401, 404, 429, 500, 503])
async def test_a_status_replaces_the_reply(local, status):
    """The error has a body like Ollama's and the headers of the script."""
    app, client = local
    app.sim.play(Script(status=status, headers={"retry-after": "7"}))
    answer = await post(client)
    assert answer.status_code == status
    assert answer.headers["retry-after"] == "7"
    assert answer.json()["error"]
    assert (SECRET_SIGNIN_URL in answer.text) is (status == 401)
    assert app.sim.generations[-1].end == "failed"


async def test_a_redirect_leads_where_the_script_says(local):
    """A 302 has a location, by default one that a gateway must never reach."""
    app, client = local
    app.sim.play(Script(status=302))
    answer = await post(client)
    assert (answer.status_code, answer.headers["location"]) == (302, "/api/pull")


async def test_a_script_serves_so_many_requests_of_its_model(local):
    """Scripts are taken by model and count down; the rest get a good reply."""
    app, client = local
    app.sim.play(Script(model="llama3.2", times=2, status=500))
    statuses = [(await post(client, model=name)).status_code for name in ("qwen3:8b", "LLAMA3.2")]
    statuses += [(await post(client)).status_code for _ in range(2)]
    assert statuses == [200, 500, 500, 200]
    assert app.sim.scripts == []


async def test_a_path_puts_a_script_on_metadata(local):
    """Without a path only inference is scripted; with one, that route alone."""
    app, client = local
    app.sim.play(Script(path="/api/tags", status=503))
    with trio.fail_after(30):
        assert (await client.get("/api/tags")).status_code == 503
        assert (await client.get("/api/version")).status_code == 200
    assert (await post(client)).status_code == 200


@pytest.mark.parametrize(
    ("ending", "last"),
    [
        ("eof", {"done": False}),
        ("error", {"error": "an error was encountered while running the model: unexpected EOF"}),
    ],
)
async def test_a_stream_can_end_without_its_final_object(local, ending, last):
    """It just stops, or stops with an error line."""
    app, client = local
    app.sim.play(Script(ending=ending, after=2))
    found = lines((await post(client)).content)
    assert len(found) == 2 + (ending == "error")
    assert found[-1].items() >= last.items()
    assert app.sim.generations[-1].end == "failed"


async def test_garbage_is_no_json(local):
    """The last line cannot be parsed."""
    app, client = local
    app.sim.play(Script(ending="garbage"))
    with pytest.raises(orjson.JSONDecodeError):
        lines((await post(client)).content)


async def test_dying_in_process_raises(local):
    """Without a socket to break, the app raises an error of the connection."""
    app, client = local
    app.sim.play(Script(ending="die", after=1))
    with pytest.raises(Died):
        await post(client)
    assert app.sim.generations[-1].end == "failed"


async def test_usage_can_lie(local):
    """Fields of the final object are replaced, added or left out."""
    app, client = local
    app.sim.play(Script(final={"eval_count": -4, "prompt_eval_count": None, "done_reason": "odd"}))
    final = lines((await post(client)).content)[-1]
    assert (final["eval_count"], final["done_reason"]) == (-4, "odd")
    assert "prompt_eval_count" not in final


async def test_a_chunk_can_hold_many_tokens(local):
    """Ten tokens in chunks of four are three chunks, and still counted as ten."""
    app, client = local
    app.sim.play(Script(tokens=10, chunk_tokens=4))
    found = lines((await post(client)).content)
    assert found[0]["message"]["content"] == "t0 t1 t2 t3 "
    assert (len(found), found[-1]["eval_count"]) == (4, 10)


async def test_a_line_can_be_huge(local):
    """One line of the size asked for, then the final object."""
    app, client = local
    app.sim.play(Script(line_bytes=3_000_000))
    first, final = lines((await post(client)).content)
    assert len(first["message"]["content"]) == 3_000_000
    assert final["done"] is True


async def test_a_gap_takes_its_time(local, autojump_clock):
    """Five tokens with a second between take five seconds; a slow head adds to them."""
    app, client = local
    app.sim.play(Script(tokens=5, token_gap=1, head_delay=30))
    begun = trio.current_time()
    await client.post("/api/chat", json=ask())
    assert trio.current_time() - begun == pytest.approx(35)


@pytest.mark.parametrize("stream", [True, False])
async def test_a_held_reply_ends_when_other_scripts_are_played(served, stream):
    """Its tokens are out and its end is not, for as long as its script is played."""
    sim, done = served.app.sim, trio.Event()
    sim.play(Script(tokens=2, held=True))
    found = []

    async def call():
        answer = await served.client.post("/api/chat", json=ask(stream=stream))
        found.extend(lines(answer.content))
        done.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(call)
        with trio.fail_after(60):
            await sim.until(lambda sim: sim.generations and sim.generations[0].body)
            if stream:
                await sim.until(lambda sim: sim.generations[0].tokens == 2)
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert (sim.open, done.is_set()) == (1, False)
            sim.play()
            await done.wait()
            await sim.until(lambda sim: not sim.open)
    assert (found[-1]["done"], found[-1]["eval_count"]) == (True, 2)
    assert sim.generations[0].end == "done"


async def test_leaving_in_process_is_a_disconnect(local, autojump_clock):
    """A cancelled call ends its generation, in the slow head too."""
    app, client = local
    app.sim.play(Script(head_delay=100))
    with trio.move_on_after(1):
        await client.post("/api/chat", json=ask())
    assert app.sim.open == 0
    assert app.sim.generations[-1].end == "disconnected"


@pytest.mark.parametrize(
    "given",
    [
        {"endin": "die"},
        {"ending": "explode"},
        {"head_delay": "long"},
        {"tokens": True},
        {"never_reads": True, "model": "a"},
        "die",
    ],
)
def test_a_bad_script_is_refused(given):
    """Unknown fields and wrong types are errors, not silence."""
    with pytest.raises(ValueError, match=r"."):
        parse_scripts(given)


def test_scripts_come_alone_or_in_lists():
    """An object, a list and null are all read."""
    assert parse_scripts(None) == ()
    assert parse_scripts({"tokens": 3}) == (Script(tokens=3),)
    assert len(parse_scripts([{"times": 1}, {"model": None}])) == 2


async def test_a_dead_connection_is_no_clean_end(served):
    """Over TCP the chunked encoding breaks off after the chunks asked for."""
    served.app.sim.play(Script(ending="die", after=2))
    with trio.fail_after(30):
        async with await post_raw(served.port, ask()) as stream:
            received = b"".join([part async for part in stream])
        with pytest.raises(httpx.RemoteProtocolError):
            await served.client.post("/api/chat", json=ask())
    assert received.count(b'"done":false') == 2
    assert not received.endswith(b"0\r\n\r\n")


async def test_a_flood_ignores_num_predict_until_the_reader_leaves(served):
    """Tokens keep coming, and stop when the connection goes."""
    sim = served.app.sim
    served.app.sim.play(Script(flood=True))
    size = 0
    with trio.fail_after(30):
        async with await post_raw(served.port, ask(options={"num_predict": 1})) as stream:
            while size < 1_000_000:
                size += len(await stream.receive_some())
        await sim.until(lambda seen: seen.open == 0)
    assert sim.generations[-1].end == "disconnected"
    assert sim.generations[-1].tokens > 1000


async def test_a_stalled_server_stops_taking_the_body(served):
    """A body larger than the buffers cannot be sent, and a small one's leaver is seen."""
    sim = served.app.sim
    sim.play(Script(never_reads=True))
    with trio.fail_after(30):
        stream = await trio.open_tcp_stream("127.0.0.1", served.port)
        async with stream:
            size = 64_000_000
            head = f"POST /api/chat HTTP/1.1\r\nhost: a\r\ncontent-length: {size}\r\n\r\n"
            await stream.send_all(head.encode())
            with trio.move_on_after(0.5) as scope:
                await stream.send_all(bytes(size))
        assert scope.cancelled_caught
        small = await trio.open_tcp_stream("127.0.0.1", served.port)
        async with small:
            await small.send_all(
                b"POST /api/chat HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\n{}"
            )
            await sim.until(lambda seen: seen.started == 2)
        await sim.until(lambda seen: seen.generations[-1].end == "disconnected")
