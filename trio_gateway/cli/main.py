"""The command line's trunk, and how it ends: 0 done, 1 refused or failed, 2 wrong usage.

Command modules import what is light alone, so that `--help` and a mistyped option answer at
once; what a command needs beyond that is imported as it runs.
"""

from __future__ import annotations

import sys
from typing import NoReturn

import click

from trio_gateway import __version__
from trio_gateway.cli.admin import admin
from trio_gateway.cli.batch import batch
from trio_gateway.cli.doctor import doctor
from trio_gateway.cli.file import file
from trio_gateway.cli.key import key
from trio_gateway.cli.model import model
from trio_gateway.cli.notices import notices
from trio_gateway.cli.options import examples
from trio_gateway.cli.report import audit, ledger, usage
from trio_gateway.cli.start import migrate, quickstart, serve
from trio_gateway.cli.tenant import tenant
from trio_gateway.cli.webhook import webhook
from trio_gateway.core.causes import sentence_of

INTERRUPTED = 130  # as shells count Ctrl-C


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=examples(
        "quickstart --simulate",
        "tenant create acme --all-models --budget 1000000",
        "key create --tenant acme --name laptop",
        "usage --by day --since 30d",
    ),
)
@click.version_option(__version__, prog_name="trio-gateway", message="%(prog)s %(version)s")
def trunk() -> None:
    """Put API keys, tenants, limits, token budgets and an exact ledger in front of Ollama."""


for command in (
    quickstart,
    serve,
    migrate,
    doctor,
    tenant,
    key,
    model,
    batch,
    file,
    admin,
    usage,
    notices,
    webhook,
    audit,
    ledger,
):
    trunk.add_command(command)


def main(args: list[str] | None = None) -> NoReturn:
    """Run the command line, by default this process's own, and exit."""
    try:
        code = trunk.main(args, prog_name="trio-gateway", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help(), err=True)
        sys.exit(error.exit_code)
    except click.ClickException as error:
        complain(error.format_message())
        sys.exit(error.exit_code)
    except click.Abort:
        sys.exit(INTERRUPTED)
    except Exception as error:  # noqa: BLE001 - an operator gets a sentence, not a traceback
        complain(f"failed: {sentence_of(error)}")
        sys.exit(1)
    sys.exit(code if isinstance(code, int) else 0)


def complain(message: str) -> None:
    """Print one line on stderr, whatever is in the message."""
    click.echo("trio-gateway: " + " ".join(message.split()), err=True)
