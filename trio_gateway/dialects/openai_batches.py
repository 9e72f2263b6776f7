"""/v1/batches: the batch in OpenAI's shape, and pages of the list."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

import orjson

from trio_gateway.core.errors import InvalidCall

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from trio_gateway.core.batches import Batch

PAGE, MOST_PAGE = 20, 100

_LIMIT = re.compile(r"[0-9]{1,3}", re.ASCII)
_MOST_QUERY_FIELDS = 32


@dataclass(frozen=True, slots=True)
class Page:
    """Which part of the list is wanted: so many, after this id."""

    limit: int = PAGE
    after: str | None = None


def parse_page(query: bytes) -> Page:
    """Read `limit` and `after` from a raw query string. Raises InvalidCall."""
    try:
        pairs = parse_qsl(
            query.decode("latin-1"), keep_blank_values=True, max_num_fields=_MOST_QUERY_FIELDS
        )
    except ValueError:
        raise InvalidCall("The query has too many fields.") from None
    given = [(name, value) for name, value in pairs if name in {"limit", "after"}]
    found = dict(given)
    if len(found) < len(given):
        raise InvalidCall("'limit' and 'after' may each appear once only.")
    text = found.get("limit", str(PAGE))
    if not _LIMIT.fullmatch(text) or not 1 <= int(text) <= MOST_PAGE:
        raise InvalidCall(
            f"'limit' must be an integer from 1 to {MOST_PAGE}.",
            param="limit",
            code="invalid_value",
        )
    return Page(int(text), found.get("after") or None)


def render(batch: Batch) -> bytes:
    """Encode one batch."""
    return orjson.dumps(shape(batch))


def render_list(batches: Sequence[Batch], *, has_more: bool) -> bytes:
    """Encode one page of the list, in the order given; an empty one has null for its ids."""
    page = {
        "object": "list",
        "data": [shape(batch) for batch in batches],
        "first_id": batches[0].id if batches else None,
        "last_id": batches[-1].id if batches else None,
        "has_more": has_more,
    }
    return orjson.dumps(page)


def shape(batch: Batch) -> dict[str, Any]:
    """Return the object; every key is always there, and times are whole unix seconds."""
    errors = [error.shape() for error in batch.errors or ()]
    return {
        "id": batch.id,
        "object": "batch",
        "endpoint": batch.endpoint,
        "model": batch.models[0] if len(batch.models) == 1 else None,
        "errors": {"object": "list", "data": errors} if errors else None,
        "input_file_id": batch.input_file_id,
        "completion_window": batch.completion_window,
        "status": batch.status,
        "output_file_id": batch.output_file_id,
        "error_file_id": batch.error_file_id,
        "created_at": _seconds(batch.created_at),
        "in_progress_at": _seconds(batch.in_progress_at),
        "expires_at": _seconds(batch.expires_at),
        "finalizing_at": _seconds(batch.finalizing_at),
        "completed_at": _seconds(batch.completed_at),
        "failed_at": _seconds(batch.failed_at),
        "expired_at": _seconds(batch.expired_at),
        "cancelling_at": _seconds(batch.cancelling_at),
        "cancelled_at": _seconds(batch.cancelled_at),
        "request_counts": {
            "total": batch.total,
            "completed": batch.completed,
            "failed": batch.failed,
        },
        "usage": {
            "input_tokens": batch.input_tokens,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": batch.output_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": batch.input_tokens + batch.output_tokens,
        },
        "metadata": batch.metadata,
        "paused": batch.paused,
    }


def _seconds(moment: datetime | None) -> int | None:
    return None if moment is None else int(moment.timestamp())
