"""Drill backup and restore: lose a whole site, and have it back from a dump and a folder.

    python -m deploy.drill [--calls N]

A site with embedded PostgreSQL and Redis makes calls and runs a batch. While it runs, pg_dump
writes its database, and then its blob store is copied. The site is stopped and deleted. A new
PostgreSQL gets the dump, a new Redis gets nothing, a new gateway starts on both: its counters
must equal the ledger, old keys must work (and revoked ones must not), files and batches must
be there, and a new batch must run.

Progress goes to stderr, one JSON object to stdout. Exit 0 if everything came back, 1 if not,
2 on wrong usage or where something is missing. Run it from the top of the repository, with
trio-gateway[embedded] installed.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

from deploy.staging.account import BUDGET, Account, State
from deploy.staging.programs import ProgramFailed, environment
from deploy.staging.site import Site, open_site
from trio_gateway.core.causes import first_of
from trio_gateway.embedded.postgres import find_programs
from trio_gateway.embedded.store import StoreFailed

if TYPE_CHECKING:
    from collections.abc import Sequence

LIMIT = 300.0  # seconds for either half
DUMP = "gateway.dump"
COMMAND_SECONDS = 120


@dataclass
class Backup:
    """Where the backup is, and what an honest restore of it must show."""

    folder: Path
    key: str = ""
    revoked: str = ""
    batch: str = ""
    state: State | None = None
    seconds: dict[str, float] = field(default_factory=dict)


def main(arguments: Sequence[str] | None = None) -> int:
    """Drill; return the exit code."""
    summary, *rest = (__doc__ or "").split("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m deploy.drill",
        description=summary,
        epilog="\n\n".join(rest[1:]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--calls", type=_count, default=12, help="calls before the backup")
    options = parser.parse_args(arguments)
    found = None
    try:
        with tempfile.TemporaryDirectory(prefix="drill-") as folder:
            found = _drill(Path(folder), options.calls)
    except* (ProgramFailed, StoreFailed, trio.TooSlowError) as failed:
        sys.stderr.write(f"drill: {str(first_of(failed)) or 'it took too long'}\n")
    if found is None:
        return 2
    sys.stdout.write(json.dumps(found, indent=2) + "\n")
    return 0 if found["ok"] else 1


def _count(text: str) -> int:
    number = int(text)
    if not 1 <= number <= 10_000:
        raise argparse.ArgumentTypeError("must be 1 to 10000")
    return number


def say(text: str) -> None:
    """Tell how far it is."""
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {text}\n")
    sys.stderr.flush()


def _drill(folder: Path, calls: int) -> dict[str, Any]:
    backup = Backup(folder / "backup")
    backup.folder.mkdir(mode=0o700)
    say("starting the first site")
    with open_site(folder / "first") as site:
        trio.run(_before, site, backup, calls)
    shutil.rmtree(folder / "first")
    say("the first site is gone; starting the second")
    with open_site(folder / "second") as site:
        return trio.run(_after, site, backup)


async def _before(site: Site, backup: Backup, calls: int) -> None:
    with trio.fail_after(LIMIT):
        await site.simulator({"tokens": 7})
        await site.command("migrate")
        limits = ("--budget", str(BUDGET), "--budget-period", "month")
        await site.command("tenant", "create", "acme", "--all-models", *limits)
        backup.key = await _new_key(site, "laptop")
        backup.revoked = await _new_key(site, "lost")
        await site.command("key", "revoke", "lost")
        gateway = await site.gateway("gateway-1")
        account = Account(site, f"http://{gateway.server}", backup.key)
        async with account.client:
            say(f"making {calls} calls and running a batch")
            for _ in range(calls):
                await account.call()
            backup.batch, _ = await account.batch("monday")
            backup.state = await account.state()
            await _back_up(site, backup)


async def _new_key(site: Site, name: str) -> str:
    made = await site.command("key", "create", "--tenant", "acme", "--name", name)
    return str(made["key"])


async def _back_up(site: Site, backup: Backup) -> None:
    """Dump PostgreSQL first: every file that it knows is then in the later copy of the blobs."""
    say("dumping PostgreSQL, then copying the blob store, while the gateway serves")
    began = time.monotonic()
    dump = ("--format=custom", f"--file={backup.folder / DUMP}", site.settings["DATABASE_URL"])
    await _postgres("pg_dump", *dump)
    await trio.to_thread.run_sync(shutil.copytree, site.blobs, backup.folder / "blobs")
    backup.seconds["back_up"] = round(time.monotonic() - began, 2)


async def _after(site: Site, backup: Backup) -> dict[str, Any]:
    with trio.fail_after(LIMIT):
        began = time.monotonic()
        say("restoring PostgreSQL and the blob store; Redis stays empty")
        to = ("--exit-on-error", "--no-owner", f"--dbname={site.settings['DATABASE_URL']}")
        await _postgres("pg_restore", *to, str(backup.folder / DUMP))
        await trio.to_thread.run_sync(shutil.copytree, backup.folder / "blobs", site.blobs)
        backup.seconds["restore"] = round(time.monotonic() - began, 2)
        await site.simulator({"tokens": 7})
        gateway = await site.gateway("gateway-1")
        account = Account(site, f"http://{gateway.server}", backup.key)
        async with account.client:
            first = await account.call()
            backup.seconds["first_answer"] = round(time.monotonic() - began, 2)
            return await _compare(site, backup, account, first.status_code)


async def _compare(site: Site, backup: Backup, account: Account, first: int) -> dict[str, Any]:
    say("comparing")
    before, books = backup.state, await site.command("ledger", "verify")
    after = await account.state()
    if before is None:
        raise ProgramFailed("the first site told nothing")
    revoked = Account(site, str(account.client.base_url), backup.revoked)
    async with revoked.client:
        refused = (await revoked.call()).status_code
    file_id = before.batches[backup.batch]["input_file_id"]
    replay = await account.create("monday", file_id)
    fresh, _ = await account.batch("tuesday")
    ended = (await account.state()).batches[fresh]["request_counts"]
    checks = {
        "ledger_verify": books["ok"] and not books["holds_open"],
        # the one call of `state`, and the first one here, came on top
        "ledger_rows": after.ledger_rows == before.ledger_rows + 2,
        "counters_equal_the_ledger_before": before.spent_tokens == before.charged_tokens,
        "counters_equal_the_ledger_after": after.spent_tokens == after.charged_tokens,
        "old_key_works": first == 200,
        "revoked_key_is_refused": refused == 401,
        "files": after.files == before.files != {},
        "batches": after.batches == before.batches != {},
        "idempotency_key_finds_its_batch": replay["replayed"] and replay["id"] == backup.batch,
        "a_new_batch_runs": ended == {"total": 6, "completed": 6, "failed": 0},
    }
    return {
        "ok": all(checks.values()),
        "checks": checks,
        "seconds": backup.seconds,
        "ledger_verify": books,
        "before": _told(before),
        "after": _told(after),
    }


def _told(state: State) -> dict[str, int]:
    return {
        "ledger_rows": state.ledger_rows,
        "charged_tokens": state.charged_tokens,
        "spent_tokens": state.spent_tokens,
        "files": len(state.files),
        "batches": len(state.batches),
    }


async def _postgres(program: str, *words: str) -> None:
    """Run one of PostgreSQL's own programs; raises ProgramFailed."""
    command = [str(find_programs() / program), *words]
    try:
        with trio.fail_after(COMMAND_SECONDS):
            await trio.run_process(
                command, env=environment({}), capture_stdout=True, capture_stderr=True
            )
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace").strip()
        raise ProgramFailed(f"{program} failed: {said[-300:]}") from error


if __name__ == "__main__":
    sys.exit(main())
