"""`trio-gateway doctor`: everything that can be wrong with an installation, with advice."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from trio_gateway.cli.options import examples, target_options
from trio_gateway.cli.show import show_json

if TYPE_CHECKING:
    from trio_gateway.cli.options import Target

MARKS = {"ok": ("ok  ", "green"), "warn": ("warn", "yellow"), "fail": ("FAIL", "red")}


@click.command(epilog=examples("doctor", "doctor --data-dir /srv/gateway --json"))
@target_options
def doctor(target: Target) -> None:
    """Check settings, stores, migrations, Ollama, clocks and disk; exit 1 if anything fails."""
    # trio and both stores' clients take 0.5 s to import, which --help need not pay
    from trio_gateway.cli.checks import examine  # noqa: PLC0415

    findings = examine(target.data_dir)
    if target.as_json:
        show_json(findings)
    else:
        for finding in findings:
            _say(finding)
    failed = sum(finding["state"] == "fail" for finding in findings)
    if failed:
        click.echo(f"trio-gateway: {failed} of {len(findings)} checks failed", err=True)
        click.get_current_context().exit(1)


def _say(finding: dict[str, Any]) -> None:
    mark, color = MARKS[finding["state"]]
    click.echo(f"{click.style(mark, fg=color)}  {finding['check']}: {finding['detail']}")
    if finding["advice"]:
        click.echo(f"      {finding['advice']}")
