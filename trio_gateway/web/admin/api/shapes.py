"""What the bodies, queries and answers of the admin API have in common."""

import re
from datetime import UTC, datetime
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    WithJsonSchema,
)

from trio_gateway.core.models import MAX_NAME, InvalidModelName, canonical
from trio_gateway.services.account_rows import BIGGEST

T = TypeVar("T")

PAGE = 100  # rows of a page where nothing is said
MOST = 1000  # rows of a page
_INSTANT = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,6})?"
    r"([Zz]|[+-][0-9]{2}:[0-9]{2})"
)


class Body(BaseModel):
    """What a request may say: nothing but this, and each thing in its own type."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    def given(self) -> dict[str, Any]:
        """Return what was named, null where it was null."""
        return {name: getattr(self, name) for name in self.model_fields_set}


class Change(Body):
    """A change: what is not named stays as it is, and something must be named."""

    model_config = ConfigDict(json_schema_extra={"minProperties": 1})


class Query(BaseModel):
    """What the query string may say, once each."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Nothing(Query):
    """No parameter at all."""


class Answer(BaseModel):
    """What an answer holds; a column that is not named here is never shown."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class Page(Answer, Generic[T]):
    """One page of a list. Give `next` as `cursor` for the page after it; null on the last."""

    data: list[T]
    next: str | None = None


class Whole(Answer, Generic[T]):
    """A list that has no pages."""

    data: list[T]


class Gone(Answer):
    """What was deleted."""

    id: str
    name: str | None = None
    deleted: Literal[True] = True


class Fault(Answer):
    """Why a request was refused; `param` names the field at fault, where there is one."""

    message: str
    type: str
    param: str | None
    code: str


class Problem(Answer):
    """An error."""

    error: Fault


def _instant(value: object) -> datetime:
    if not isinstance(value, str) or not _INSTANT.fullmatch(value):
        raise ValueError("must be a time with its zone, such as 2030-12-31T00:00:00Z")
    try:
        at = datetime.fromisoformat(value.upper()).astimezone(UTC)
    except (ValueError, OverflowError):
        raise ValueError("is no time there is") from None
    if not 1970 <= at.year < 9000:
        raise ValueError("must be a time from 1970 to 8999")
    return at


def _future(at: datetime) -> datetime:
    if at <= datetime.now(UTC):
        raise ValueError("must be in the future")
    return at


def digits(value: object) -> int:
    # int() alone would take `1_000`, `+5` and digits of other scripts
    if isinstance(value, str) and not re.fullmatch(r"[0-9]{1,19}", value):
        raise ValueError("must be a whole number")
    return int(str(value))


def _model(name: str) -> str:
    try:
        return canonical(name).full
    except InvalidModelName as error:
        raise ValueError(str(error)) from None


Instant = Annotated[
    datetime,
    PlainValidator(_instant),
    WithJsonSchema({"type": "string", "format": "date-time"}),
]
Future = Annotated[Instant, AfterValidator(_future)]
Millis = Annotated[float, AfterValidator(lambda ms: round(ms, 3))]
Count = Annotated[int, Field(ge=0, le=BIGGEST)]
Limit = Annotated[int, BeforeValidator(digits), Field(ge=1, le=MOST, description="Rows of a page.")]
Number = Annotated[int, BeforeValidator(digits)]
Cursor = Annotated[
    str, Field(min_length=1, max_length=500, description="`next` of the page before.")
]
Text = Annotated[str, Field(max_length=200)]
Name = Annotated[str, Field(min_length=1, max_length=200)]  # of something that exists, or its id
ModelName = Annotated[str, Field(min_length=1, max_length=MAX_NAME), AfterValidator(_model)]
Period = Literal["day", "month", "total"]


class Paged(Query):
    """A page of a list."""

    limit: Limit = PAGE
    cursor: Cursor | None = None
