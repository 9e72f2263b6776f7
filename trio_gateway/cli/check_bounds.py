"""The bounds of a check: its time, and what becomes of one that breaks."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from trio_gateway.cli.finding import Finding, fail
from trio_gateway.clients.at_once import at_once
from trio_gateway.clients.postgres import Overdue, within
from trio_gateway.core.causes import first_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    Look = Callable[[], Awaitable[list[Finding]]]

LIMIT = 3.0  # seconds for one check


async def checked(check: str, look: Look, where: str = "") -> list[Finding]:
    """Return what `look` finds, or one failure where it takes too long (`where`) or breaks.

    Nothing of an error's text is shown: drivers quote addresses and statements.
    """
    try:
        with within(LIMIT):
            return await look()
    except Overdue:
        advice = "Look at the network between here and there, and at the load of the other side."
        at = f" at {where}" if where else ""
        return [fail(check, f"no answer{at} within {LIMIT:g} seconds", advice)]
    except Exception as error:  # noqa: BLE001 - one check that breaks must not hide the others
        name = type(first_of(error)).__name__
        advice = "The name may tell what is missing, such as a privilege of the database's user."
        return [fail(check, f"could not be looked at ({name})", advice)]


async def all_checked(looks: Mapping[str, Look]) -> dict[str, list[Finding]]:
    """Run checks by their names, all at once, and return what each found in the same order."""
    return await at_once({name: partial(checked, name, look) for name, look in looks.items()})
