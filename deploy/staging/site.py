"""A site on loopback: stores, a simulated Ollama, and gateways by `trio-gateway serve`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import trio

from deploy.staging.programs import (
    Program,
    ProgramFailed,
    environment,
    free_port,
    gateway_command,
)
from trio_gateway.clients.postgres import run_once
from trio_gateway.embedded import stores

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from trio_gateway.embedded.stores import Stores

DRAIN_SECONDS = 15
# settling, and closing what is open, after the last call
MARGIN_SECONDS = 20


@dataclass(frozen=True)
class Gateway:
    """One gateway, and where callers reach it."""

    name: str
    server: str
    program: Program

    async def stop(self) -> float:
        """Let it drain; return the seconds that took."""
        return await self.program.stop(DRAIN_SECONDS + MARGIN_SECONDS)


@dataclass
class Site:
    """Running stores and what was started on them."""

    folder: Path
    stores: Stores
    settings: dict[str, str]
    programs: list[Program] = field(default_factory=list)

    @property
    def blobs(self) -> Path:
        """The folder that holds files and the answers of batches."""
        return self.folder / "blobs"

    async def simulator(self, script: Mapping[str, Any]) -> None:
        """Start a simulated Ollama that answers as the script says."""
        bind = f"127.0.0.1:{free_port()}"
        words = [sys.executable, "-P", "-m", "trio_gateway.simulator", "--bind", bind]
        words += ["--script", json.dumps([dict(script)])]
        url = f"http://{bind}"
        await self._start("simulated Ollama", words, url)
        self.settings["OLLAMA_BASE_URL"] = url

    async def gateway(self, name: str) -> Gateway:
        """Start a gateway on a port of its own."""
        server = f"127.0.0.1:{free_port()}"
        words = [gateway_command(), "serve", "--bind", server, "--admin-bind", "127.0.0.1:0"]
        url = f"http://{server}"
        program = await self._start(name, words, f"{url}/readyz")
        return Gateway(name, server, program)

    async def command(self, *words: str) -> Any:
        """Run the command line on this site; return its JSON. Raises ProgramFailed."""
        done = await trio.run_process(
            [gateway_command(), *words, "--json"],
            env=environment(self.settings),
            check=False,
            capture_stdout=True,
            capture_stderr=True,
        )
        if done.returncode != 0 and not done.stdout:
            said = done.stderr.decode(errors="replace").strip()
            raise ProgramFailed(f"`trio-gateway {' '.join(words)}` failed: {said}")
        return json.loads(done.stdout) if done.stdout else None

    async def query(self, text: str, *values: Any) -> list[Any]:
        """Ask the database; return its rows."""

        def ask() -> list[Any]:
            return list(asyncio.run(run_once(self.settings["DATABASE_URL"], text, *values)))

        return await trio.to_thread.run_sync(ask)

    async def _start(self, name: str, words: list[str], ready: str) -> Program:
        log = self.folder / f"{name.replace(' ', '-')}.log"
        program = Program(name, words, ready, log, environment(self.settings))
        self.programs.append(program)
        await program.start()
        return program


@contextlib.contextmanager
def open_site(folder: Path) -> Iterator[Site]:
    """Run the stores of a folder until the block ends; whatever was started on them ends first.

    Call it from the main thread, outside of Trio: the stores die with the thread.
    """
    folder.mkdir(mode=0o700, exist_ok=True)
    with stores.start(folder / "data") as running:
        settings = {
            "DATABASE_URL": running.database_url,
            "REDIS_URL": running.redis_url,
            "TRIO_GATEWAY_BLOB_URL": (folder / "blobs").as_uri(),
            "TRIO_GATEWAY_DRAIN_TIMEOUT": str(DRAIN_SECONDS),
            "TRIO_GATEWAY_TRUSTED_PROXIES": "127.0.0.1",
        }
        site = Site(folder, running, settings)
        try:
            yield site
        finally:
            for program in reversed(site.programs):
                program.destroy()
