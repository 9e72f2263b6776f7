"""Become another program that cannot outlive its parent, and drop root on the way if asked.

Run by path with `python -I -S`, so that it starts in a few milliseconds: standard library only.

    launch.py SIGNAL PARENT USER COMMAND [ARGUMENT...]

SIGNAL is what the program gets when the parent's thread that started it dies, PARENT the
parent's process id, USER a user name or `-` to stay who we are.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import sys

PR_SET_PDEATHSIG = 1
PR_SET_SECUREBITS = 28
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_RAISE = 2
SECBIT_NO_SETUID_FIXUP = 1 << 2
CAPABILITY_VERSION_3 = 0x20080522
CAP_DAC_OVERRIDE = 1
CAP_DAC_READ_SEARCH = 2
ORPHANED = 75


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Sets(ctypes.Structure):
    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


def main(arguments: list[str]) -> None:
    """Drop root, tie the life to the parent's, and execute the command; never returns."""
    signum, parent, user, *command = arguments
    os.umask(0o077)
    if user != "-":
        _become(user)
    if sys.platform == "linux":
        # after the change of user, which would clear it
        _prctl(PR_SET_PDEATHSIG, int(signum))
    if os.getppid() != int(parent):
        # the parent died before the request was in force: nobody would ever stop us
        sys.exit(ORPHANED)
    os.execv(command[0], command)  # noqa: S606 - a shell is the last thing wanted here


def _become(user: str) -> None:
    entry = pwd.getpwnam(user)
    kept = _reading_capability() if sys.platform == "linux" else None
    if kept is not None:
        # Without this bit access(2) ignores capabilities of users other than root, and
        # PostgreSQL asks access(2) whether it may read its own executable.
        try:
            _prctl(PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP)
        except OSError:
            # a container without CAP_SETPCAP: works where no folder on the way is closed
            kept = None
    os.setgroups([])
    os.setresgid(entry.pw_gid, entry.pw_gid, entry.pw_gid)
    os.setresuid(entry.pw_uid, entry.pw_uid, entry.pw_uid)
    if kept is not None:
        _keep_only(kept)


def _reading_capability() -> int | None:
    """Choose the least that leads through folders closed to everyone but root."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as status:  # noqa: PTH123
        fields = dict(line.split(":", 1) for line in status if ":" in line)
    usable = int(fields["CapPrm"], 16) & int(fields["CapBnd"], 16)
    for capability in (CAP_DAC_READ_SEARCH, CAP_DAC_OVERRIDE):
        if usable >> capability & 1:
            return capability
    return None


def _keep_only(capability: int) -> None:
    bit = 1 << capability
    header = _Header(CAPABILITY_VERSION_3, 0)
    sets = (_Sets * 2)(_Sets(bit, bit, bit), _Sets(0, 0, 0))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.capset(ctypes.byref(header), sets) != 0:
        raise OSError(ctypes.get_errno(), "capset failed")
    _prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, capability)


def _prctl(option: int, *arguments: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    padded = [ctypes.c_ulong(value) for value in (*arguments, 0, 0, 0, 0)[:4]]
    if libc.prctl(option, *padded) != 0:
        raise OSError(ctypes.get_errno(), f"prctl {option} failed")


if __name__ == "__main__":
    main(sys.argv[1:])
