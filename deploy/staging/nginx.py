"""nginx with the shipped configuration: nothing is changed but ports, paths and servers."""

from __future__ import annotations

import os
import re
import shutil
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from deploy.staging.programs import TICK, ProgramFailed
from trio_gateway.embedded.child import Child

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

SHIPPED = Path(__file__).parents[1] / "nginx.conf"
START_SECONDS = 60.0
STOP_SECONDS = 10.0
LAST_CALL_SECONDS = 60.0

# What a distribution's nginx.conf puts around a file in conf.d.
AROUND = """
{user}
daemon off;
worker_processes 2;
pid {folder}/pid;
error_log {folder}/error.log warn;
events {{ worker_connections 512; }}
http {{
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    include {folder}/site.conf;
}}
"""


def find() -> str | None:
    """Find nginx, which distributions keep where only root looks."""
    return shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")


def adapted(folder: Path, port: int, servers: Sequence[str]) -> str:
    """Return the shipped text for a port of loopback; raises ProgramFailed where it has changed.

    A server is `HOST:PORT`, with any of nginx's own words behind it.
    """
    text = SHIPPED.read_text(encoding="utf-8")
    lines = "\n".join(
        f"    server {server}{'' if ' ' in server else ' max_fails=0'};" for server in servers
    )
    for pattern, replacement in (
        (r"    server 127\.0\.0\.1:8080 max_fails=0;", lines),
        (r"    listen 80; #plain", f"    listen 127.0.0.1:{port}; #plain"),
        (r"    #tls listen 443 ", f"    #tls listen 127.0.0.1:{port} "),
        (r"/var/log/nginx/trio-gateway\.log", f"{folder}/access.log"),
    ):
        text, found = re.subn(pattern, replacement, text)
        if found != 1:
            raise ProgramFailed(f"deploy/nginx.conf has {found} lines like `{pattern}`, not one")
    return text


def with_tls(text: str, certificate: Path, key: Path) -> str:
    """Switch TLS on, as the head of the file says, with these files."""
    text = re.sub(r"^( *)#tls ", r"\1", text, flags=re.MULTILINE)
    text = re.sub(r"^.*#plain\n", "", text, flags=re.MULTILINE)
    text = re.sub(r"ssl_certificate  .*;", f"ssl_certificate {certificate};", text)
    return re.sub(r"ssl_certificate_key .*;", f"ssl_certificate_key {key};", text)


class Nginx:
    """A running nginx; `write` and `reload` change what it does."""

    def __init__(self, folder: Path, port: int) -> None:
        """Nothing is started yet; all of its files are in the folder."""
        self.folder = folder
        self.port = port
        self._child: Child | None = None

    @property
    def words(self) -> list[str]:
        """The command line; raises ProgramFailed where there is no nginx."""
        program = find()
        if program is None:
            raise ProgramFailed("nginx is not on PATH: install it, nginx-light will do")
        error_log = f"{self.folder}/error.log"
        return [program, "-p", str(self.folder), "-e", error_log, "-c", f"{self.folder}/nginx.conf"]

    def write(self, site: str) -> None:
        """Write the configuration, to be read at the next start or reload."""
        user = "user root;" if os.geteuid() == 0 else ""
        around = AROUND.format(folder=self.folder, user=user)
        (self.folder / "nginx.conf").write_text(around, encoding="utf-8")
        (self.folder / "site.conf").write_text(site, encoding="utf-8")

    def serve(self, servers: Sequence[str], down: Collection[str] = ()) -> None:
        """Write the configuration for these servers, some of them out of rotation."""
        named = [f"{server} max_fails=0 down" if server in down else server for server in servers]
        self.write(adapted(self.folder, self.port, named))

    async def start(self) -> None:
        """Start it and return when it takes connections; raises ProgramFailed."""
        self._child = Child(self.words, environ=dict(os.environ))
        with trio.move_on_after(START_SECONDS):
            while self._child.exit_code is None:
                try:
                    async with await trio.open_tcp_stream("127.0.0.1", self.port):
                        return
                except OSError:
                    await trio.sleep(TICK)
        raise ProgramFailed(f"nginx did not start: {self.last_words()}")

    async def reload(self) -> None:
        """Read the configuration again; return when nobody goes by the old one any more.

        Workers with the old one take no more connections and end with their last call; one that
        has a connection whose request is still to come would send it where it used to. Raises
        ProgramFailed where they have not ended after the time that calls are given to.
        """
        if self._child is None:
            raise ProgramFailed("nginx was not started")
        before = self._workers()
        self._child.send(signal.SIGHUP)
        with trio.move_on_after(LAST_CALL_SECONDS):
            while True:
                now = self._workers()
                if now and not now & before:
                    return
                await trio.sleep(TICK)
        raise ProgramFailed(f"nginx did not reload: {self.last_words()}")

    async def stop(self) -> None:
        """End it, and what it still serves."""
        child, self._child = self._child, None
        if child is not None:
            child.send(signal.SIGTERM)
            with trio.move_on_after(STOP_SECONDS):
                await child.wait()
            child.send(signal.SIGKILL)

    def destroy(self) -> None:
        """End it from plain code."""
        child, self._child = self._child, None
        if child is not None:
            child.send(signal.SIGTERM)
            if not child.join(STOP_SECONDS):
                child.send(signal.SIGKILL)
                child.join()

    def last_words(self, characters: int = 400) -> str:
        """Return the end of its error log."""
        log = self.folder / "error.log"
        return log.read_text(encoding="utf-8")[-characters:].strip() if log.exists() else ""

    def _workers(self) -> set[int]:
        pid = self._child.pid if self._child is not None else 0
        children = Path(f"/proc/{pid}/task/{pid}/children")
        return {int(word) for word in children.read_text(encoding="ascii").split()}
