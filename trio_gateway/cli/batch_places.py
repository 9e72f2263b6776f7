"""Where `batch run` writes: looked at before anything runs, so that nothing is lost in the end."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from trio_gateway.cli.door import Failure
from trio_gateway.cli.file_copy import check_place

if TYPE_CHECKING:
    from pathlib import Path


def check_places(file: Path, output: Path, errors: Path, *, force: bool) -> None:
    """Check both files to write, and that neither is the other or `file`.

    Raises Failure, which names the option.
    """
    for option, place in (("--output", output), ("--errors", errors)):
        if _same(place, file):
            raise Failure(f"{option}: {place} is the file to run")
    if _same(errors, output):
        raise Failure(f"--errors: {errors} is where --output goes")
    for option, place in (("--output", output), ("--errors", errors)):
        try:
            check_place(place, force=force)
        except Failure as failure:
            raise Failure(f"{option}: {failure.message}") from failure


def _same(one: Path, other: Path) -> bool:
    """Whether two paths are one file, be it there or not."""
    try:
        return one.samefile(other)
    except OSError:
        return os.path.realpath(one) == os.path.realpath(other)
