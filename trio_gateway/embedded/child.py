"""One child process that dies with the thread that started it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from trio_gateway.embedded import launch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

POLL_SECONDS = 0.1
LAUNCHER = str(Path(launch.__file__).resolve())


def launched(
    command: Sequence[str], on_parent_death: signal.Signals, user: str | None = None
) -> list[str]:
    """Wrap a command (its first word an absolute path) so that it cannot outlive us."""
    words = [sys.executable, "-I", "-S", LAUNCHER]
    return [*words, str(int(on_parent_death)), str(os.getpid()), user or "-", *command]


class Child:
    """A running child; `wait` is for Trio, `join` for plain code.

    The kernel's parent-death signal is tied to the *thread* that forks. Trio starts processes
    in short-lived threads, whose end would stop the child; hence `subprocess.Popen` here, and
    only on the main thread.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        on_parent_death: signal.Signals = signal.SIGTERM,
        user: str | None = None,
        environ: Mapping[str, str] | None = None,
        fds: Sequence[int] = (),
        output: int | None = None,
    ) -> None:
        """Start it; `output` is a descriptor for both its stdout and its stderr."""
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("children are started from the main thread only")
        self._popen = subprocess.Popen(  # noqa: S603 - the command is ours
            launched(command, on_parent_death, user),
            env=environ,
            pass_fds=fds,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            # a Ctrl-C in the terminal is for the supervisor, which then stops us in order
            process_group=0,
        )

    @property
    def pid(self) -> int:
        """The process id, the program's own: the launcher executes it in its place."""
        return self._popen.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs, negative signal numbers as in `subprocess`."""
        return self._popen.poll()

    def send(self, signum: signal.Signals) -> None:
        """Send a signal; nothing happens when it has ended."""
        self._popen.send_signal(signum)

    def join(self, seconds: float | None = None) -> bool:
        """Block until it has ended; False when that took longer than `seconds`."""
        try:
            self._popen.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    async def wait(self) -> int:
        """Return the exit code once it has ended."""
        if sys.platform != "linux":
            return await trio.to_thread.run_sync(self._popen.wait, abandon_on_cancel=True)
        while (code := self._popen.poll()) is None:
            try:
                pidfd = os.pidfd_open(self.pid)
            except ProcessLookupError:
                continue
            except OSError:  # no descriptor to be had just now
                await trio.sleep(POLL_SECONDS)
                continue
            try:
                await trio.lowlevel.wait_readable(pidfd)
            finally:
                os.close(pidfd)
        return code
