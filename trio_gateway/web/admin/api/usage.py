"""/admin/v1/usage: what was used, from the sums that grow with the ledger."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from datetime import UTC, date, datetime, timedelta
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from trio_gateway.core.errors import InvalidCall
from trio_gateway.services.ledger_pages import LedgerFilter, LedgerPages
from trio_gateway.services.ledger_slots import HOURS_KEPT
from trio_gateway.services.usage import Usage
from trio_gateway.web.admin.api.exports import MEDIA, STEP, Format, export, wanted_format
from trio_gateway.web.admin.api.owners import key_id, tenant_id
from trio_gateway.web.admin.api.sections import Section
from trio_gateway.web.admin.api.shapes import Answer, Instant, Name, Query, Whole, digits
from trio_gateway.web.admin.office import office

section = Section("usage")

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
LONGEST = {"hour": HOURS_KEPT, "day": timedelta(days=400)}
USUAL = {"hour": timedelta(hours=48), "day": timedelta(days=30)}
KEYS_LONGEST = timedelta(days=31)
MOST_KEYS = 50_000  # in an export, which is read at once


class Span(Query):
    """From `since` up to `until`, widened to whole hours or days of UTC."""

    since: Instant | None = None
    until: Instant | None = Field(None, description="Now where nothing is said.")

    def bounds(self, usual: timedelta, longest: timedelta, unit: timedelta) -> list[datetime]:
        """Return both ends on the unit's steps; raises InvalidCall."""
        now = datetime.now(UTC)
        until = _up(self.until or now, unit)
        since = _down(self.since or until - usual, unit)
        if since >= until:
            raise InvalidCall("'since' must be before 'until'.", param="since")
        if until - since > longest + unit:
            raise InvalidCall(
                f"'since' must be at most {longest.days} days before 'until'.", param="since"
            )
        return [since, until]


class UsageQuery(Span):
    """Sums by day or hour, of the greatest and of all others; an export has everybody's."""

    by: Literal["model", "tenant", "outcome"] = "model"
    unit: Literal["day", "hour"] = "day"
    tenant: Name | None = None
    most: Annotated[
        int,
        Field(ge=1, le=50, description="The greatest, in JSON; an export does without."),
        BeforeValidator(digits),
    ] = 8
    format: Format | None = None


class TotalsQuery(Span):
    """Sums over whole hours of the last weeks."""

    tenant: Name | None = None


class KeysQuery(Span):
    """Sums of one tenant's keys, or of one key; at most 31 days."""

    tenant: Name | None = None
    key: Name | None = None
    format: Format | None = None


class Sums(Answer):
    """What was used."""

    requests: int
    failures: int
    prompt_tokens: int
    completion_tokens: int
    charged_tokens: int


class Slot(Answer):
    """Whose sums they are, and when; a null name, `all others`, is all but the greatest."""

    at: date | datetime
    name: str | None
    label: str | None


class UsageRow(Sums, Slot):  # fields of the last base are the first columns
    """Sums of one day or hour and name; a null name, `all others`, is all but the greatest."""


class Totals(Sums):
    """Sums, outcomes by their requests, and the time to the first token, roughly."""

    since: datetime
    until: datetime
    outcomes: dict[str, int]
    ttft_p50_ms: float | None
    ttft_p95_ms: float | None


class Owner(Answer):
    """Whose sums they are; what is gone has no name."""

    key_id: str
    key: str | None
    tenant_id: str
    tenant: str | None


class KeyUsage(Sums, Owner):  # as above
    """Sums of one key; what is gone has no name."""


@section.get("/usage", Whole[UsageRow], query=UsageQuery, media=MEDIA)
async def show_usage(query: UsageQuery) -> Any:
    """Sum requests and tokens by day or hour, and by model, tenant or outcome."""
    wanted = wanted_format(query)
    step = HOUR if query.unit == "hour" else DAY
    since, until = query.bounds(USUAL[query.unit], LONGEST[query.unit], step)
    owner = await tenant_id(query.tenant)
    series = partial(Usage(office().postgres).series, query.by, unit=query.unit, tenant_id=owner)
    if wanted == "json":
        return {"data": await series(since, until, most=query.most)}
    pages = _all(partial(series, most=None), since, until, step)
    return await export("usage", UsageRow, wanted, pages)


@section.get("/usage/totals", Totals, query=TotalsQuery)
async def show_totals(query: TotalsQuery) -> Any:
    """Sum everything, or one tenant's share, over whole hours."""
    since, until = query.bounds(DAY, HOURS_KEPT, HOUR)
    owner = await tenant_id(query.tenant)
    totals = await Usage(office().postgres).totals(since, until, owner)
    return {**totals, "since": since, "until": until}


@section.get("/usage/keys", Whole[KeyUsage], query=KeysQuery, media=MEDIA)
async def show_usage_of_keys(query: KeysQuery) -> Any:
    """Sum the ledger by key, for one tenant or one key: of the 1000 greatest, all in an export."""
    wanted = wanted_format(query)
    if query.tenant is None and query.key is None:
        raise InvalidCall("'tenant' or 'key' is required.", param="tenant")
    since, until = query.bounds(timedelta(days=7), KEYS_LONGEST, HOUR)
    mine = LedgerFilter(
        tenant_id=await tenant_id(query.tenant),
        key_id=await key_id(query.key, query.tenant),
        since=since,
        until=until,
    )
    ledger = LedgerPages(office().postgres)
    if wanted == "json":
        return {"data": await ledger.by_key(mine)}
    rows = await ledger.by_key(mine, MOST_KEYS + 1)
    if len(rows) > MOST_KEYS:
        raise InvalidCall(f"More than {MOST_KEYS} keys: ask for less time.", param="since")
    return await export("usage-by-key", KeyUsage, wanted, _once(rows))


async def _all(
    series: Callable[[datetime, datetime], Awaitable[Sequence[Any]]],
    since: datetime,
    until: datetime,
    step: timedelta,
) -> AsyncGenerator[Sequence[Any], None]:
    """Read everybody's rows, as many hours or days at once as make a page."""
    steps = 1
    while since < until:
        end = min(since + step * steps, until)
        rows = await series(since, end)
        yield rows
        since = end
        steps = max(1, steps // 2) if len(rows) > STEP else steps * 2


async def _once(rows: Sequence[Any]) -> AsyncGenerator[Sequence[Any], None]:
    yield rows


def _down(at: datetime, unit: timedelta) -> datetime:
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    return at - (at - epoch) % unit


def _up(at: datetime, unit: timedelta) -> datetime:
    below = _down(at, unit)
    return below if below == at else below + unit
