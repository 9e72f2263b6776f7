"""What pages ask before an act: answered wrongly, it is asked again with all that was written."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from quart import request

from trio_gateway.services.account_rows import NotFound, Refused
from trio_gateway.web.admin.dashboard.forms import fields
from trio_gateway.web.admin.errors import as_gateway_error

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from quart import Response

    from trio_gateway.web.admin.dashboard.forms import Fields


@dataclass(frozen=True, slots=True)
class Answer:
    """What was written into the question whose form goes to `action`, and what is wrong with it."""

    action: str = ""
    values: dict[str, Any] = field(default_factory=dict)
    error: Refused | None = None

    @property
    def status(self) -> int:
        """The status of the page that asks again."""
        return 200 if self.error is None else as_gateway_error(self.error).status

    def to(self, action: str) -> Answer:
        """Return this one to the question of that address, and no answer to others."""
        return self if action == self.action else NONE


NONE = Answer()


async def answered(
    act: Callable[[Fields], Awaitable[Response]], again: Callable[[Answer], Awaitable[Response]]
) -> Response:
    """Do what the form asks for; where it is refused, show the page that asked.

    Raises NotFound where that page is gone too.
    """
    form = await fields()
    try:
        return await act(form)
    except NotFound:
        raise
    except Refused as error:
        return await again(Answer(request.path, form.written, error))
