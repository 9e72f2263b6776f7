"""The doctor's look at the sentinels: they answer, agree, and could replace the primary."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trio_gateway.cli.finding import Finding, fail, ok, warn
from trio_gateway.clients.sentinel import newest, survey
from trio_gateway.clients.sentinel_address import is_sentinel, parse

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trio_gateway.clients.sentinel import Report

ENOUGH = 3  # sentinels, so that most are left when one is lost


async def check_sentinels(url: str) -> list[Finding]:
    """Ask each sentinel of the address; none where it names a server itself."""
    if not is_sentinel(url):
        return []
    try:
        sentinels = parse(url)
    except ValueError as error:
        return [fail("redis sentinels", f"REDIS_URL {error}", "Correct REDIS_URL.")]
    reports = await survey(sentinels)
    answered = [report for report in reports if report.primary is not None]
    if not answered:
        detail = f"none of {len(reports)} names a primary: {_troubles(reports)}"
        return [fail("redis sentinels", detail, "Start the sentinels, or correct REDIS_URL.")]
    return [_sentinels(reports, answered), _replicas(answered)]


def _sentinels(reports: Sequence[Report], answered: Sequence[Report]) -> Finding:
    check = "redis sentinels"
    primaries = {report.primary for report in answered if report.primary is not None}
    known = max(report.known for report in answered)
    if len(primaries) > 1:
        places = ", ".join(sorted({str(primary.place) for primary in primaries}))
        advice = "Wait until a failover is over; if it lasts, look at the network between them."
        return warn(check, f"they do not agree on the primary or its epoch: {places}", advice)
    if len(answered) < len(reports):
        detail = f"{len(answered)} of {len(reports)} answer; {_troubles(reports)}"
        return warn(check, detail, "Start them, or take them out of REDIS_URL.")
    if not all(report.quorum for report in answered):
        advice = "Start more of them: should the primary fail, nothing takes its place."
        return warn(check, "too few see each other for a failover (SENTINEL CKQUORUM)", advice)
    if known < ENOUGH:
        advice = "Run three or more, on machines that do not fail together."
        return warn(check, f"{known} in all: none may be lost", advice)
    primary = newest(answered)[0].place
    return ok(check, f"{len(answered)} of {len(reports)} name {primary} the primary, with a quorum")


def _replicas(answered: Sequence[Report]) -> Finding:
    count = min(report.replicas for report in answered)
    if count:
        return ok("redis replicas", f"{count} up")
    advice = "Start a replica: should the primary fail, nothing takes its place."
    return warn("redis replicas", "none is up", advice)


def _troubles(reports: Sequence[Report]) -> str:
    return ", ".join(f"{report.place} {report.trouble}" for report in reports if report.trouble)
