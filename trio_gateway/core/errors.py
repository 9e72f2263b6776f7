"""The exception tree; every refusal and failure a caller can see has one class here.

GatewayError                500 internal_error          api_error
├─ CallerError
│  ├─ Unauthenticated       401 invalid_api_key         invalid_request_error
│  ├─ ModelNotFound         403 model_not_found         invalid_request_error
│  ├─ EndpointNotAllowed    403 endpoint_not_allowed    invalid_request_error
│  ├─ InvalidCall           400 invalid_request         invalid_request_error
│  │  ├─ CallTooLarge       413 request_too_large       invalid_request_error
│  │  └─ UnsupportedMedia   415 unsupported_media_type  invalid_request_error
│  ├─ NotFound              404 not_found               invalid_request_error (files, batches)
│  ├─ Conflict              409 conflict                invalid_request_error
│  ├─ MethodNotAllowed      405 method_not_allowed      invalid_request_error
│  ├─ BodyTimeout           408 request_timeout         invalid_request_error
│  ├─ LimitReached          429
│  │  ├─ RateLimited        429 rate_limit_exceeded     rate_limit_error
│  │  └─ BudgetExhausted    429 insufficient_quota      insufficient_quota
│  └─ ClientStalled         499 client_stalled          api_error (ledger only)
├─ UpstreamError            502 upstream_error          api_error
│  ├─ UpstreamUnavailable   503 upstream_unavailable    api_error
│  │  └─ Unreachable        503 upstream_unavailable    api_error
│  └─ UpstreamTimeout       504 upstream_timeout        api_error
├─ Overloaded               503 overloaded              api_error (queue full, queue wait over)
├─ ShuttingDown             503 shutting_down           api_error
├─ CallCut                  503 call_cut                api_error (by an operator)
└─ StoreUnavailable         503 store_unavailable       api_error

Texts name fields and rules; they never echo a value, a host, a path or a key.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from trio_gateway.core.domain import Standing


class GatewayError(Exception):
    """Any failure that has an HTTP answer.

    `param` names the offending field, `retry_after` is in seconds, and
    `should_retry` becomes `x-should-retry` where it is not None.
    """

    status: ClassVar[int] = 500
    type: ClassVar[str] = "api_error"
    default_code: ClassVar[str] = "internal_error"
    default_message: ClassVar[str] = "The gateway met an internal error."

    def __init__(
        self,
        message: str | None = None,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: float | None = None,
        should_retry: bool | None = None,
    ) -> None:
        """Take the message from the class where none is given."""
        self.message = message or self.default_message
        self.param = param
        self.code = code or self.default_code
        self.retry_after = retry_after
        self.should_retry = should_retry
        super().__init__(self.message)


class CallerError(GatewayError):
    """The caller can mend this one."""

    status = 400
    type = "invalid_request_error"
    default_code = "invalid_request"
    default_message = "The request is not valid."


class Unauthenticated(CallerError):
    """Raised for every reason a key is not honored; the one answer hides which."""

    status = 401
    default_code = "invalid_api_key"
    default_message = "Incorrect API key provided."


class ModelNotFound(CallerError):
    """Raised for a model that is absent and for one that is not allowed, alike."""

    status = 403
    default_code = "model_not_found"
    default_message = "The model does not exist or you do not have access to it."

    def __init__(self, message: str | None = None) -> None:
        """Name the `model` field, whatever was wrong."""
        super().__init__(message, param="model")


class EndpointNotAllowed(CallerError):
    """Raised for every raw path outside the route table."""

    status = 403
    default_code = "endpoint_not_allowed"
    default_message = "This endpoint is not allowed."


class InvalidCall(CallerError):
    """Raised by the dialects for a body they refuse; `param` names the field."""


class CallTooLarge(InvalidCall):
    """Raised when a body passes its limit."""

    status = 413
    default_code = "request_too_large"
    default_message = "The request body is too large."


class UnsupportedMedia(InvalidCall):
    """Raised for any Content-Encoding, and for an upload that is not multipart."""

    status = 415
    default_code = "unsupported_media_type"
    default_message = "Content-Encoding is not supported."


class NotFound(CallerError):
    """Raised for the id of a file or batch that is not there, or not the caller's, alike."""

    status = 404
    default_code = "not_found"
    default_message = "There is nothing with this id."

    def __init__(self, message: str | None = None, *, param: str | None = "id") -> None:
        """Name the `id`, whatever was wrong with it, or what else named nothing."""
        super().__init__(message, param=param)


class Conflict(CallerError):
    """Raised where the request contradicts what is there already; a retry cannot help."""

    status = 409
    default_code = "conflict"
    default_message = "The request conflicts with an earlier one."

    def __init__(
        self, message: str | None = None, *, param: str | None = None, code: str | None = None
    ) -> None:
        """As GatewayError; clients are told not to retry, which some do on 409."""
        super().__init__(message, param=param, code=code, should_retry=False)


class MethodNotAllowed(CallerError):
    """Raised for a known path with another method; carries the `Allow` value."""

    status = 405
    default_code = "method_not_allowed"
    default_message = "This method is not allowed here."

    def __init__(self, allow: str) -> None:
        """`allow` is the header's value, such as `GET, HEAD`."""
        super().__init__()
        self.allow = allow


class BodyTimeout(CallerError):
    """Raised when a body does not arrive in time."""

    status = 408
    default_code = "request_timeout"
    default_message = "The request body did not arrive in time."


class LimitReached(CallerError):
    """A limit refused the call; `standing` is what the caller has left, for the headers."""

    status = 429
    default_code = "rate_limit_exceeded"

    def __init__(
        self,
        message: str | None = None,
        *,
        retry_after: float | None = None,
        should_retry: bool | None = None,
        standing: Standing | None = None,
    ) -> None:
        """As GatewayError, with the standing."""
        super().__init__(message, retry_after=retry_after, should_retry=should_retry)
        self.standing = standing


class RateLimited(LimitReached):
    """Raised when a window is full; `retry_after` says when this call would fit."""

    type = "rate_limit_error"
    default_code = "rate_limit_exceeded"
    default_message = "Rate limit reached."


class BudgetExhausted(LimitReached):
    """Raised when a budget cannot hold the call; retrying does not help."""

    type = "insufficient_quota"
    default_code = "insufficient_quota"
    default_message = "You exceeded your current token budget."


class ClientStalled(CallerError):
    """Raised when the client takes no bytes for the write-stall limit."""

    status = 499
    type = "api_error"
    default_code = "client_stalled"
    default_message = "The client stopped reading."


class UpstreamError(GatewayError):
    """Raised for any answer from upstream that the gateway cannot use."""

    status = 502
    default_code = "upstream_error"
    default_message = "The model server failed to answer this request."


class UpstreamUnavailable(UpstreamError):
    """Raised when no backend can be reached, or it says that it is busy."""

    status = 503
    default_code = "upstream_unavailable"
    default_message = "The model server is not available."


class Unreachable(UpstreamUnavailable):
    """Raised when no connection to a backend could be made: it has seen nothing of the call."""


class UpstreamTimeout(UpstreamError):
    """Raised when upstream passes the connect, first-byte, idle or total limit."""

    status = 504
    default_code = "upstream_timeout"
    default_message = "The model server took too long."


class Overloaded(GatewayError):
    """Raised when the queue in front of the backends is full or too slow."""

    status = 503
    default_code = "overloaded"
    default_message = "The server is busy; try again shortly."


class ShuttingDown(GatewayError):
    """Raised for new calls, and for the last of the old ones, while draining."""

    status = 503
    default_code = "shutting_down"
    default_message = "The server is shutting down; try again."


class CallCut(GatewayError):
    """Raised for a call that an operator ended; asking again is not what they want."""

    status = 503
    default_code = "call_cut"
    default_message = "An operator ended this call."

    def __init__(self, message: str | None = None) -> None:
        """Tell clients not to retry, which they do on 503."""
        super().__init__(message, should_retry=False)


class StoreUnavailable(GatewayError):
    """Raised when PostgreSQL or Redis cannot be asked; the gateway fails closed."""

    status = 503
    default_code = "store_unavailable"
    default_message = "The service is temporarily unavailable; try again."
