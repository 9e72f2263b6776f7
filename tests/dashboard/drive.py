"""Runs what drives a browser in a process of its own.

Playwright's event loop is asyncio's; in the tests' own process trio-asyncio has taken its place.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import trio

ROOT = Path(__file__).parents[2]
LIMIT = 600.0  # seconds; several builds may share two cores


async def drive(module: str, name: str, **told: Any) -> Any:
    """Call a function of a module with these arguments, JSON both ways; fails as it failed."""
    words = [sys.executable, "-m", "tests.dashboard.drive", module, name]
    with trio.fail_after(LIMIT):
        done = await trio.run_process(
            words, stdin=json.dumps(told).encode(), capture_stdout=True, capture_stderr=True,
            check=False, cwd=ROOT,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Be that process."""
    module, name = sys.argv[1:]
    told = json.load(sys.stdin)
    print(json.dumps(getattr(importlib.import_module(module), name)(**told)))


if __name__ == "__main__":
    main()
