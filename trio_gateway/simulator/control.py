"""Scripts and observations over HTTP, for tests whose simulated Ollama is another process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson
import trio
from quart import Blueprint, Response, current_app, request

from trio_gateway.simulator import wire
from trio_gateway.simulator.script import dump_script, parse_scripts

if TYPE_CHECKING:
    from trio_gateway.simulator.state import Simulation

PREFIX = "/_sim/"
LONGEST_WAIT = 30.0

blueprint = Blueprint("control", __name__, url_prefix=PREFIX.rstrip("/"))


@blueprint.get("/script")
async def read_script() -> Response:
    """List the scripts that still serve."""
    return _json([dump_script(script) for script in _sim().scripts])


@blueprint.route("/script", methods=["POST", "PUT"])
async def replace_script() -> Response:
    """Replace the scripts by an object, a list of objects, or null for none."""
    try:
        scripts = parse_scripts(
            orjson.loads(
                await request.get_data(cache=False, as_text=False, parse_form_data=False) or b"null"
            )
        )
    except (ValueError, TypeError) as error:
        raise wire.Refusal(400, str(error)) from None
    _sim().play(*scripts)
    return await read_script()


@blueprint.delete("/script")
async def remove_script() -> Response:
    """Remove all scripts."""
    _sim().play()
    return _json([])


@blueprint.route("/models", methods=["POST", "PUT"])
async def replace_models() -> Response:
    """Replace the models by a list of names or of objects."""
    try:
        _sim().stock(
            orjson.loads(await request.get_data(cache=False, as_text=False, parse_form_data=False))
        )
    except (ValueError, TypeError, KeyError) as error:
        raise wire.Refusal(400, f"bad models: {error}") from None
    return _json(list(_sim().models))


@blueprint.get("/state")
async def state() -> Response:
    """Report the observations.

    `after=ID` leaves out older generations. `open=N` waits until exactly N are open and
    `started=N` until N have begun since the last reset, together, for at most `timeout`
    seconds (30); the report is then given anyhow.
    """
    arguments = request.args
    wanted_open = arguments.get("open", type=int)
    least_started = arguments.get("started", 0, type=int)
    timeout = min(LONGEST_WAIT, arguments.get("timeout", LONGEST_WAIT, type=float))

    def reached(sim: Simulation) -> bool:
        return sim.started >= least_started and wanted_open in {None, sim.open}

    with trio.move_on_after(timeout):
        await _sim().until(reached)
    return _json(_sim().report(arguments.get("after", 0, type=int)))


@blueprint.delete("/state")
async def reset() -> Response:
    """Forget the observations."""
    _sim().reset()
    return _json(_sim().report())


def _sim() -> Simulation:
    sim: Simulation = current_app.sim  # type: ignore[attr-defined]
    return sim


def _json(value: Any) -> Response:
    return Response(wire.encode(value), content_type=wire.JSON)
