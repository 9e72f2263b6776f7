"""What a test can see of the simulated Ollama, over real sockets and from another process."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from functools import partial

import httpx
import orjson
import pytest
import trio

from trio_gateway.simulator.app import create_app
from trio_gateway.simulator.script import Script

from .conftest import ask, in_process, lines, post_raw


@pytest.mark.parametrize(
    "script",
    [
        Script(head_delay=100),
        Script(never_answers=True),
        Script(tokens=10_000, token_gap=0.01),
        Script(flood=True, token_gap=0.01),
    ],
    ids=["slow head", "never answers", "streaming", "slow flood"],
)
@pytest.mark.parametrize("stream", [True, False])
async def test_a_hang_up_is_seen_in_every_phase(served, script, stream):
    """The generation ends as disconnected at once when the socket has ended."""
    sim = served.app.sim
    sim.play(script)
    with trio.fail_after(30):
        async with await post_raw(served.port, ask(stream=stream)):
            await sim.until(lambda seen: bool(seen.generations and seen.generations[-1].body))
            if script.token_gap and stream:
                await sim.until(lambda seen: seen.generations[-1].tokens > 2)
        left = time.monotonic()
        await sim.until(lambda seen: seen.open == 0)
    [generation] = sim.generations
    assert generation.end == "disconnected"
    assert generation.ended_at - left < 1
    assert generation.tokens < 10_000


async def test_times_and_headers_are_recorded(served):
    """A report has what is needed to tell when and with what upstream was called."""
    before = time.monotonic()
    with trio.fail_after(30):
        served.app.sim.play(Script(head_delay=0.05))
        answer = await served.client.post("/api/chat", json=ask(), headers={"x-mark": "7"})
        seen = (await served.client.get("/_sim/state")).json()
    assert answer.status_code == 200
    [generation] = seen["generations"]
    assert before < generation["started_at"] < generation["first_byte_at"]
    assert generation["first_byte_at"] - generation["started_at"] >= 0.05
    assert generation["first_byte_at"] <= generation["ended_at"] < time.monotonic()
    assert ["x-mark", "7"] in generation["headers"]
    assert seen["requests"] == {"/api/chat": 1}
    assert (seen["open"], seen["max_open"], seen["started"]) == (0, 1, 1)


async def test_bodies_are_kept_within_bounds(local):
    """The newest 64 MiB of bodies stay; older ones are forgotten, but not their records."""
    app, client = local
    with trio.fail_after(60):
        for _ in range(4):
            body = ask("x" * 20_000_000, options={"num_predict": 1})
            assert (await client.post("/api/chat", json=body)).status_code == 200
    assert [bool(item.body) for item in app.sim.generations] == [False, True, True, True]


async def test_control_goes_over_http(served):
    """Scripts and models are set, listed and removed; bad ones are refused."""
    client = served.client
    with trio.fail_after(30):
        refused = await client.post("/_sim/script", json={"nonsense": 1})
        await client.post("/_sim/script", json=[{"tokens": 2, "times": 1}])
        told = lines((await client.post("/api/chat", json=ask())).content)
        spent = await client.get("/_sim/script")
        await client.put("/_sim/models", json=["only", {"name": "b", "context_length": 9}])
        tags = (await client.get("/api/tags")).json()["models"]
        bad = await client.put("/_sim/models", json=[{"nom": "b"}])
        await client.delete("/_sim/state")
        state = (await client.get("/_sim/state")).json()
    assert refused.status_code == bad.status_code == 400
    assert told[-1]["eval_count"] == 2
    assert spent.json() == []
    assert [model["name"] for model in tags] == ["only:latest", "b:latest"]
    assert state["started"] == 0


async def test_a_report_can_wait_for_what_is_to_come(served):
    """The state is given when so many generations are open."""
    client = served.client
    served.app.sim.play(Script(never_answers=True))
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(client.post, "/api/chat", json=ask()))
            nursery.start_soon(partial(client.post, "/api/chat", json=ask()))
            both = (await client.get("/_sim/state", params={"open": 2})).json()
            nursery.cancel_scope.cancel()
        gone = (await client.get("/_sim/state", params={"open": 0})).json()
    assert both["max_open"] == 2
    assert [item["end"] for item in gone["generations"]] == ["disconnected"] * 2


async def test_control_is_closed_by_default():
    """Nobody can script a simulation that was not opened for it."""
    async with in_process(create_app()) as client:
        with trio.fail_after(30):
            assert (await client.post("/_sim/script", json={})).status_code == 404
            assert (await client.get("/_sim/state")).status_code == 404


async def test_it_runs_as_a_process_on_an_inherited_socket():
    """The ready line names the URL, the socket is the parent's, SIGTERM ends it well."""
    with socket.create_server(("127.0.0.1", 0)) as listener, trio.fail_after(60):
        port = listener.getsockname()[1]
        command = [sys.executable, "-m", "trio_gateway.simulator", "--models", "a,b", "--control"]
        command += ["--bind", f"fd://{listener.fileno()}", "--script", '{"reply_text":"well met"}']
        async with trio.open_nursery() as nursery:
            child = await nursery.start(
                partial(
                    trio.run_process,
                    command,
                    pass_fds=[listener.fileno()],
                    stdout=subprocess.PIPE,
                    capture_stdout=False,
                )
            )
            ready = orjson.loads(await child.stdout.receive_some())
            async with httpx.AsyncClient(base_url=ready["url"]) as client:
                answer = await client.post("/api/chat", json=ask(model="b", stream=False))
                state = (await client.get("/_sim/state")).json()
            child.send_signal(signal.SIGTERM)
    assert ready == {"url": f"http://127.0.0.1:{port}", "pid": child.pid}
    assert answer.json()["message"]["content"] == "well met"
    assert state["generations"][0]["model"] == "b"
    assert child.returncode == 0
