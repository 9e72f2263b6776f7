"""Kinds of option values, and the options that several commands share."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trio_gateway.core.models import InvalidModelName, canonical

if TYPE_CHECKING:
    from collections.abc import Callable

    Command = Callable[..., Any]
    Kind = click.ParamType[Any]
else:
    # generic for type checkers in late releases of click alone
    Kind = click.ParamType

BIGGEST = 2**63 - 1
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_DURATION = re.compile(r"(?:[0-9]{1,9}[smhdw])+")
_DURATION_PART = re.compile(r"([0-9]+)([smhdw])")
LONGEST = timedelta(days=36_500)


class Lifted(Enum):
    """The option value `none`, as distinct from an option that was not given."""

    NONE = "none"


NONE = Lifted.NONE


@dataclass(frozen=True)
class Target:
    """Which installation a command is about, and how it is to answer."""

    data_dir: Path | None
    as_json: bool


class Limit(Kind):
    """A whole number from `least` up, or `none` for no limit."""

    name = "N|none"

    def __init__(self, least: int = 0, most: int = BIGGEST) -> None:
        """`least` and `most` are both allowed."""
        self._least = least
        self._most = most

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | Lifted:
        """Return a number or NONE."""
        if isinstance(value, (int, Lifted)):
            return value
        if value.lower() == "none":
            return NONE
        # int() alone would take `1_000`, `+5` and digits of other scripts
        if not re.fullmatch(r"[0-9]{1,19}", value) or not self._least <= int(value) <= self._most:
            self.fail(
                f"{_quoted(value)} is not a whole number from {self._least} up, nor none.",
                param,
                ctx,
            )
        return int(value)


class Models(Kind):
    """Model names with commas between, in any spelling; canonical names come out."""

    name = "a,b"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> list[str]:
        """Return canonical names, each once, in order."""
        if isinstance(value, list):
            return value
        names = [name for name in value.split(",") if name.strip()]
        return sorted({self._canonical(name, param, ctx) for name in names})

    def _canonical(
        self, name: str, param: click.Parameter | None, ctx: click.Context | None
    ) -> str:
        try:
            return canonical(name).full
        except InvalidModelName as error:
            self.fail(f"{_quoted(name)}: {error}.", param, ctx)


class Model(Models):
    """One model name, in any spelling."""

    name = "model"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the canonical name."""
        return self._canonical(value, param, ctx)


class Duration(Kind):
    """A span of time such as 30d, 12h or 1h30m."""

    name = "duration"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> timedelta:
        """Return the span."""
        if isinstance(value, timedelta):
            return value
        span = timedelta(0) if value == "0" else duration(value)
        if span is None:
            self.fail(f"{_quoted(value)} is not a duration such as 24h or 30d.", param, ctx)
        return span


class Instant(Kind):
    """An ISO date or time (UTC where it does not say), or a duration from now."""

    name = "when"

    def __init__(self, direction: int) -> None:
        """`direction` is 1 for durations into the future, -1 for the past."""
        self._direction = direction

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> datetime | Lifted:
        """Return an aware instant, or NONE for `none` and `never`."""
        if isinstance(value, (datetime, Lifted)):
            return value
        if value.lower() in {"none", "never"}:
            return NONE
        span = duration(value)
        if span is not None:
            return datetime.now(UTC) + self._direction * span
        try:
            instant = datetime.fromisoformat(value)
            return instant if instant.tzinfo else instant.replace(tzinfo=UTC)
        except ValueError:
            self.fail(
                f"{_quoted(value)} is no date such as 2030-12-31 and no duration such as 30d.",
                param,
                ctx,
            )


def duration(text: str) -> timedelta | None:
    """Read `1d12h` and the like; None for anything else, or more than a hundred years."""
    if not _DURATION.fullmatch(text):
        return None
    seconds = sum(int(n) * _UNITS[unit] for n, unit in _DURATION_PART.findall(text))
    return timedelta(seconds=seconds) if seconds <= LONGEST.total_seconds() else None


def target_options(command: Command) -> Command:
    """Add `--data-dir` and `--json`; the command gets them as `target`."""

    @click.option(
        "--data-dir",
        type=click.Path(path_type=Path, file_okay=False),
        help="The installation's folder, where DATABASE_URL and REDIS_URL are not set.",
    )
    @click.option("--json", "as_json", is_flag=True, help="Answer in JSON.")
    @functools.wraps(command)
    def with_target(*args: Any, data_dir: Path | None, as_json: bool, **options: Any) -> Any:
        return command(*args, target=Target(data_dir, as_json), **options)

    return with_target


def limit_options(command: Command) -> Command:
    """Add what a tenant and a key have in common."""
    options = (
        click.option("--requests-per-minute", type=Limit(), help="0 allows none."),
        click.option("--tokens-per-minute", type=Limit(), help="0 allows none."),
        click.option("--budget", type=Limit(), help="Tokens in a period; 0 allows none."),
        click.option(
            "--budget-period",
            type=click.Choice(["day", "month", "total"]),
            help="What a budget is for: a UTC day, a UTC month (the default), or for ever.",
        ),
        click.option("--max-output-tokens", type=Limit(least=1), help="The most one call may ask."),
        click.option("--models", type=Models(), help="The models allowed, with commas between."),
    )
    for option in reversed(options):
        command = option(command)
    return command


def given(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options that were given, `none` as None."""
    return {
        name: None if value is NONE else value
        for name, value in options.items()
        if value is not None
    }


def examples(*lines: str) -> str:
    """Format the examples at the end of a help text."""
    return "\b\nExamples:\n" + "\n".join(f"  trio-gateway {line}" for line in lines)


def _quoted(text: str) -> str:
    return "'" + "".join(c if c.isprintable() else "?" for c in text[:60]) + "'"
