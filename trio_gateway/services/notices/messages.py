"""What a webhook says, as JSON."""

from __future__ import annotations

from datetime import date
from typing import TYPE_CHECKING, Any

import orjson

if TYPE_CHECKING:
    from collections.abc import Mapping

THRESHOLD = "budget.threshold"
TEST = "webhook.test"


def message(row: Mapping[str, Any]) -> bytes:
    """Write a claimed delivery; the same at each attempt but for names that were changed.

    `{"type", "timestamp", "data"}`: of a notice, `data` has tenant and key (`{"id", "name"}`, or
    null), threshold (per cent), period, period_start (null for a total), budget and spent
    (tokens). Of a test it holds the webhook.
    """
    if row["notice_id"] is None:
        webhook = {"id": row["webhook_id"], "name": row["webhook"]}
        return _written(TEST, row["created_at"], {"webhook": webhook})
    return _written(THRESHOLD, row["at"], notice_data(row))


def notice_data(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a notice says, of a row with the names `tenant` and `key`."""
    key = None if row["key_id"] is None else {"id": row["key_id"], "name": row["key"]}
    return {
        "tenant": {"id": row["tenant_id"], "name": row["tenant"]},
        "key": key,
        "threshold": row["threshold"],
        "period": row["period"],
        "period_start": began(row["period_start"]),
        "budget": row["budget"],
        "spent": row["spent"],
    }


def began(first: date) -> str | None:
    """Write the first day of a period; None where it never began."""
    return None if first == date.min else first.isoformat()


def _written(kind: str, at: Any, data: dict[str, Any]) -> bytes:
    return orjson.dumps({"type": kind, "timestamp": at, "data": data}, option=orjson.OPT_UTC_Z)
