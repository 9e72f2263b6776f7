"""The doctor's examination: everything at once, each check within its time."""

from __future__ import annotations

import os
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

import trio

from trio_gateway import datadir
from trio_gateway.cli.addresses import find
from trio_gateway.cli.check_access import check_access, check_provider
from trio_gateway.cli.check_blobs import check_blobs
from trio_gateway.cli.check_bounds import all_checked, checked
from trio_gateway.cli.check_exposure import check_exposure, own_addresses
from trio_gateway.cli.check_machine import check_disk, check_scratch
from trio_gateway.cli.check_ollama import ask, judge, place_of
from trio_gateway.cli.check_postgres import check_notifications, check_pooler, check_server
from trio_gateway.cli.check_processes import (
    check_files,
    check_listeners,
    pids_here,
    wanted_files,
)
from trio_gateway.cli.check_redis import Memory, check_redis
from trio_gateway.cli.check_schema import (
    check_admins,
    check_keys,
    check_migrations,
    check_partitions,
)
from trio_gateway.cli.check_sentinels import check_sentinels
from trio_gateway.cli.check_settings import check_settings
from trio_gateway.cli.check_workers import check_connections, check_workers
from trio_gateway.cli.door import Failure
from trio_gateway.cli.finding import Finding, Section, fail
from trio_gateway.cli.session import explained, interruptible, place
from trio_gateway.clients.bridge import open_bridge
from trio_gateway.clients.postgres import open_postgres
from trio_gateway.core.errors import StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from trio_gateway.cli.addresses import Addresses
    from trio_gateway.cli.check_http import Answer
    from trio_gateway.cli.check_workers import Report
    from trio_gateway.clients.bridge import Bridge
    from trio_gateway.clients.postgres import Postgres
    from trio_gateway.settings import Settings

    Tell = Callable[[str], None]

WHOLE = 25.0  # seconds for everything
CONNECTIONS = 5  # to PostgreSQL, one for each check of its own
TITLES = (
    "Settings",
    "PostgreSQL",
    "Redis",
    "Workers",
    "Ollama",
    "Admin listener",
    "Files",
    "This machine",
)


def examine(data_dir: Path | None, tell: Tell) -> list[Section]:
    """Return what was found; `tell` hears the title of each part that was looked at."""
    try:
        addresses = find(data_dir)
    except Failure as error:
        advice = "Correct what it names, or start an installation; see --help."
        return [Section("Settings", (fail("settings", str(error), advice),))]
    folder = data_dir or datadir.default_path()
    state = _running(folder, addresses.settings.database_url)
    with interruptible():
        return trio.run(Examination(addresses, folder, state, tell).run)


class Examination:
    """One run; what one part found out is at hand for those that come after it."""

    def __init__(
        self, addresses: Addresses, folder: Path, state: datadir.State | None, tell: Tell
    ) -> None:
        """`state` is that of the installation in `folder`, where this is the one."""
        self._addresses = addresses
        self._given = _as_started(addresses.settings, state)
        self._folder = folder
        self._supervisor = state.pid if state is not None else None
        self._tell = tell
        self._found: dict[str, list[Finding]] = {title: [] for title in TITLES}
        self._memory = Memory(())
        self._connections: int | None = None
        self._answers: dict[str, Answer | None] = {}

    async def run(self) -> list[Section]:
        """Look at everything within its time."""
        with trio.move_on_after(WHOLE) as scope:
            await self._look()
        if scope.cancelled_caught:
            advice = "Look again: what is missing here took too long."
            late = fail("doctor", f"did not end within {WHOLE:g} seconds", advice)
            self._found["Settings"].append(late)
        return [Section(title, tuple(found)) for title, found in self._found.items() if found]

    async def _look(self) -> None:
        self._add("Settings", check_settings(self._given))
        self._add("Admin listener", check_access(self._given))
        async with open_bridge() as bridge, trio.open_nursery() as nursery:
            nursery.start_soon(self._postgres, bridge)
            nursery.start_soon(self._redis)
            nursery.start_soon(self._ollamas)
            nursery.start_soon(self._provider)
        self._judge_ollamas()
        await self._workers()
        self._add("This machine", [check_disk(self._folder), check_scratch()])

    def _add(self, title: str, found: list[Finding]) -> None:
        self._found[title] += found
        self._tell(title)

    async def _postgres(self, bridge: Bridge) -> None:
        url = self._given.database_url
        if not url:
            found = fail("postgres", "DATABASE_URL is not set", "Set it beside REDIS_URL.")
            self._add("PostgreSQL", [found])
            return
        try:
            async with open_postgres(bridge, url, size=CONNECTIONS) as postgres:
                if await self._server(postgres, url):
                    await self._database(bridge, postgres)
        except ValueError as error:
            self._add("PostgreSQL", [_unreached(error, url)])

    async def _server(self, postgres: Postgres, url: str) -> bool:
        """Look at the server; return whether there is one to ask more of."""
        reached = False

        async def look() -> list[Finding]:
            nonlocal reached
            try:
                server = await check_server(postgres, url)
            except (StoreUnavailable, ValueError) as error:
                return [_unreached(error, url)]
            reached, self._connections = True, server.connections
            return [*server.findings]

        self._add("PostgreSQL", await checked("postgres", look, place(url)))
        return reached

    async def _database(self, bridge: Bridge, postgres: Postgres) -> None:
        given = self._given
        listen = given.database_listen_url
        migrated = await checked("migrations", partial(check_migrations, postgres))
        looks = {
            "postgres pooler": partial(check_pooler, bridge, postgres, listen),
            "notifications": partial(
                check_notifications, bridge, postgres, listen or given.database_url
            ),
        }
        if migrated[0].state == "ok":
            others = bool(given.admin_token or (given.oidc_issuer and given.oidc_admins))
            looks |= {
                "keys": partial(check_keys, postgres),
                "partitions": partial(check_partitions, postgres),
                "admins": partial(check_admins, postgres, others=others),
                "blobs": partial(check_blobs, postgres, self._addresses),
            }
        found = await all_checked(looks)
        self._add("Admin listener", found.pop("admins", []))
        self._add("Files", found.pop("blobs", []))
        self._add("PostgreSQL", [*migrated, *_joined(found)])

    async def _redis(self) -> None:
        url = self._given.redis_url
        if not url:
            found = fail("redis", "REDIS_URL is not set", "Set it beside DATABASE_URL.")
            self._add("Redis", [found])
            return

        async def look() -> list[Finding]:
            self._memory = await check_redis(url)
            return [*self._memory.findings]

        watched = await checked("redis sentinels", partial(check_sentinels, url), place(url))
        self._add("Redis", [*watched, *await checked("redis", look, place(url))])

    async def _ollamas(self) -> None:
        own, urls = own_addresses(), self._given.backends

        async def version(url: str) -> None:
            self._answers[url] = await ask(url)

        async with trio.open_nursery() as nursery:
            for url in urls:
                nursery.start_soon(version, url)
            looks = {f"exposure {place_of(url)}": partial(check_exposure, url, own) for url in urls}
            found = await all_checked(looks)
        self._add("Ollama", _joined(found))

    def _judge_ollamas(self) -> None:
        """Say what the answers mean; the running gateway may see what we do not."""
        seen = self._memory.sees_models
        told = [judge(url, self._answers[url], sees_models=seen) for url in self._given.backends]
        self._found["Ollama"][:0] = told

    async def _provider(self) -> None:
        found = await checked("oidc", partial(check_provider, self._given))
        self._add("Admin listener", found)

    async def _workers(self) -> None:
        reports = self._memory.reports
        if reports is not None:
            self._add("Workers", await checked("workers", partial(self._reported, reports)))
        pids = pids_here(reports or (), self._supervisor)
        workers = [pid for pid in pids if pid != self._supervisor]
        found = await checked("public listener", partial(check_listeners, workers))
        self._add("Workers", found)
        self._add("This machine", [check_files(pids, wanted_files(self._given))])

    async def _reported(self, reports: Sequence[Report]) -> list[Finding]:
        found = check_workers(reports)
        if self._connections is not None:
            found.append(check_connections(reports, self._connections))
        return found


def _running(folder: Path, database_url: str) -> datadir.State | None:
    """Return what an installation in the folder says, if it is the one that is looked at."""
    with suppress(datadir.DataDirError):
        state = datadir.state_of(folder)
        return state if state.database_url == database_url else None
    return None


def _as_started(given: Settings, state: datadir.State | None) -> Settings:
    """Look at the Ollama that the installation was started with, unless another is named."""
    names = ("OLLAMA_BASE_URL", "OLLAMA_BASE_URL_FILE")
    if state is None or not state.ollama_url or any(name in os.environ for name in names):
        return given
    return given.model_copy(update={"ollama_base_url": state.ollama_url})


def _joined(found: Mapping[str, list[Finding]]) -> list[Finding]:
    return [each for findings in found.values() for each in findings]


def _unreached(error: Exception, url: str) -> Finding:
    sentence = explained(error, url) or "the address is not a PostgreSQL address"
    return fail("postgres", sentence, "Start PostgreSQL, or correct DATABASE_URL.")
