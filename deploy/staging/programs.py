"""Programs as children of the script: started, asked whether they answer, stopped, never left."""

from __future__ import annotations

import os
import signal
import socket
import sys
import sysconfig
import time
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import trio

from trio_gateway.embedded.child import Child

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

START_SECONDS = 60.0
TICK = 0.02
OURS = ("DATABASE_URL", "REDIS_URL", "OLLAMA_BASE_URL")


class ProgramFailed(Exception):
    """Raised when a program does not start, or ends otherwise than asked; one clear sentence."""


def free_port() -> int:
    """Find a port of loopback that nobody listens on, and keep it for a server of ours.

    Under Linux the socket stays bound for as long as this process lives, and never listens: the
    kernel gives the port to nobody else, and a server that sets SO_REUSEADDR may take it.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        if sys.platform == "linux":
            probe.detach()
        return port


def gateway_command() -> str:
    """Return where the installed `trio-gateway` is."""
    return str(Path(sysconfig.get_path("scripts")) / "trio-gateway")


def environment(settings: Mapping[str, str]) -> dict[str, str]:
    """Return our environment with these settings of the gateway, and none of its own."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("TRIO_GATEWAY_")}
    return {k: v for k, v in kept.items() if k.removesuffix("_FILE") not in OURS} | dict(settings)


class Program:
    """A server on a port of loopback, its output in a file."""

    def __init__(
        self, name: str, words: Sequence[str], url: str, log: Path, environ: Mapping[str, str]
    ) -> None:
        """Nothing is started yet; it serves when `url` answers 200."""
        self.name = name
        self.log = log
        self._words = words
        self._url = url
        self._environ = environ
        self._child: Child | None = None

    @property
    def pid(self) -> int:
        """The process id; raises ProgramFailed where it was not started."""
        if self._child is None:
            raise ProgramFailed(f"{self.name} was not started")
        return self._child.pid

    async def start(self) -> float:
        """Start it; return after how many seconds it served. Raises ProgramFailed."""
        began = time.monotonic()
        output = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            self._child = Child(self._words, environ=self._environ, output=output)
        finally:
            os.close(output)
        with trio.move_on_after(START_SECONDS):
            while self._child.exit_code is None:
                if await answers(self._url):
                    return time.monotonic() - began
                await trio.sleep(TICK)
        raise ProgramFailed(f"{self.name} did not start: {self.last_words()}")

    async def stop(self, limit: float) -> float:
        """Ask it to end, and return after how many seconds it did.

        Raises ProgramFailed where that took longer than `limit` seconds or the exit code was
        not 0; it has ended even so.
        """
        child, self._child = self._child, None
        if child is None:
            return 0.0
        began = time.monotonic()
        child.send(signal.SIGTERM)
        with trio.move_on_after(limit):
            code = await child.wait()
            if code == 0:
                return time.monotonic() - began
            raise ProgramFailed(f"{self.name} ended with exit code {code}: {self.last_words()}")
        child.send(signal.SIGKILL)
        with trio.CancelScope(shield=True):
            await child.wait()
        raise ProgramFailed(f"{self.name} had not ended after {limit:.0f} seconds")

    def destroy(self) -> None:
        """End it at once, whatever it does."""
        child, self._child = self._child, None
        if child is not None:
            child.send(signal.SIGTERM)
            if not child.join(5):
                child.send(signal.SIGKILL)
                child.join()

    def last_words(self) -> str:
        """Return the end of its output."""
        return self.log.read_text(encoding="utf-8", errors="replace")[-400:].strip()


async def answers(url: str) -> bool:
    """Whether a GET of the URL is a 200."""
    async with httpx.AsyncClient(timeout=5) as client:
        try:
            return (await client.get(url)).status_code == 200
        except httpx.HTTPError:
            return False
