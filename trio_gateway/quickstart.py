"""The two ways to start: `quickstart` with everything of its own, `serve` for production."""

from __future__ import annotations

import os
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from trio_gateway import datadir, listening, ollama_probe, settings
from trio_gateway.embedded import stores
from trio_gateway.embedded.store import Store, StoreFailed
from trio_gateway.installation import Hooks, Installation
from trio_gateway.keeping import StartFailed, say
from trio_gateway.kept import KeptCompanion
from trio_gateway.supervisor import run_supervised

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator

FORESEEN = (
    datadir.DataDirError,
    listening.BindFailed,
    ollama_probe.OllamaAbsent,
    StoreFailed,
    StartFailed,
    settings.BadSettings,
)


ADMIN_BIND = "127.0.0.1:8081"


class AdminRefused(listening.BindFailed):
    """Raised when the admin listener would be open to other machines without leave."""


@dataclass(frozen=True, kw_only=True)
class QuickstartOptions:
    """The command line of `quickstart`."""

    bind: str = "127.0.0.1:8080"
    admin_bind: str | None = None  # ADMIN_BIND
    ollama_url: str | None = None
    simulate: bool = False
    data_dir: Path = field(default_factory=datadir.default_path)
    workers: int = 1
    json: bool = False


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """The command line of `serve`; without a data directory the stores come from the settings.

    Without `admin_bind` calls are served also where ADMIN_BIND is taken, as by a `serve` beside
    this one: then that one has the admin listener.
    """

    bind: str = "127.0.0.1:8080"
    admin_bind: str | None = None
    data_dir: Path | None = None
    workers: int = 1
    json: bool = False


def run(options: QuickstartOptions, hooks: Hooks) -> int:
    """Run `quickstart` until it is told to stop; return the exit code."""
    return _explained(partial(_quickstart, options, hooks))


def serve_installation(options: ServeOptions, hooks: Hooks) -> int:
    """Run `serve` until it is told to stop; return the exit code."""
    return _explained(partial(_serve, options, hooks))


def _quickstart(options: QuickstartOptions, hooks: Hooks) -> None:
    given = settings.load()
    if options.ollama_url:
        given = settings.load(ollama_base_url=options.ollama_url)
    if not options.simulate:
        ollama_probe.require(given.backends)
    folder = datadir.DataDir(options.data_dir)
    with ExitStack() as stack:
        if folder.path.exists():
            # of two reasons to refuse, "in use" says more than "the port is taken"
            stack.enter_context(folder)
        public, admin = _listen(stack, options, hooks, given)
        if not folder.is_open:
            stack.enter_context(folder)
        companions = []
        if options.simulate:
            simulator, url = _simulator(stack)
            companions.append(simulator)
            given = given.model_copy(update={"ollama_base_url": url})
        both = stores.of(folder)
        own: list[Store] = [] if given.redis_url else [both.redis]
        own += [] if given.database_url else [both.postgres]
        given = given.model_copy(
            update={
                "database_url": given.database_url or both.database_url,
                "redis_url": given.redis_url or both.redis_url,
                "blob_url": given.blob_url or datadir.blobs_of(folder.path),
            }
        )
        installation = Installation(given, hooks, public, admin, as_json=options.json)
        installation.folder = folder
        plan = installation.plan(options.workers, _metrics(stack))
        plan = replace(plan, stores=own, companions=companions, prepare=installation.prepare)
        trio.run(run_supervised, plan)


def _serve(options: ServeOptions, hooks: Hooks) -> None:
    given = settings.load()
    if not (given.database_url and given.redis_url):
        if options.data_dir is None and (given.database_url or given.redis_url):
            # the other store would be that of another installation
            raise settings.BadSettings(["set both DATABASE_URL and REDIS_URL, or use --data-dir"])
        given = _joined(given, options.data_dir or datadir.default_path())
    if not given.blob_url:
        given = given.model_copy(update={"blob_url": _local_blobs(options.data_dir)})
    with ExitStack() as stack:
        public, admin = _listen(stack, options, hooks, given)
        installation = Installation(given, hooks, public, admin, as_json=options.json)
        trio.run(run_supervised, installation.plan(options.workers, _metrics(stack)))


def _metrics(stack: ExitStack) -> Path:
    """Make the folder where processes keep their counters; it goes with the installation."""
    return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="trio-gateway-metrics-")))


def _joined(given: settings.Settings, path: Path) -> settings.Settings:
    """Take the stores, and Ollama where none was named, from the installation on `path`."""
    state = datadir.state_of(path)
    found = {"database_url": state.database_url, "redis_url": state.redis_url}
    named = {"OLLAMA_BASE_URL", "OLLAMA_BASE_URL_FILE"} & os.environ.keys()
    if state.ollama_url and not named:
        found["ollama_base_url"] = state.ollama_url
    if not given.blob_url:
        found["blob_url"] = state.blob_url
    return given.model_copy(update=found)


def _local_blobs(data_dir: Path | None) -> str:
    """Keep files beside the installation that was named, or where nobody else would look."""
    if data_dir is None:
        reason = "TRIO_GATEWAY_BLOB_URL is not set: files stay on this machine alone"
        say("blobs_local", reason=reason)
    return datadir.blobs_of(data_dir or datadir.default_path())


def _listen(
    stack: ExitStack,
    options: QuickstartOptions | ServeOptions,
    hooks: Hooks,
    given: settings.Settings,
) -> tuple[list[socket.socket], list[socket.socket]]:
    admin_bind = options.admin_bind or ADMIN_BIND
    if not given.admin_allow_remote and not listening.is_loopback(admin_bind):
        raise AdminRefused(
            f"the admin listener would be open to other machines on {admin_bind}: "
            "set TRIO_GATEWAY_ADMIN_ALLOW_REMOTE=true if that is meant"
        )
    public = listening.listen(options.bind)
    stack.callback(listening.close, public)
    admin: list[socket.socket] = []
    try:
        admin = listening.listen(admin_bind) if hooks.admin is not None else []
    except listening.PortInUse as error:
        if options.admin_bind is not None or isinstance(options, QuickstartOptions):
            raise
        say("admin_off", reason=f"{error}, by --admin-bind")
    stack.callback(listening.close, admin)
    return public, admin


def _simulator(stack: ExitStack) -> tuple[KeptCompanion, str]:
    sockets = listening.listen("127.0.0.1:0")
    stack.callback(listening.close, sockets)
    url = listening.url(sockets)
    descriptor = sockets[0].fileno()
    command = [sys.executable, "-P", "-m", "trio_gateway.simulator", "--bind"]
    return KeptCompanion(
        "simulated Ollama",
        [*command, f"fd://{descriptor}"],
        [descriptor],
        partial(ollama_probe.answers, url),
    ), url


def _explained(work: Callable[[], None]) -> int:
    """Turn what can go wrong for an operator into one line on stderr and exit code 1."""
    try:
        work()
    except Exception as error:
        leaves = list(_leaves(error))
        if not all(isinstance(leaf, FORESEEN) for leaf in leaves):
            raise
        first = leaves[0]
        lines = first.problems if isinstance(first, settings.BadSettings) else [str(first)]
        for line in lines:
            sys.stderr.write(f"trio-gateway: {line}\n")
        return 1
    return 0


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error
