"""The explorer without a time limit: python -m tests.load.explore_deep [states at most].

Every fault among two calls, two sweepers and three hydrates, then any two faults among two
calls and a sweeper; one table, exit 1 at a violation.
"""

from __future__ import annotations

import sys
import time

from rich.console import Console
from rich.table import Table

from tests.explorer.faults import EVERY_FAULT
from tests.explorer.nouns import Scenario
from tests.explorer.search import explore
from trio_gateway.services.quota.keys import scripts

MOST = 2_000_000


def main(most: int) -> int:
    """Search, print, and return the exit code."""
    scenarios = {
        f"{fault}, all actors": Scenario(faults=frozenset({fault}), fault_count=1)
        for fault in sorted(EVERY_FAULT)
    }
    scenarios["any two, two calls and a sweeper"] = Scenario(
        faults=frozenset(EVERY_FAULT), fault_count=2, sweepers=1, bystander=False
    )
    table = Table(title=f"Interleavings of the settlement protocol, {most} states at most")
    for column in ("faults", "states", "exhaustive", "violation", "seconds"):
        table.add_column(column)
    bad = 0
    for name, scenario in scenarios.items():
        began = time.monotonic()
        found = explore(scripts(), scenario, most)
        took = time.monotonic() - began
        bad += found.violation is not None
        complete = "yes" if found.complete else "no"
        table.add_row(name, str(found.states), complete, found.violation or "none", f"{took:.0f}")
    Console(width=120).print(table)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else MOST))
