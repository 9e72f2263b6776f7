"""The doctor's look at the workers, by what each reports once a second."""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trio_gateway import __version__
from trio_gateway.cli.finding import Finding, ahead, clock, fail, ok, warn
from trio_gateway.services.workers import GONE_AFTER, INDEX, PREFIX

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trio_gateway.clients.redis import Redis

# Connections to PostgreSQL: a worker's pool and its listener, and the admin listener's pool.
WORKER_CONNECTIONS = 9
ADMIN_CONNECTIONS = 6
TIGHT = 0.8  # of the connections there are
LEAVING = ["shutting down"]


@dataclass(frozen=True)
class Report:
    """One worker's report, see `web.gateway`, and how far its clock is ahead of ours, in s."""

    fields: dict[str, Any]
    skew: float

    @property
    def host(self) -> str:
        """The machine's name."""
        return str(self.fields["host"])

    @property
    def name(self) -> str:
        """What an operator finds it by."""
        return f"{self.fields['slot'] or 'worker'} ({self.fields['pid']}) on {self.host}"


async def read_reports(redis: Redis) -> list[Report]:
    """Return what the workers that are alive report. Raises StoreUnavailable."""
    reports = []
    for name in await redis.command("ZRANGE", INDEX, 0, -1):
        key = PREFIX + name.decode()
        before = time.time()
        # as one: between the two there may come the next report
        for command in (("MULTI",), ("GET", key), ("PTTL", key)):
            redis.send(*command)
        text, left = await redis.command("EXEC")
        if text is not None and left > 0:
            fields = json.loads(text)
            # written when it had all of its life before it
            theirs = fields["reported_at"] + GONE_AFTER - left / 1000
            reports.append(Report(fields, ahead(theirs, before, time.time())))
    return reports


def check_workers(reports: Sequence[Report]) -> list[Finding]:
    """Judge how many there are, whether they are alike, able to admit, and right in time."""
    if not reports:
        advice = "Start `trio-gateway serve`, or look why it does not run."
        return [warn("workers", "none reports", advice)]
    hosts = Counter(report.host for report in reports)
    spread = ", ".join(f"{count} on {host}" for host, count in sorted(hosts.items()))
    found = [ok("workers", f"{len(reports)}: {spread}"), _versions(reports)]
    found += [_missing(report) for report in reports if report.fields["missing"]]
    worst = max(_clocks(reports), key=lambda report: abs(report.skew))
    if abs(worst.skew) >= 1:
        found.append(clock(f"clock of {worst.host}", worst.skew))
    else:
        found.append(ok("worker clocks", "agree with this machine's"))
    return [*found, *_backends(reports)]


def _clocks(reports: Sequence[Report]) -> list[Report]:
    """Return of each machine the report that tells its clock best: others were held up."""
    nearest = sorted(reports, key=lambda report: abs(report.skew), reverse=True)
    return list({report.host: report for report in nearest}.values())


def check_connections(reports: Sequence[Report], limit: int) -> Finding:
    """Compare what the workers may open with the connections that PostgreSQL gives."""
    workers, hosts = max(1, len(reports)), max(1, len({report.host for report in reports}))
    wanted = workers * WORKER_CONNECTIONS + hosts * ADMIN_CONNECTIONS
    detail = f"{workers} workers open up to {wanted} of the {limit} there may be"
    if wanted <= TIGHT * limit:
        return ok("postgres connections", detail)
    advice = "Raise max_connections, run fewer workers, or put a pooler in front."
    judged = fail if wanted > limit else warn
    return judged("postgres connections", detail, advice)


def _versions(reports: Sequence[Report]) -> Finding:
    versions = sorted({str(report.fields["version"]) for report in reports})
    if versions == [__version__]:
        return ok("worker versions", f"all run {__version__}, as this command")
    if len(versions) == 1:
        detail = f"the workers run {versions[0]}, this command is of {__version__}"
        return warn("worker versions", detail, "Restart the workers to end the upgrade.")
    detail = f"{' and '.join(versions)} run side by side"
    advice = "End the upgrade: restart the machines that still run the older one."
    return warn("worker versions", detail, advice)


def _missing(report: Report) -> Finding:
    missing = [str(each) for each in report.fields["missing"]]
    if missing == LEAVING:
        return warn("worker leaves", report.name, "Wait: it lets its calls end.")
    detail = f"{report.name} is not ready, for want of {', '.join(missing)}"
    return fail("worker unready", detail, "Look whether that machine reaches the stores.")


def _backends(reports: Sequence[Report]) -> list[Finding]:
    """Tell which backends some workers cannot use."""
    bad: Counter[str] = Counter()
    for report in reports:
        bad.update(each["host"] for each in report.fields["backends"] if not each["healthy"])
    return [
        warn(
            "worker backends",
            f"{host} does not answer {count} of {len(reports)} workers",
            "Look at that Ollama, and at the network between them.",
        )
        for host, count in sorted(bad.items())
    ]
