"""`trio-gateway quickstart`, `serve` and `migrate`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trio_gateway.cli.door import Failure, database_url
from trio_gateway.cli.options import examples, target_options
from trio_gateway.cli.show import show_done

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio_gateway.cli.options import Target

FOLDER = click.Path(path_type=Path, file_okay=False)


def listener_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add what both ways to start have in common."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Say where it is in one JSON line."),
        click.option(
            "--workers", type=click.IntRange(1, 256), default=1, show_default=True, metavar="N"
        ),
        click.option(
            "--admin-bind",
            # written out, as the default is found by what else was given
            help="Where the dashboard, the admin API and /metrics listen."
            "  [default: 127.0.0.1:8081]",
        ),
        click.option(
            "--bind", default="127.0.0.1:8080", show_default=True, help="Where callers connect."
        ),
    ):
        command = option(command)
    return command


@click.command(
    epilog=examples(
        "quickstart",
        "quickstart --simulate --json",
        "quickstart --ollama-url http://gpu1:11434 --bind 0.0.0.0:8080 --workers 2",
    )
)
@click.option("--ollama-url", metavar="URL", help="The Ollama server; several with commas between.")
@click.option("--simulate", is_flag=True, help="Bring a simulated Ollama along.")
@click.option("--data-dir", type=FOLDER, help="Default: $XDG_DATA_HOME/trio-gateway.")
@listener_options
def quickstart(
    simulate: bool,  # noqa: FBT001 - click passes options by name
    ollama_url: str | None,
    data_dir: Path | None,
    **options: Any,
) -> None:
    """Start everything at once: stores of its own, a tenant, a key, and the gateway."""
    if simulate and ollama_url is not None:
        raise click.UsageError("--simulate and --ollama-url exclude each other")
    # the servers and both stores' clients take 0.5 s to import, which --help need not pay
    from trio_gateway.cli.starting import quickstart as start  # noqa: PLC0415

    sys.exit(start(simulate=simulate, ollama_url=ollama_url, data_dir=data_dir, **options))


@click.command(
    epilog=examples("serve --bind 0.0.0.0:8080 --workers 4", "serve --data-dir /srv/gateway")
)
@click.option(
    "--data-dir", type=FOLDER, help="An installation that runs, to join as a second machine."
)
@listener_options
def serve(data_dir: Path | None, **options: Any) -> None:
    """Serve with the PostgreSQL and Redis of DATABASE_URL and REDIS_URL."""
    # as for quickstart
    from trio_gateway.cli.starting import serve as start  # noqa: PLC0415

    sys.exit(start(data_dir=data_dir, **options))


@click.command(epilog=examples("migrate", "migrate --json"))
@target_options
def migrate(target: Target) -> None:
    """Bring the database to the version that this release expects; forward only."""
    url = database_url(target.data_dir)
    # alembic and SQLAlchemy take 0.5 s to import, which --help need not pay
    from trio_gateway.cli.migrating import Unmigrated, bring_up  # noqa: PLC0415

    try:
        before, after = bring_up(url)
    except Unmigrated as error:
        raise Failure(str(error)) from error
    sentence = (
        f"The database is at {after} already."
        if before == after
        else f"The database is at {after}; it was {before or 'empty'}."
    )
    show_done({"before": before, "version": after}, sentence, as_json=target.as_json)
