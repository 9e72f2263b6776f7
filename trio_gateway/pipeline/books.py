"""The operator's books, wired for one actor: what commands, the admin API and the dashboard do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from trio_gateway.services.accounts import Accounts
from trio_gateway.services.admins import AdminBook
from trio_gateway.services.batches.book import BatchBook
from trio_gateway.services.files.book import FileBook
from trio_gateway.services.keyring import Keyring
from trio_gateway.services.notices.notices import Notices
from trio_gateway.services.notices.webhooks import WebhookBook
from trio_gateway.services.policies import ModelBook
from trio_gateway.services.reports import Reports
from trio_gateway.services.secrets import Secrets

if TYPE_CHECKING:
    from trio_gateway.clients.postgres import Postgres


@dataclass(frozen=True, kw_only=True)
class Books:
    """Each change that is made through them is recorded under the actor's name."""

    accounts: Accounts
    keyring: Keyring
    models: ModelBook
    reports: Reports
    batches: BatchBook
    files: FileBook
    admins: AdminBook
    notices: Notices
    webhooks: WebhookBook


def books_of(
    postgres: Postgres,
    installation_secret: bytes,
    actor: str,
    *,
    hashing: Secrets | None = None,
    webhook_hosts: str = "",
    keep_last_admin: bool = False,
) -> Books:
    """Wire the books; they keep nothing, so that each request may have its own.

    `webhook_hosts` is the setting; see AdminBook for `keep_last_admin`.
    """
    hashing = hashing or Secrets()
    return Books(
        accounts=Accounts(postgres, actor),
        keyring=Keyring(postgres, installation_secret, actor, hashing),
        models=ModelBook(postgres, actor),
        reports=Reports(postgres),
        batches=BatchBook(postgres),
        files=FileBook(postgres, actor),
        admins=AdminBook(postgres, actor, hashing, keep_last=keep_last_admin),
        notices=Notices(postgres),
        webhooks=WebhookBook(postgres, actor, webhook_hosts),
    )
