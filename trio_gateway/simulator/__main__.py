"""`python -m trio_gateway.simulator`: the simulated Ollama as a process of its own."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from functools import partial

import orjson
import trio

from trio_gateway.simulator.app import Simulator, create_app
from trio_gateway.simulator.models import DEFAULT_MODELS
from trio_gateway.simulator.script import parse_scripts
from trio_gateway.simulator.server import serve


def main() -> None:
    """Serve until SIGTERM or SIGINT; prints one line of JSON with the URL when ready."""
    parser = argparse.ArgumentParser(prog="python -m trio_gateway.simulator")
    parser.add_argument("--bind", default="127.0.0.1:0", help="host:port or fd://N")
    parser.add_argument("--models", default=",".join(DEFAULT_MODELS), help="names with commas")
    parser.add_argument("--control", action="store_true", help="open the routes under /_sim/")
    parser.add_argument("--script", default="null", help="JSON, as for POST /_sim/script")
    options = parser.parse_args()
    names = [name.strip() for name in options.models.split(",") if name.strip()]
    try:
        scripts = parse_scripts(orjson.loads(options.script))
    except (ValueError, TypeError) as error:
        parser.error(f"--script: {error}")
    app = create_app(names, scripts, control_routes=options.control)
    trio.run(_run, app, options.bind)


async def _run(app: Simulator, bind: str) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:

        async def stopped() -> None:
            async for _ in signals:
                return

        async with trio.open_nursery() as nursery:
            url = await nursery.start(partial(serve, app, bind, shutdown_trigger=stopped))
            ready = {"url": url, "pid": os.getpid()}
            sys.stdout.write(orjson.dumps(ready).decode() + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
