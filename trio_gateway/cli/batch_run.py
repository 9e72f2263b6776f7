"""`batch run`: a file of one's own as a batch of a tenant's, followed to its end."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import click

from trio_gateway.cli.batch_desk import row_of
from trio_gateway.cli.batch_intake import check, keep, read_endpoint
from trio_gateway.cli.batch_places import check_places
from trio_gateway.cli.batch_watch import Ending, watch
from trio_gateway.cli.door import Failure
from trio_gateway.cli.file_copy import copy
from trio_gateway.cli.session import ACTOR
from trio_gateway.cli.show import show_json
from trio_gateway.core.batches import Wanted
from trio_gateway.dialects.openai_batch_create import HEADER, header_key
from trio_gateway.services.account_rows import write_event
from trio_gateway.services.files.files import new_file_id

if TYPE_CHECKING:
    from pathlib import Path

    from trio_gateway.cli.session import Desk
    from trio_gateway.core.batches import Batch
    from trio_gateway.core.domain import Principal

Row = dict[str, Any]

_OF_KEY = "SELECT id FROM gateway.batches WHERE tenant_id = $1 AND idempotency_key = $2"


@dataclass(frozen=True, kw_only=True)
class Order:
    """The command line of `batch run`."""

    file: Path
    tenant: str | None = None
    key: str | None = None
    endpoint: str | None = None
    output: Path | None = None
    errors: Path | None = None
    idempotency_key: str | None = None
    force: bool = False

    @property
    def output_path(self) -> Path:
        """Where the answers go."""
        return self.output or self.file.with_name(f"{self.file.name}.output.jsonl")

    @property
    def errors_path(self) -> Path:
        """Where the failures go."""
        return self.errors or self.file.with_name(f"{self.file.name}.errors.jsonl")


async def perform(desk: Desk, order: Order, *, as_json: bool) -> Ending:
    """Store the file, make the batch, follow it, and write what came of it.

    Raises Refused, CallerError and Failure for all that is amiss before the batch is made.
    """
    check_places(order.file, order.output_path, order.errors_path, force=order.force)
    order = replace(order, idempotency_key=_checked(order.idempotency_key))
    digest = await check(order.file, desk.addresses.settings.max_file_bytes)
    endpoint = order.endpoint or await read_endpoint(order.file)
    key = await _key(desk, order)
    made = await _made(desk, order, endpoint, key, digest)
    if not as_json:
        click.echo(f"{made.id} is a batch of {key['tenant']}, in the name of {_name(key)}.")
    ending = await watch(desk, made.id, as_json=as_json)
    if ending.interrupted:
        return ending
    written = await _write(desk, order, ending.batch)
    if as_json:
        show_json(row_of(ending.batch, key["tenant"]) | written)
    else:
        click.echo(
            "".join(f"{what}: {place}\n" for what, place in written.items() if place), nl=False
        )
    return ending


async def _key(desk: Desk, order: Order) -> Row:
    """Return the key that the batch is made in the name of, which must work."""
    if order.key is not None:
        key = await desk.keyring.show(order.key, order.tenant)
        if key["state"] != "active":
            raise Failure(f"--key: the key is {key['state']}")
        return key
    keys = await desk.keyring.listing(order.tenant)
    if order.tenant is None and len({key["tenant_id"] for key in keys}) > 1:
        raise Failure("--tenant: there are several tenants with keys; name one")
    live = [key for key in keys if key["state"] == "active"]
    if len(live) != 1:
        many = f"there are {len(live)} live keys; name one" if live else "there is no live key"
        raise Failure(f"--key: {many}")
    return live[0]


async def _made(desk: Desk, order: Order, endpoint: str, key: Row, digest: str) -> Batch:
    """Return the batch, be it new or the one that the idempotency key has made already."""
    principal: Principal = await desk.tenants.recall(key["id"])
    tenant_id = principal.tenant.id
    wanted = Wanted(new_file_id(), endpoint, idempotency_key=order.idempotency_key)
    known = None
    if order.idempotency_key is not None:
        # one file is one id, so that running it again asks for the very same batch
        name = f"{tenant_id} {order.idempotency_key} {digest}"
        same = f"file-{hashlib.sha256(name.encode()).hexdigest()[:24]}"
        wanted = replace(wanted, input_file_id=same)
        known = await desk.postgres.fetch_one(_OF_KEY, tenant_id, order.idempotency_key)
    if known is None:
        await keep(desk, order.file, tenant_id, wanted.input_file_id)
    batch, replayed = await desk.batches.create(principal, wanted)
    if not replayed:
        act = (ACTOR, "batch.create", batch.id)
        await desk.postgres.run(write_event, act, None, row_of(batch, key["tenant"]))
    return batch


async def _write(desk: Desk, order: Order, batch: Batch) -> dict[str, str | None]:
    """Write the files that the batch left, and return where they are."""
    written: dict[str, str | None] = {"output": None, "errors": None}
    for what, file_id, place in (
        ("output", batch.output_file_id, order.output_path),
        ("errors", batch.error_file_id, order.errors_path),
    ):
        if file_id is not None:
            await copy(desk, file_id, place, force=order.force)
            written[what] = str(place)
    return written


def _checked(key: str | None) -> str | None:
    """Read the key as the header of that name is read; raises InvalidCall."""
    return None if key is None else header_key([(HEADER, os.fsencode(key))])


def _name(key: Row) -> str:
    return str(key["name"] or key["id"])
