"""An installation's folder: who may see it, who has it open, and where its stores are."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import stat
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from types import TracebackType

LOCK_FILE = "trio-gateway.lock"
LOCK_SECONDS = 0.5
BLOBS = "blobs"
# sun_path holds 107 bytes; the longest name below the sockets' folder takes 17
SOCKET_FOLDER_BYTES = 88


class DataDirError(Exception):
    """Raised when an installation's folder cannot be used; the text is one clear sentence."""


class DataDirInUse(DataDirError):
    """Raised when another process has the folder open."""


class NotRunning(DataDirError):
    """Raised by `state_of` when nothing runs on the folder."""


class NoInstallation(DataDirError):
    """Raised by `state_of` when the folder does not exist or was never started."""


@dataclass(frozen=True)
class State:
    """Where a running installation's stores are; kept 0600, because URLs hold passwords."""

    pid: int
    database_url: str
    redis_url: str
    sockets: str
    ollama_url: str = ""
    blob_url: str = ""  # of an earlier release: not said, but where `blobs_of` tells


def default_path() -> Path:
    """`$XDG_DATA_HOME/trio-gateway`, which is `~/.local/share/trio-gateway` by default."""
    base = Path(os.environ.get("XDG_DATA_HOME", ""))
    # the specification says that a relative path is to be ignored
    root = base if base.is_absolute() else Path.home() / ".local" / "share"
    return root / "trio-gateway"


def blobs_of(path: Path) -> str:
    """Return the address of the blob store inside a folder; nothing is made."""
    return (path.expanduser().absolute() / BLOBS).as_uri()


class DataDir:
    """The folder, locked for this process from `open` to `close` (or within `with`)."""

    def __init__(self, path: Path) -> None:
        """Nothing is touched yet."""
        self.path = path.expanduser().absolute()
        self._lock: int | None = None

    def open(self) -> None:
        """Create it where it is missing and lock it; raises DataDirError or DataDirInUse."""
        try:
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._refuse_foreign()
            if self.path.stat().st_mode & 0o077:
                self.path.chmod(0o700)
            lock = os.open(self.path / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise DataDirError(
                f"the data directory {self.path} cannot be used: {error.strerror}"
            ) from error
        if not _try_lock(lock, LOCK_SECONDS):
            os.close(lock)
            raise DataDirInUse(
                f"the data directory {self.path} is in use by another trio-gateway; "
                "stop that one, or choose another with --data-dir"
            )
        self._lock = lock

    def _refuse_foreign(self) -> None:
        # closing somebody's home or /tmp to all others would do harm
        others = {path.name for path in self.path.iterdir()} - {BLOBS}  # `serve` may make it
        if others and LOCK_FILE not in others:
            raise DataDirError(
                f"{self.path} holds other things: choose a new or an empty directory with "
                "--data-dir"
            )

    @property
    def is_open(self) -> bool:
        """Whether this process holds the lock."""
        return self._lock is not None

    def close(self) -> None:
        """Forget where the stores were and unlock."""
        if self._lock is not None:
            self.state_file.unlink(missing_ok=True)
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> Self:
        """Open it."""
        self.open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close it."""
        self.close()

    @property
    def state_file(self) -> Path:
        """Where `publish` writes."""
        return self.path / "state.json"

    def publish(
        self,
        database_url: str,
        redis_url: str,
        sockets: Path | None = None,
        *,
        ollama_url: str = "",
        blob_url: str = "",
    ) -> None:
        """Say where the stores and Ollama are, for `state_of` in other processes."""
        sockets_at = str(sockets or "")
        state = State(os.getpid(), database_url, redis_url, sockets_at, ollama_url, blob_url)
        self.write("state.json", json.dumps(asdict(state)))

    def write(self, name: str, text: str) -> None:
        """Replace a file of the installation, 0600, in one step."""
        descriptor, temporary = tempfile.mkstemp(dir=self.path, prefix=f".{name}.")
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).replace(self.path / name)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise

    def read(self, name: str) -> str | None:
        """Read a file of the installation; None where there is none."""
        with contextlib.suppress(FileNotFoundError):
            return (self.path / name).read_text(encoding="utf-8")
        return None

    def sockets(self) -> Path:
        """Return a 0700 folder whose path is short enough for unix sockets, made if missing.

        Inside the data directory where that fits, else below /tmp, and then recorded in the
        file `sockets`, so that it is the same one next time.
        """
        inside = self.path / "run"
        if len(os.fsencode(inside)) <= SOCKET_FOLDER_BYTES:
            inside.mkdir(mode=0o700, exist_ok=True)
            return inside
        recorded = self.read("sockets")
        digest = hashlib.sha256(os.fsencode(self.path)).hexdigest()[:12]
        stable = f"/tmp/trio-gateway-{os.geteuid()}-{digest}"  # noqa: S108 - verified below
        folder = next((Path(p) for p in (recorded, stable) if p and _private(Path(p))), None)
        if folder is None:
            # somebody else sits on the predictable name
            folder = Path(tempfile.mkdtemp(prefix="trio-gateway-", dir="/tmp"))
        self.write("sockets", str(folder))
        return folder


def state_of(path: Path) -> State:
    """Return what the installation that runs on `path` says of itself.

    Raises NoInstallation or NotRunning, each with one sentence.
    """
    folder = DataDir(path)
    start = f"start one with `trio-gateway quickstart --data-dir {folder.path}`"
    try:
        lock = os.open(folder.path / LOCK_FILE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise NoInstallation(f"there is no installation in {folder.path}; {start}") from error
    try:
        running = not _try_lock(lock, 0, shared=True)
        text = folder.read("state.json")
    finally:
        os.close(lock)
    if not running or text is None:
        raise NotRunning(f"nothing runs on {folder.path}; {start}")
    state = State(**json.loads(text))
    return state if state.blob_url else replace(state, blob_url=blobs_of(folder.path))


def _try_lock(descriptor: int, seconds: float, *, shared: bool = False) -> bool:
    # `state_of` locks for an instant to see whether it can: hence a few tries
    deadline = time.monotonic() + seconds
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    while True:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
            return True
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.02)


def _private(path: Path) -> bool:
    """Make the folder, or check that the one there is a folder of ours alone."""
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
    found = path.lstat()
    mine = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()
    return mine and not found.st_mode & 0o077
