"""What tenants and keys share: limits, and a temporary increase of a budget."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Annotated, Any

from pydantic import Field

from trio_gateway.core.errors import InvalidCall
from trio_gateway.services.account_rows import BIGGEST
from trio_gateway.services.extensions import LONGEST
from trio_gateway.web.admin.api.shapes import Answer, Body, Count, Instant, ModelName, Period

MaxOutput = Annotated[int, Field(ge=1, le=BIGGEST)]
Models = Annotated[list[ModelName], Field(max_length=1000)]


class Limits(Body):
    """Limits: null is none at all, 0 lets nothing pass."""

    requests_per_minute: Count | None = None
    tokens_per_minute: Count | None = None
    budget: Count | None = None
    budget_period: Period = "month"
    max_output_tokens: MaxOutput | None = None

    def columns(self) -> dict[str, Any]:
        """Return what was named as columns, each model once."""
        values = self.given()
        if isinstance(values.get("models"), Sequence):
            values["models"] = sorted(set(values["models"]))
        return values


class Extension(Body):
    """Tokens beyond the budget, until an instant or for some seconds: one of the two."""

    tokens: Annotated[int, Field(ge=1, le=BIGGEST)]
    until: Instant | None = None
    seconds: Annotated[int, Field(ge=1, le=int(LONGEST.total_seconds()))] | None = None

    @property
    def end(self) -> datetime | timedelta:
        """When it ends; raises InvalidCall where that is not said, or twice."""
        if (self.until is None) is (self.seconds is None):
            raise InvalidCall("One of 'until' and 'seconds' says when it ends.", param="until")
        return self.until or timedelta(seconds=self.seconds or 0)


class Limited(Answer):
    """Columns of whatever has limits. `effective_budget` includes an increase in force."""

    requests_per_minute: int | None
    tokens_per_minute: int | None
    budget: int | None
    budget_period: str
    budget_extra: int | None = None
    budget_extra_until: datetime | None = None
    effective_budget: int | None = None
    max_output_tokens: int | None
    disabled_at: datetime | None
    created_at: datetime
    updated_at: datetime
