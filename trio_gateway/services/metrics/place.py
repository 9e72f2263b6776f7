"""Where a process keeps its numbers: in memory, or in files that outlive it.

The supervisor lends every process of an installation one folder and a name in it, the slot,
which a restarted worker gets again: it goes on with its predecessor's files, so that their
number stays the same and counters never fall. Whoever holds a slot's lock is alive; the lock
goes with its process, however that ends.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
from prometheus_client import disable_created_metrics, values
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import mark_process_dead

if TYPE_CHECKING:
    from collections.abc import Mapping

log = structlog.get_logger()

FOLDER = "PROMETHEUS_MULTIPROC_DIR"
SLOT = "_TRIO_GATEWAY_SLOT"
ATTEMPTS, PAUSE = 50, 0.02  # seconds; a scrape looks at a lock for an instant

# Bytes of each file: enough for fifty models, and for every other label there is.
SIZES = {
    "counter": 256 * 1024,
    "histogram": 2 * 1024 * 1024,
    "gauge_livesum": 64 * 1024,
    "gauge_livemin": 64 * 1024,
    "gauge_livemax": 64 * 1024,
}

_SLOT = re.compile(r"[a-z0-9-]{1,32}")

disable_created_metrics()


@dataclass(slots=True)
class Place:
    """A process's own files in the shared folder; `again` where it is not the slot's first."""

    folder: Path
    slot: str
    again: bool
    lock: int  # descriptor

    def close(self) -> None:
        """Give the slot up; its counters stay, and those of late tasks still arrive."""
        values.ValueClass = values.MutexValue
        os.close(self.lock)

    def labels(self, name: str) -> set[str]:
        """Return the values that a label has in the files so far."""
        found: set[str] = set()
        for path in self.folder.glob(f"*_{self.slot}.db"):
            for key, *_ in MmapedDict.read_all_values_from_file(str(path)):
                value = json.loads(key)[2].get(name)
                if value is not None:
                    found.add(value)
        return found


def settle_in(environ: Mapping[str, str] = os.environ) -> Place | None:
    """Have all metrics made from now on kept where the environment says.

    None is memory: without a supervisor, or where the folder cannot be used.
    """
    folder, slot = environ.get(FOLDER, ""), environ.get(SLOT, "")
    values.ValueClass = values.MutexValue
    if not (folder and _SLOT.fullmatch(slot)):
        return None
    try:
        place = _take(Path(folder), slot)
    except OSError as error:
        log.warning("metrics_in_memory", slot=slot, error=type(error).__name__)
        return None
    # What it was doing when it ended is over; what it has counted is not.
    mark_process_dead(slot, folder)
    try:
        for kind, size in SIZES.items():
            _reserve(place.folder / f"{kind}_{slot}.db", size)
    except OSError as error:
        log.warning("metrics_in_memory", slot=slot, error=type(error).__name__)
        place.close()
        return None
    values.ValueClass = values.MultiProcessValue(lambda: slot)
    return place


def _reserve(path: Path, size: int) -> None:
    """Make the file with all its bytes on the disk: a full one ends who writes to a gap in it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        if hasattr(os, "posix_fallocate") and os.fstat(descriptor).st_size < size:
            os.posix_fallocate(descriptor, 0, size)
    finally:
        os.close(descriptor)


def _take(folder: Path, slot: str) -> Place:
    """Lock the slot. Raises OSError, also where another process that is alive has it."""
    path = folder / f"{slot}.lock"
    again = path.exists()
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    for attempt in range(ATTEMPTS):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if attempt + 1 == ATTEMPTS:
                os.close(lock)
                raise
            time.sleep(PAUSE)
        else:
            break
    return Place(folder, slot, again, lock)


def alive(folder: Path, slot: str) -> bool:
    """Whether the process of a slot is there."""
    try:
        lock = os.open(folder / f"{slot}.lock", os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False
