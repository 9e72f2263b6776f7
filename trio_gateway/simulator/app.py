"""The simulated Ollama as a Quart-Trio application."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import trio
from quart import Response, request
from quart_trio import QuartTrio
from quart_trio.asgi import TrioASGIHTTPConnection

from trio_gateway.simulator import control, inference, management, metadata, wire
from trio_gateway.simulator.models import DEFAULT_MODELS
from trio_gateway.simulator.script import Script
from trio_gateway.simulator.state import INFERENCE, Generation, Simulation
from trio_gateway.simulator.stream import Died

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, ASGISendEvent

    from trio_gateway.simulator.models import Model

# What a stalled request takes in: enough to see a small one's caller leave, too little
# for a big one's caller to get rid of it.
STALLED_MESSAGES = 4


class Simulator(QuartTrio):
    """The application; `sim` holds its models, scripts and observations."""

    sim: Simulation

    def __init__(self, sim: Simulation) -> None:
        """Take the simulation that it shows."""
        super().__init__(__name__, static_folder=None)
        self.sim = sim
        self.config.update(
            RESPONSE_TIMEOUT=None,
            BODY_TIMEOUT=None,
            MAX_CONTENT_LENGTH=None,
            PROVIDE_AUTOMATIC_OPTIONS=False,
            PROPAGATE_EXCEPTIONS=True,
        )


class Connection(TrioASGIHTTPConnection):
    """One request; its end is noted here, whichever way it comes."""

    app: Simulator

    async def __call__(self, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        """Serve the request; raise Died where a script breaks the connection."""
        sim, path = self.app.sim, self.scope["path"]
        if not path.startswith(control.PREFIX):
            sim.requests[path] += 1
        if self.scope["method"] != "POST" or path not in INFERENCE:
            await self._serve(receive, send)
            return
        headers = [
            (name.decode("latin1"), value.decode("latin1")) for name, value in self.scope["headers"]
        ]
        generation = sim.begin(path, headers)
        self.scope["sim.generation"] = generation  # type: ignore[typeddict-unknown-key]

        async def noted(message: ASGISendEvent) -> None:
            if message["type"] == "http.response.start":
                generation.answer(message["status"])
            await send(message)

        try:
            await self._serve(receive, noted)
        finally:
            sim.finish(generation)

    async def _serve(self, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        script = self.app.sim.choose(self.scope["path"], None, unread=True)
        if script.never_reads:
            await _stall(receive)
            return
        try:
            await super().__call__(receive, send)
        except BaseExceptionGroup as group:
            if group.subgroup(Died) is not None:
                raise Died("the script ends here") from None
            raise


async def _stall(receive: ASGIReceiveCallable) -> None:
    for _ in range(STALLED_MESSAGES):
        if (await receive())["type"] == "http.disconnect":
            return
    await trio.sleep_forever()


Simulator.asgi_http_class = Connection


def create_app(
    models: Iterable[str | Mapping[str, Any] | Model] = DEFAULT_MODELS,
    script: Script | Iterable[Script] | None = None,
    *,
    control_routes: bool = False,
) -> Simulator:
    """Make a simulated Ollama.

    `models` are names, mappings (see `models.make_model`) or Models. Behaviour is set by
    `script` or later by `app.sim.play(...)`, and seen in `app.sim`; with `control_routes`
    both also over HTTP, under /_sim/. Through httpx.ASGITransport a reply arrives only
    when it is complete, and a broken connection is the exception `stream.Died`.
    """
    script = () if script is None else script
    sim = Simulation(models, (script,) if isinstance(script, Script) else script)
    app = Simulator(sim)
    for part in (inference, metadata, management):
        app.register_blueprint(part.blueprint)
    if control_routes:
        app.register_blueprint(control.blueprint)
    app.register_error_handler(wire.Refusal, _refuse)
    app.register_error_handler(inference.Scripted, _obey)
    app.register_error_handler(404, _not_found)
    app.register_error_handler(405, _not_allowed)
    return app


async def _refuse(refusal: wire.Refusal) -> Response:
    generation = request.scope.get("sim.generation")
    if isinstance(generation, Generation):
        generation.outcome = "failed"
    return Response(wire.encode(refusal.body), refusal.status, content_type=wire.JSON)


async def _obey(scripted: inference.Scripted) -> Response:
    return scripted.response


async def _not_found(_error: Exception) -> Response:
    return Response("404 page not found", 404, content_type="text/plain")


async def _not_allowed(_error: Exception) -> Response:
    return Response("405 method not allowed", 405, content_type="text/plain")
