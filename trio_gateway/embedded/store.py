"""What the two embedded stores share: a lock that lives as long as the server, start and stop."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import sys
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

from trio_gateway.embedded.child import Child

START_SECONDS = 60.0
STOP_SECONDS = 20.0
ORPHAN_SECONDS = 10.0
POLL_SECONDS = 0.01
LOG_BYTES = 1 << 20


class StoreFailed(Exception):
    """Raised when an embedded store cannot be started; the text is one clear sentence."""


class Store(ABC):
    """One embedded server, its data in `folder`, its socket in `sockets`.

    `start`, `stop`, `kill` and `wipe` block and are for plain code. A supervisor calls
    `prepare` (any thread), `spawn` (main thread), `await_ready` (any thread) and `stop`.
    """

    name: ClassVar[str]
    stop_signal: ClassVar[signal.Signals]

    def __init__(self, folder: Path, sockets: Path) -> None:
        """Nothing is touched yet; both folders' parents exist and are 0700."""
        self.folder = folder
        self.sockets = sockets
        self.log = folder.with_suffix(".log")
        self.child: Child | None = None
        self._lock: int | None = None

    @property
    @abstractmethod
    def url(self) -> str:
        """Where clients connect."""

    @abstractmethod
    def ready(self, child: Child) -> bool:
        """Whether it answers now; may block for a second."""

    @abstractmethod
    def _command(self) -> list[str]: ...

    @abstractmethod
    def _create(self) -> None:
        """Make the data folder where it is missing, and clear what a crash left."""

    @property
    def user(self) -> str | None:
        """The user to run as, None for our own."""
        return None

    @property
    def running(self) -> bool:
        """Whether our child is alive."""
        return self.child is not None and self.child.exit_code is None

    def start(self) -> None:
        """Start it and return when it answers; raises StoreFailed."""
        self.prepare()
        self.spawn()
        self.await_ready()

    def prepare(self) -> None:
        """Get the data folder ready to start on, and to ourselves; raises StoreFailed."""
        if self._lock is None:
            self._lock = _lock_alone(self.folder.with_suffix(".lock"), self)
        self._create()

    def spawn(self) -> Child:
        """Start the server, not yet answering; the lock passes into its hands."""
        lock, self._lock = self._lock, None
        if lock is None:
            raise RuntimeError("prepare comes before spawn")
        output = self.open_log()
        try:
            self.child = Child(
                self._command(),
                on_parent_death=self.stop_signal,
                user=self.user,
                fds=[lock],
                output=output,
            )
        finally:
            os.close(output)
            os.close(lock)
        return self.child

    def await_ready(self) -> None:
        """Return when it answers; raises StoreFailed with the reason from its log."""
        child = self.child
        deadline = time.monotonic() + START_SECONDS
        while child is not None and child.exit_code is None and time.monotonic() < deadline:
            if self.ready(child):
                return
            time.sleep(POLL_SECONDS)
        self.kill()
        raise StoreFailed(f"the embedded {self.name} did not start: {self.last_words()}")

    def stop(self) -> None:
        """Stop it in an orderly way, and by force if that takes too long."""
        if self.child is not None:
            self.child.send(self.stop_signal)
            if not self.child.join(STOP_SECONDS):
                self.kill()

    def kill(self) -> None:
        """Kill it at once, as a crash would."""
        if self.child is not None:
            self.child.send(signal.SIGKILL)
            self.child.join()

    def wipe(self) -> None:
        """Stop it if it runs, and lose all its data."""
        self.kill()
        os.close(_lock_alone(self.folder.with_suffix(".lock"), self))
        shutil.rmtree(self.folder, ignore_errors=True)

    def release(self) -> None:
        """Give up a lock taken by `prepare` and not yet passed on."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def open_log(self) -> int:
        """Open the log for a child's output, emptied when it has grown large."""
        descriptor = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        if os.fstat(descriptor).st_size > LOG_BYTES:
            os.ftruncate(descriptor, 0)
        return descriptor

    def last_words(self) -> str:
        """Return the log's last line, which tells why a start failed."""
        with contextlib.suppress(OSError):
            lines = self.log.read_text(encoding="utf-8", errors="replace").split("\n")
            for line in reversed(lines):
                if line.strip():
                    return f"{line.strip()[:300]} (see {self.log})"
        return f"see {self.log}"


def _lock_alone(path: Path, store: Store) -> int:
    """Lock the file; a server left over from a crash is stopped and waited for.

    The server inherits the descriptor, so the lock is free exactly when it and all its own
    children are gone. Raises StoreFailed.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    started = time.monotonic()
    asked = killed = False
    while time.monotonic() < started + ORPHAN_SECONDS + 5:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        if not asked:
            asked = True
            _signal_holders(path, store.stop_signal)
        elif not killed and time.monotonic() > started + ORPHAN_SECONDS:
            killed = True
            _signal_holders(path, signal.SIGKILL)
        time.sleep(POLL_SECONDS)
    os.close(descriptor)
    raise StoreFailed(f"an earlier {store.name} on {store.folder} does not end; stop it by hand")


def _signal_holders(path: Path, signum: signal.Signals) -> None:
    for pid in _holders(path):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signum)


def _holders(path: Path) -> list[int]:
    """Find the processes, other than this one, that have the file open."""
    if sys.platform != "linux":
        return []
    target = path.stat()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            if any(_same_file(link, target) for link in (entry / "fd").iterdir()):
                found.append(int(entry.name))
    return found


def _same_file(link: Path, target: os.stat_result) -> bool:
    with contextlib.suppress(OSError):
        return os.path.samestat(link.stat(), target)
    return False
