"""Redis Sentinel: which server is the primary, by the newest word of those that watch it.

All sentinels are asked at the same time. One that was cut off from the others may name a
primary that they have replaced, so the word of the highest epoch counts: each failover has a
higher one than all before it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import trio

from trio_gateway.clients.resp import ConnectionLost, converse, login, open_stream, refusal
from trio_gateway.clients.sentinel_address import Place

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trio_gateway.clients.sentinel_address import Sentinels

ASK_LIMIT = 1.0  # seconds for the sentinels to answer
SILENT = "does not answer"
UNKNOWN = "knows no primary of that name"
MALFORMED = (ValueError, LookupError, TypeError, AttributeError)  # of an answer's shape


@dataclass(frozen=True, slots=True)
class Primary:
    """The server that takes writes, since the failover of that epoch; 0 before the first."""

    place: Place
    epoch: int


@dataclass(frozen=True, slots=True)
class Report:
    """What one sentinel said; either it named a primary, or `trouble` says why not."""

    place: Place
    trouble: str = ""
    primary: Primary | None = None
    known: int = 0  # sentinels that watch it, this one included
    replicas: int = 0  # of the primary, and up
    quorum: bool = False  # enough sentinels are there for a failover


async def find(sentinels: Sentinels) -> Primary:
    """Return the primary by the newest word; raises ConnectionLost where nobody names one."""
    reports = await survey(sentinels, most=True)
    if primaries := newest(reports):
        return primaries[0]
    troubles = [report.trouble for report in reports if report.trouble != SILENT]
    if UNKNOWN in troubles:
        raise ConnectionLost("no sentinel knows a primary of that name")
    raise ConnectionLost(f"a sentinel {troubles[0]}" if troubles else "no sentinel answers")


async def replaced(sentinels: Sentinels, primary: Primary) -> bool:
    """Whether most sentinels answer, and the newest word is of another primary or epoch."""
    reports = await survey(sentinels, most=True)
    named = sum(report.primary is not None for report in reports)
    return 2 * named > len(reports) and primary not in newest(reports)


async def survey(sentinels: Sentinels, *, most: bool = False) -> list[Report]:
    """Ask every sentinel; one report each, in their order.

    With `most` the others are not waited for once most have named a primary.
    """
    reports = {place: Report(place, SILENT) for place in sentinels.places}

    async def ask(place: Place) -> None:
        reports[place] = await _report(sentinels, place)
        named = sum(report.primary is not None for report in reports.values())
        if most and 2 * named > len(reports):
            nursery.cancel_scope.cancel()

    with trio.move_on_after(ASK_LIMIT):
        async with trio.open_nursery() as nursery:
            for place in sentinels.places:
                nursery.start_soon(ask, place)
    return list(reports.values())


def newest(reports: Sequence[Report]) -> list[Primary]:
    """Return the primaries of the highest epoch that was heard; all are the same but in a fault."""
    primaries = [report.primary for report in reports if report.primary is not None]
    highest = max((primary.epoch for primary in primaries), default=0)
    return [primary for primary in primaries if primary.epoch == highest]


async def _report(sentinels: Sentinels, place: Place) -> Report:
    name = sentinels.name
    commands = [
        *login(None, sentinels.sentinel_password),
        ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", name),
        ("SENTINEL", "MASTER", name),
        ("SENTINEL", "REPLICAS", name),
        ("SENTINEL", "CKQUORUM", name),
    ]
    try:
        stream = await open_stream(place.host, place.port, tls=sentinels.tls)
        try:
            answers = await converse(stream, commands)
        finally:
            await trio.aclose_forcefully(stream)
        return _read_report(place, answers)
    except MALFORMED:
        return Report(place, "is no sentinel")
    except (OSError, trio.BrokenResourceError, ConnectionLost):
        return Report(place, SILENT)


def _read_report(place: Place, answers: Sequence[Any]) -> Report:
    *logins, address, master, replicas, quorum = answers
    if code := next(filter(None, map(refusal, logins)), ""):
        return Report(place, f"refuses the sentinel_password: {code}")
    if address is None:
        return Report(place, UNKNOWN)
    if code := refusal(address) or refusal(master):
        return Report(place, "is no sentinel" if code == "ERR" else f"refuses: {code}")
    fields = _fields(master)
    listed = [] if refusal(replicas) else [_fields(each)["flags"] for each in replicas]
    return Report(
        place,
        primary=Primary(Place(address[0].decode(), int(address[1])), int(fields["config-epoch"])),
        known=int(fields["num-other-sentinels"]) + 1,
        replicas=sum("down" not in flags and "disconnected" not in flags for flags in listed),
        quorum=not refusal(quorum),
    )


def _fields(flat: Sequence[bytes]) -> dict[str, str]:
    words = [word.decode() for word in flat]
    return dict(zip(words[::2], words[1::2], strict=True))
