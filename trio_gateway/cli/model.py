"""`trio-gateway model ...`: what the operator decides for a model, for every tenant."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import click

from trio_gateway.cli.door import work
from trio_gateway.cli.options import (
    NONE,
    Kind,
    Lifted,
    Limit,
    Model,
    examples,
    given,
    target_options,
)
from trio_gateway.cli.show import show_done, show_rows

if TYPE_CHECKING:
    from trio_gateway.cli.options import Target

COLUMNS = ("name", "installed", "blocked", "weight", "num_ctx", "digest", "installed_digest")
EMPTY = "No model is known, and none has a policy. `trio-gateway doctor` asks each Ollama."
UNSET = {"blocked": False, "weight": 1.0, "num_ctx": None, "digest": None, "updated_at": None}
_DIGEST = re.compile(r"(?:sha256:)?([0-9a-f]{64})")


class Weight(Kind):
    """What a token of the model counts, 0 to 1000, in thousandths."""

    name = "weight"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return thousandths."""
        if isinstance(value, int):
            return value
        if not re.fullmatch(r"[0-9]{1,4}(\.[0-9]{1,3})?", value) or Decimal(value) > 1000:
            self.fail("must be 0 to 1000 with at most three decimals.", param, ctx)
        return int(Decimal(value) * 1000)


class Digest(Kind):
    """A model's digest as `ollama list` and /api/tags give it, or none."""

    name = "sha256|none"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> str | Lifted:
        """Return 64 hexadecimal digits, or NONE."""
        if isinstance(value, Lifted) or value.lower() == "none":
            return NONE
        digits = _DIGEST.fullmatch(value.lower())
        if digits is None:
            self.fail("must be 64 hexadecimal digits, or none.", param, ctx)
        return digits.group(1)


@click.group(
    epilog=examples(
        "model block deepseek-r1:671b",
        "model weight llama3.3:70b 8.5",
        "model pin llama3.2 --num-ctx 8192",
    )
)
def model() -> None:
    """Models: block them, weigh their tokens, pin their size and digest."""


@model.command(name="list", epilog=examples("model list", "model list --json"))
@target_options
def list_(target: Target) -> None:
    """List the models that were discovered, and those that have a policy.

    `installed` is empty where Redis does not say what was discovered.
    """
    # Redis and its protocol are loaded by the commands that ask it, not by --help.
    from trio_gateway.cli.books import survey  # noqa: PLC0415

    policies, found = work(target, survey)
    known = {row["name"]: listed(row) for row in policies}
    rows = []
    for name in sorted(known.keys() | (found or {}).keys()):
        row = known.get(name) or {"name": name, **UNSET}
        installed = None if found is None else name in found
        digest = (found or {}).get(name)
        rows.append({**row, "installed": installed, "installed_digest": digest})
    show_rows(rows, COLUMNS, EMPTY, as_json=target.as_json)


@model.command(epilog=examples("model block llama3.2"))
@click.argument("name", type=Model())
@target_options
def block(name: str, target: Target) -> None:
    """Refuse a model to everyone; no grant beats a block."""
    change(name, {"blocked": True}, "block", target, f"{name} is blocked.")


@model.command(epilog=examples("model unblock llama3.2"))
@click.argument("name", type=Model())
@target_options
def unblock(name: str, target: Target) -> None:
    """Leave a model to what tenants and keys allow."""
    change(name, {"blocked": False}, "unblock", target, f"{name} is not blocked.")


@model.command(epilog=examples("model weight llama3.3:70b 8.5"))
@click.argument("name", type=Model())
@click.argument("weight", type=Weight())
@target_options
def weight(name: str, weight: int, target: Target) -> None:
    """Count each token of a model WEIGHT times, in budgets and token windows."""
    sentence = f"A token of {name} counts {weight / 1000:g}."
    change(name, {"milli_weight": weight}, "weight", target, sentence)


@model.command(
    epilog=examples("model pin llama3.2 --num-ctx 8192", "model pin llama3.2 --digest none")
)
@click.argument("name", type=Model())
@click.option("--num-ctx", type=Limit(1, 2**31 - 1), help="The context every call gets.")
@click.option("--digest", type=Digest(), help="Refuse the model where it is not this one.")
@target_options
def pin(name: str, target: Target, **options: Any) -> None:
    """Fix a model's context size or digest; `none` lets go of it."""
    values = given(options)
    if not values:
        raise click.UsageError("model pin needs --num-ctx or --digest")
    change(name, values, "pin", target, f"{name} is pinned as told.")


def change(name: str, values: dict[str, Any], act: str, target: Target, sentence: str) -> None:
    """Set some columns of a model's policy and say so."""
    row = work(target, lambda desk: desk.models.set(name, values, f"model.{act}"))
    show_done(listed(row), sentence, as_json=target.as_json)


def listed(row: dict[str, Any]) -> dict[str, Any]:
    """Show the weight as it was given."""
    rest = {name: value for name, value in row.items() if name != "milli_weight"}
    return {**rest, "weight": row["milli_weight"] / 1000}
