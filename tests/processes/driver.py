"""Runs an installation with a tiny application, as the command line does with the real one."""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

import asyncpg

from trio_gateway.installation import Hooks
from trio_gateway.quickstart import QuickstartOptions, ServeOptions, run, serve_installation


def upgrade(database_url):
    async def go():
        connection = await asyncpg.connect(database_url)
        await connection.execute("create table if not exists tenants (name text primary key)")
        await connection.close()

    asyncio.run(go())


def first_key(database_url):
    async def go():
        connection = await asyncpg.connect(database_url)
        found = await connection.fetchval(
            "insert into tenants values ('default') on conflict do nothing returning name"
        )
        await connection.close()
        return ("default", "sk-tg-first" if found else None)

    return asyncio.run(go())


def first_admin(database_url, digest):
    async def go():
        connection = await asyncpg.connect(database_url)
        await connection.execute("create table if not exists admins (digest text primary key)")
        known = await connection.fetchval("select count(*) from admins")
        if not known:
            await connection.execute("insert into admins values ($1)", digest or "made")
        await connection.close()
        return None if known or digest else "tga-first"

    return asyncio.run(go())


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("command")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--bind", default="127.0.0.1:0")
    parser.add_argument("--admin-bind", default="127.0.0.1:0", type=lambda text: text or None)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--simulate", action="store_true")
    parser.add_argument("--text", action="store_true")
    given = vars(parser.parse_args())
    command, as_json = given.pop("command"), not given.pop("text")
    hooks = Hooks(
        upgrade=upgrade,
        first_key=first_key,
        first_admin=first_admin,
        admin="tests.processes.tiny_admin:app",
        application="tests.processes.tiny_app",
    )
    if command == "serve":
        given.pop("simulate")
        return serve_installation(ServeOptions(**given, json=as_json), hooks)
    return run(QuickstartOptions(**given, json=as_json), hooks)


if __name__ == "__main__":
    sys.exit(main())
