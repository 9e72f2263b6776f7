"""Rehearse a rolling restart: the topology of deploy/ on this machine's loopback, under load.

    python -m deploy.rehearse [--how rotation|signal|both] [--rounds N] [--callers N]

Embedded PostgreSQL and Redis, a simulated Ollama, two gateways by `trio-gateway serve`, and
nginx with deploy/nginx.conf in front. While callers call, each gateway in turn is restarted:
by `signal` it just gets SIGTERM, by `rotation` nginx is told first to send it nothing new. At
the end every call must have its ledger row and the books must agree.

Under `signal` the callers keep their connections. Under `rotation` they open one for each call,
because an nginx before 1.27.4 that reloads closes kept ones without looking whether a call is
just arriving on them, which no gateway behind it can mend.

Progress goes to stderr, one JSON object to stdout. Exit 0 if no call failed, 1 if one did or
the books differ, 2 on wrong usage or where something is missing. Run it from the top of the
repository, with trio-gateway[embedded] installed and nginx on PATH.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

from deploy.staging.load import Load
from deploy.staging.nginx import Nginx
from deploy.staging.programs import ProgramFailed, free_port
from deploy.staging.site import Gateway, Site, open_site
from trio_gateway.core.causes import first_of
from trio_gateway.embedded.store import StoreFailed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

HOW = ("rotation", "signal")
TOKENS = 20  # of each answer
LIMIT = 600.0  # seconds for all of it
BETWEEN = 8  # calls that must end before anything is done, so that there is a load


@dataclass(frozen=True)
class Roll:
    """One gateway's restart; `calls` ended meanwhile, `faults` counts what was wrong with them."""

    how: str
    gateway: str
    drain_seconds: float
    start_seconds: float
    calls: int
    faults: dict[str, int]


def main(arguments: Sequence[str] | None = None) -> int:
    """Rehearse; return the exit code."""
    summary, *rest = (__doc__ or "").split("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m deploy.rehearse",
        description=summary,
        epilog="\n\n".join(rest[1:]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--how", choices=(*HOW, "both"), default="both")
    parser.add_argument("--rounds", type=_count, default=1, help="restarts of each gateway")
    parser.add_argument("--callers", type=_count, default=12, help="calls at once")
    parser.add_argument("--gap", type=_seconds, default=0.02, help="seconds between two tokens")
    parser.add_argument("--pause", type=_seconds, default=0.05, help="seconds between two calls")
    parser.add_argument("--most", type=_count, default=20_000, help="calls in all, at most")
    options = parser.parse_args(arguments)
    found = None
    try:
        with tempfile.TemporaryDirectory(prefix="rehearsal-") as folder, _site(folder) as site:
            found = trio.run(_rehearse, site, options)
    except* (ProgramFailed, StoreFailed, trio.TooSlowError) as failed:
        sys.stderr.write(f"rehearsal: {str(first_of(failed)) or 'it took too long'}\n")
    if found is None:
        return 2
    sys.stdout.write(json.dumps(found, indent=2) + "\n")
    return 0 if found["ok"] else 1


def _count(text: str) -> int:
    number = int(text)
    if not 1 <= number <= 100_000:
        raise argparse.ArgumentTypeError("must be 1 to 100000")
    return number


def _seconds(text: str) -> float:
    number = float(text)
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError("must be 0 to 1")
    return number


def _site(folder: str) -> Any:
    say("starting PostgreSQL and Redis")
    return open_site(Path(folder) / "site")


def say(text: str) -> None:
    """Tell how far it is."""
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {text}\n")
    sys.stderr.flush()


async def _rehearse(site: Site, options: argparse.Namespace) -> dict[str, Any]:
    nginx = Nginx(site.folder, free_port())
    try:
        with trio.fail_after(LIMIT):
            key = await _prepare(site, {"tokens": TOKENS, "token_gap": options.gap})
            say("starting two gateways and nginx")
            gateways = [await site.gateway(name) for name in ("gateway-1", "gateway-2")]
            nginx.serve([one.server for one in gateways])
            await nginx.start()
            load = Load(f"http://127.0.0.1:{nginx.port}", key, options.callers, options.most)
            load.pause = options.pause
            rolls = await _under_load(load, nginx, gateways, options)
            if load.faults():
                say(f"nginx said last:\n{nginx.last_words(2000)}")
            return await _result(site, load, rolls)
    finally:
        nginx.destroy()


async def _prepare(site: Site, script: Mapping[str, Any]) -> str:
    await site.simulator(script)
    await site.command("migrate")
    limits = ("--requests-per-minute", "1000000", "--tokens-per-minute", "100000000")
    await site.command("tenant", "create", "acme", "--all-models", *limits)
    made = await site.command("key", "create", "--tenant", "acme", "--name", "rehearsal")
    return str(made["key"])


async def _under_load(
    load: Load, nginx: Nginx, gateways: list[Gateway], options: argparse.Namespace
) -> list[Roll]:
    rolls = []
    async with trio.open_nursery() as nursery:
        load.kept = options.how == "signal"
        nursery.start_soon(load.run)
        await load.more(BETWEEN)
        for how in HOW if options.how == "both" else (options.how,):
            load.kept = how == "signal"
            for _ in range(options.rounds):
                rolls += [await _roll(how, one, load, nginx, gateways) for one in gateways]
        load.stop.set()
    return rolls


async def _roll(
    how: str, gateway: Gateway, load: Load, nginx: Nginx, gateways: list[Gateway]
) -> Roll:
    say(f"restarting {gateway.name} by {how}, after {len(load.calls)} calls")
    servers, first = [one.server for one in gateways], len(load.calls)
    if how == "rotation":
        nginx.serve(servers, down=[gateway.server])
        await nginx.reload()
    drained = await gateway.stop()
    await load.more(BETWEEN)
    started = await gateway.program.start()
    if how == "rotation":
        nginx.serve(servers)
        await nginx.reload()
    await load.more(BETWEEN)
    calls = len(load.calls) - first
    return Roll(
        how, gateway.name, round(drained, 2), round(started, 2), calls, load.faults(since=first)
    )


async def _result(site: Site, load: Load, rolls: list[Roll]) -> dict[str, Any]:
    say("comparing the books")
    rows = await site.query("SELECT request_id, outcome FROM gateway.ledger")
    books = await site.command("ledger", "verify")
    whole = {call.request_id for call in load.calls if call.fault is None}
    completed = {row["request_id"] for row in rows if row["outcome"] == "completed"}
    faults = load.faults()
    agree = whole == completed and len(rows) == len(load.calls)
    return {
        "ok": not faults and agree and books["ok"] and not books["holds_open"],
        "calls": len(load.calls),
        "failed": sum(faults.values()),
        "faults": faults,
        "ledger_rows": len(rows),
        "ledger_outcomes": dict(Counter(row["outcome"] for row in rows)),
        "ledger_verify": books,
        "slowest_seconds": round(max(call.seconds for call in load.calls), 2),
        "restarts": [asdict(roll) for roll in rolls],
    }


if __name__ == "__main__":
    sys.exit(main())
