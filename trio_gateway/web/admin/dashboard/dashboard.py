"""The dashboard's pages, put together behind one door."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trio_gateway.web.admin.dashboard import (
    admins,
    audit,
    batches,
    calls,
    desk,
    docs,
    events,
    key_list,
    keys,
    ledger,
    login,
    machines,
    models,
    notices,
    overview,
    tenants,
    usage,
)

if TYPE_CHECKING:
    from quart import Quart

PAGES = (
    login,
    overview,
    usage,
    calls,
    tenants,
    key_list,
    keys,
    models,
    batches,
    ledger,
    audit,
    notices,
    machines,
    admins,
    docs,
    events,
)


for module in PAGES:
    desk.blueprint.register_blueprint(module.blueprint)


def add_dashboard(app: Quart) -> None:
    """Register every page; streams end when the listener does."""
    app.register_blueprint(desk.blueprint)
    app.after_serving(events.leave)
