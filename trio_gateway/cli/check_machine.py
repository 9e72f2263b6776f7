"""The doctor's look at this machine: room on the disk, and a folder for the metrics."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from trio_gateway.cli.finding import Finding, fail, ok, warn

MEBIBYTE = 1024 * 1024
LITTLE = 1024  # MiB
TOO_LITTLE = 100  # MiB
METRICS = 16  # MiB that the metrics of many workers take


def check_disk(folder: Path) -> Finding:
    """Judge the room where the installation's folder is, or is to be."""
    folder = folder.expanduser()
    if not folder.is_dir():
        folder = Path.cwd()
    free = shutil.disk_usage(folder).free // MEBIBYTE
    detail = f"{free:,} MiB free at {folder}"
    if free >= LITTLE:
        return ok("disk", detail)
    advice = "Make room: a full disk stops the stores."
    return fail("disk", detail, advice) if free < TOO_LITTLE else warn("disk", detail, advice)


def check_scratch() -> Finding:
    """Try to write where the workers share their metrics."""
    advice = "Set TMPDIR to a folder that can be written, with some MiB of room."
    try:
        with tempfile.TemporaryFile() as file:
            file.write(b"x")
            file.flush()
        folder = tempfile.gettempdir()
    except OSError as error:
        detail = f"no temporary file can be made: {error.strerror or 'none of the folders works'}"
        return fail("temporary folder", detail, f"{advice} `serve` does not start without.")
    free = shutil.disk_usage(folder).free // MEBIBYTE
    if free < METRICS:
        return warn("temporary folder", f"{free:,} MiB free at {folder}", advice)
    return ok("temporary folder", f"{folder} can be written")
