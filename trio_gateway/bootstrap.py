"""The first tenant, key and admin, so that a new installation can be used at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trio_gateway.clients.bridge import open_bridge
from trio_gateway.clients.postgres import NotMigrated, open_postgres
from trio_gateway.clients.schema import SCHEMA_VERSION
from trio_gateway.core.keys import last4, new_key
from trio_gateway.core.officers import LOOKUP_LENGTH, lookup_of, new_token
from trio_gateway.services.account_rows import find_tenant, insert, new_id, shown, write_event
from trio_gateway.services.admin_rows import LEGACY
from trio_gateway.services.secrets import Secrets
from trio_gateway.services.tenant_rows import read_installation_secret

if TYPE_CHECKING:
    from trio_gateway.clients.postgres import Connection
    from trio_gateway.core.keys import NewKey

NAME = "default"
ADMIN = "admin"
ACTOR = "bootstrap"
LOCK = 0x7467_626F  # two first starts on one database make one key


async def first_key(database_url: str) -> tuple[str, str | None]:
    """Return the name of the first tenant, and the text of its key if it was made just now.

    A tenant `default` with every model, and a key `default`, are made only where there is no
    tenant at all. Raises StoreUnavailable, NotMigrated, and ValueError for an unusable URL.
    """
    async with open_bridge() as bridge, open_postgres(bridge, database_url, size=1) as postgres:
        secret = await read_installation_secret(postgres)
        oldest = await postgres.run(_oldest)
        if oldest is not None:
            return oldest, None
        key = new_key(secret)
        encoded = await Secrets().hash(key.secret)
        return await postgres.transact(_first, key, encoded)


async def first_admin(database_url: str, digest: str | None) -> str | None:
    """Return the token of the first admin if it was made just now.

    `digest` is the SHA-256 of a token that an earlier release gave out: it goes on being honored
    and no other is made. Raises as `first_key`.
    """
    async with open_bridge() as bridge, open_postgres(bridge, database_url, size=1) as postgres:
        if await postgres.fetch("SELECT FROM gateway.admins LIMIT 1"):
            return None
        if digest is not None:
            await postgres.transact(_first_admin, digest[:LOOKUP_LENGTH], LEGACY + digest)
            return None
        token = new_token()
        encoded = await Secrets().hash(token)
        made = await postgres.transact(_first_admin, lookup_of(token), encoded)
        return token if made else None


async def _first_admin(connection: Connection, lookup: str, encoded: str) -> bool:
    await connection.execute("SELECT pg_advisory_xact_lock($1)", LOCK)
    if await connection.fetchval("SELECT count(*) FROM gateway.admins"):
        return False
    values = {"id": new_id("adm_"), "name": ADMIN, "role": "admin"}
    await insert(connection, "admins", {**values, "lookup": lookup, "hash": encoded})
    await write_event(connection, (ACTOR, "admin.create", values["id"]), None, values)
    return True


async def is_current(database_url: str) -> bool:
    """Tell whether the schema is this release's; if so, see to the coming partitions.

    Cheaper than to load the migrations and find nothing to do. Raises StoreUnavailable.
    """
    async with open_bridge() as bridge, open_postgres(bridge, database_url, size=1) as postgres:
        try:
            found = await postgres.fetch_one("SELECT version_num FROM gateway.alembic_version")
        except NotMigrated:
            return False
        if found is None or found["version_num"] != SCHEMA_VERSION:
            return False
        await postgres.fetch("SELECT gateway.ensure_partitions()")
        return True


async def _oldest(connection: Connection) -> str | None:
    name: str | None = await connection.fetchval(
        "SELECT name FROM gateway.tenants ORDER BY created_at, id LIMIT 1"
    )
    return name


async def _first(connection: Connection, key: NewKey, encoded: str) -> tuple[str, str | None]:
    await connection.execute("SELECT pg_advisory_xact_lock($1)", LOCK)
    oldest = await _oldest(connection)
    if oldest is not None:
        return oldest, None
    tenant_id, key_id = new_id("ten_"), new_id("key_")
    await insert(connection, "tenants", {"id": tenant_id, "name": NAME, "all_models": True})
    made = {
        "id": key_id,
        "tenant_id": tenant_id,
        "name": NAME,
        "public_id": key.public_id,
        "hash": encoded,
        "last4": last4(key.text),
    }
    await insert(connection, "api_keys", made)
    tenant = await find_tenant(connection, tenant_id)
    await write_event(connection, (ACTOR, "tenant.create", tenant_id), None, tenant)
    await write_event(connection, (ACTOR, "key.create", key_id), None, shown(made))
    return NAME, key.text
