"""Every noun of the admin API, registered and described."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trio_gateway.web.admin.api import (
    admins,
    audit,
    batches,
    docs,
    files,
    fleet,
    keys,
    ledger,
    models,
    openapi,
    tenants,
    usage,
    webhooks,
)

if TYPE_CHECKING:
    from quart import Quart

NOUNS = (
    tenants,
    keys,
    models,
    usage,
    ledger,
    files,
    batches,
    fleet,
    audit,
    admins,
    webhooks,
    openapi,
    docs,
)


def register_api(app: Quart) -> None:
    """Serve /admin/v1; every route of it must be among NOUNS to be described."""
    for noun in NOUNS:
        app.register_blueprint(noun.section.blueprint)
    openapi.describe(app)
