"""`trio-gateway doctor`: everything that can be wrong with an installation, with advice."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections import Counter
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from trio_gateway.cli.options import examples, target_options
from trio_gateway.cli.show import show_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from trio_gateway.cli.finding import Finding, Section
    from trio_gateway.cli.options import Target

INDENT = " " * 8
MARKS = {"ok": ("ok  ", "green"), "warn": ("warn", "yellow"), "fail": ("FAIL", "red")}
CODES = """\b
Exit codes:
  0  nothing fails; there may be warnings
  1  something fails that stops calls, or the settings are not understood
  2  wrong usage

"""
EXAMPLES = examples(
    "doctor",
    "doctor --data-dir /srv/gateway",
    """doctor --json | jq '.[] | select(.state != "ok")'""",
)


@click.command(epilog=CODES + EXAMPLES)
@target_options
def doctor(target: Target) -> None:
    """Check an installation, and say what to do.

    Looks at settings, PostgreSQL, Redis, migrations, notifications, clocks, workers, every Ollama
    and who else reaches it, the admin listener, the blob store, and this machine. Changes nothing;
    ends within 30 seconds, whatever is away. No secret is in the answer.
    """
    # trio and both stores' clients take 0.5 s to import, which --help need not pay
    from trio_gateway.cli.checks import examine  # noqa: PLC0415

    with _progress(shown=not target.as_json and sys.stderr.isatty()) as tell:
        sections = examine(target.data_dir, tell)
    findings = [finding for section in sections for finding in section.findings]
    if target.as_json:
        show_json([asdict(finding) for finding in findings])
    else:
        for section in sections:
            _say(section)
        counts = Counter(finding.state for finding in findings)
        click.echo(f"\n{counts['ok']} ok, {counts['warn']} to look at, {counts['fail']} failed")
    failed = sum(finding.state == "fail" for finding in findings)
    if failed:
        click.echo(f"trio-gateway: {failed} of {len(findings)} checks failed", err=True)
        click.get_current_context().exit(1)


@contextmanager
def _progress(*, shown: bool) -> Iterator[Callable[[str], None]]:
    """Lend a way to say what was looked at, on one line of the terminal that goes at the end."""

    def tell(title: str) -> None:
        if shown:
            click.echo(f"\r\x1b[Klooked at {title} ...", nl=False, err=True)

    tell("")
    try:
        yield tell
    finally:
        if shown:
            click.echo("\r\x1b[K", nl=False, err=True)


def _say(section: Section) -> None:
    click.echo(f"\n{click.style(section.title, bold=True)}")
    for finding in section.findings:
        _say_one(finding)


def _say_one(finding: Finding) -> None:
    mark, color = MARKS[finding.state]
    # what others wrote, such as a worker's report, must not steer the terminal
    lines = [f"{finding.check}: {finding.detail}", finding.advice]
    what, advice = ("".join(c if c.isprintable() else "?" for c in line) for line in lines)
    click.echo(f"  {click.style(mark, fg=color)}  {_folded(what)}")
    if advice:
        click.echo(f"{INDENT}{_folded(advice)}")


def _folded(text: str) -> str:
    """Break a sentence for a terminal; elsewhere it stays one line, for grep."""
    if not sys.stdout.isatty():
        return text
    width = max(shutil.get_terminal_size().columns - len(INDENT), 30)
    return f"\n{INDENT}".join(textwrap.wrap(text, width, break_on_hyphens=False))
