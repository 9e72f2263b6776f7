"""A batch under way: a bar on a terminal, lines now and then elsewhere, or JSON."""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Protocol

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from trio_gateway.cli.show import show_json
from trio_gateway.core.batches import TERMINAL

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trio_gateway.core.batches import Batch

LINE_EVERY = 10.0  # seconds, where the counts alone change


@dataclass(frozen=True)
class Glance:
    """One look at a batch: its row, lines a second where known, whether anything changed."""

    batch: Batch
    row: dict[str, Any]
    rate: float | None
    changed: bool

    @property
    def done(self) -> int:
        """Lines that are over, well or not."""
        return self.batch.completed + self.batch.failed

    def words(self) -> str:
        """Say failures, pace and time left, or why it waits."""
        parts = [f"{self.batch.failed} failed"] if self.batch.failed else []
        if self.batch.paused:
            parts.append(f"paused: {self.batch.paused}")
        elif self.rate and self.batch.status not in TERMINAL:
            left = timedelta(seconds=round((self.batch.total - self.done) / self.rate))
            parts += [f"{self.rate:.1f} lines/s", f"{left} left"]
        return ", ".join(parts)


class Display(Protocol):
    """Shows a batch again and again."""

    def show(self, glance: Glance) -> None:
        """Show it as it now is."""


class Objects:
    """One JSON object for every change."""

    def show(self, glance: Glance) -> None:
        """As Display."""
        if glance.changed:
            show_json(glance.row)


class Lines:
    """A line for every new status and pause; for counts alone not too many."""

    def __init__(self) -> None:
        """Nothing was said yet."""
        self._state: tuple[str, str | None] | None = None
        self._since = 0.0

    def show(self, glance: Glance) -> None:
        """As Display."""
        batch, now = glance.batch, time.monotonic()
        state = (str(batch.status), batch.paused)
        if state == self._state and not (glance.changed and now - self._since >= LINE_EVERY):
            return
        self._state, self._since = state, now
        words = glance.words()
        counts = f" {glance.done}/{batch.total}" if batch.total else ""
        click.echo(f"{batch.id} {batch.status}{counts}" + (f", {words}" if words else ""))


class Bar:
    """A bar that fills, on a terminal."""

    def __init__(self, progress: Progress) -> None:
        """Add the one bar; `progress` is live."""
        self._progress = progress
        self._task = progress.add_task("", total=None, words="")

    def show(self, glance: Glance) -> None:
        """As Display."""
        self._progress.update(
            self._task,
            description=str(glance.batch.status),
            total=glance.batch.total or None,
            completed=glance.done,
            words=glance.words(),
        )


@contextmanager
def display(*, as_json: bool) -> Iterator[Display]:
    """Choose how a batch is shown, on stdout."""
    if as_json:
        yield Objects()
    elif not sys.stdout.isatty():
        yield Lines()
    else:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[words]}"),
        )
        with Progress(*columns, console=Console()) as progress:
            yield Bar(progress)
