"""Bodies: bounded in size and time, and never encoded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from werkzeug.exceptions import RequestEntityTooLarge, RequestTimeout

from trio_gateway.core.errors import BodyTimeout, CallTooLarge, UnsupportedMedia

if TYPE_CHECKING:
    from trio_gateway.web.connection import Request


def refuse_encoding(asked: Request) -> None:
    """Raise UnsupportedMedia for any Content-Encoding, on every route."""
    for name, _ in asked.scope["headers"]:
        if name == b"content-encoding":
            raise UnsupportedMedia


async def read_body(asked: Request) -> bytes:
    """Return the whole body; raises CallTooLarge or BodyTimeout."""
    try:
        return await asked.get_data(cache=False, as_text=False, parse_form_data=False)
    except RequestEntityTooLarge:
        raise CallTooLarge from None
    except RequestTimeout:
        raise BodyTimeout from None
