"""The doctor's look at the gateway's processes on this machine: their files, their listeners."""

from __future__ import annotations

import ipaddress
import os
import re
import resource
import socket
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trio_gateway.cli.check_exposure import answering
from trio_gateway.cli.finding import Finding, fail, ok, warn

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trio_gateway.cli.check_workers import Report
    from trio_gateway.settings import Settings

FEWEST = 4096  # open files that a worker should be allowed
SPARE = 512  # files of a worker that are no calls
FULL = 0.8  # of the files allowed
OURS = ("trio_gateway", "trio-gateway", "hypercorn")
RAISE = "Raise it: LimitNOFILE= of the systemd unit, ulimits of the container, or `ulimit -n`."
_LIMIT = re.compile(r"^Max open files\s+(\d+)", re.MULTILINE)
LISTENING = "0A"  # as /proc/net/tcp writes the state


@dataclass(frozen=True)
class Process:
    """A process of the gateway: how many files it may open, and has open."""

    pid: int
    limit: int
    files: int


def wanted_files(settings: Settings) -> int:
    """Return how many files a worker needs: two for each call in flight, one for each waiting."""
    slots = settings.backend_slots * len(settings.backends)
    return max(FEWEST, 2 * slots + settings.queue_limit + SPARE)


def pids_here(reports: Sequence[Report], supervisor: int | None) -> list[int]:
    """Return the supervisor and the workers that run on this very machine."""
    name = socket.gethostname()
    told = [int(report.fields["pid"]) for report in reports if report.host == name]
    # in another container of the same name the numbers mean other processes
    return [pid for pid in ([supervisor] if supervisor else []) + told if _is_ours(pid)]


def check_files(pids: Sequence[int], wanted: int) -> Finding:
    """Judge the limit of the processes that run, or the one that one started here would have."""
    running = [found for pid in pids if (found := _process(pid)) is not None]
    if not running:
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return _limit("of a process started from here", soft, wanted)
    for one in running:
        if one.files > FULL * one.limit:
            detail = f"process {one.pid} has {one.files:,} of {one.limit:,} files open"
            return warn("file limit", detail, RAISE)
    least = min(running, key=lambda one: one.limit)
    return _limit(f"of {len(running)} processes that run", least.limit, wanted)


async def check_listeners(workers: Sequence[int]) -> list[Finding]:
    """Ask where the workers listen, as somebody without a key would."""
    bases = sorted({base for pid in workers for base in _listeners(pid)})
    if not bases:
        return []
    open_to_all = await answering(bases)
    if open_to_all:
        detail = f"an Ollama answers without a key at {', '.join(open_to_all)}"
        advice = "Something else took the gateway's address: let Ollama listen elsewhere."
        return [fail("public listener", detail, advice)]
    return [ok("public listener", f"nothing is told without a key at {', '.join(bases)}")]


def _limit(whose: str, limit: int, wanted: int) -> Finding:
    if limit == resource.RLIM_INFINITY or limit >= wanted:
        shown = "unlimited" if limit == resource.RLIM_INFINITY else f"{limit:,}"
        return ok("file limit", f"{shown} open files {whose}")
    detail = f"{limit:,} open files {whose}; {wanted:,} are wanted"
    return warn("file limit", detail, RAISE)


def _is_ours(pid: int) -> bool:
    with suppress(OSError):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
        return any(name in words for name in OURS)
    return False


def _process(pid: int) -> Process | None:
    found, files = None, 0
    with suppress(OSError):
        found = _LIMIT.search(Path(f"/proc/{pid}/limits").read_text(encoding="ascii"))
    with suppress(OSError):  # another user's process tells its limits alone
        files = len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208 - names alone are counted
    return Process(pid, int(found.group(1)), files) if found else None


def _listeners(pid: int) -> set[str]:
    """Return where a process listens, as addresses that reach it from this machine."""
    with suppress(OSError):
        entries = list(Path(f"/proc/{pid}/fd").iterdir())
        held = set()
        for entry in entries:
            with suppress(OSError):
                held.add(str(entry.readlink()))
        return {base for kind in ("tcp", "tcp6") for base in _table(pid, kind, held)}
    return set()


def _table(pid: int, kind: str, held: set[str]) -> set[str]:
    bases: set[str] = set()
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/net/{kind}").read_text(encoding="ascii").splitlines()[1:]:
            columns = line.split()
            if columns[3] == LISTENING and f"socket:[{columns[9]}]" in held:
                address, port = columns[1].split(":")
                bases.add(f"http://{_reachable(address)}:{int(port, 16)}")
    return bases


def _reachable(digits: str) -> str:
    """Read an address as the kernel prints it, in words of the machine's own byte order."""
    words = bytes.fromhex(digits)
    swapped = b"".join(words[at : at + 4][::-1] for at in range(0, len(words), 4))
    address = ipaddress.ip_address(swapped)
    if address.version == 6:
        return "[::1]" if address.is_unspecified else f"[{address}]"
    return "127.0.0.1" if address.is_unspecified else str(address)
