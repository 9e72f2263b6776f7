"""The nouns of files and batches: frozen values, as the rest of the domain."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datetime import datetime

ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings")
WINDOW = "24h"
WINDOW_SECONDS = 86_400
PURPOSE = "batch"  # of a file that can be a batch's input
MOST_LINES = 50_000
MOST_ERRORS = 100  # in `errors.data`
MOST_CUSTOM_ID = 512  # characters


class Status(StrEnum):
    """Where a batch stands.

    It goes on as `validating`, `in_progress`, `finalizing`, `completed`. A file that is refused
    makes it `failed`, a cancel `cancelling` and then `cancelled`, the end of its window `expired`;
    these three and `completed` stay.
    """

    VALIDATING = "validating"
    FAILED = "failed"
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    COMPLETED = "completed"
    EXPIRED = "expired"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"


TERMINAL = frozenset({Status.FAILED, Status.COMPLETED, Status.EXPIRED, Status.CANCELLED})


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One file of a tenant; its contents are in the blob store under `blob`."""

    id: str
    tenant_id: str
    purpose: str
    filename: str
    bytes: int
    blob: str
    created_at: datetime
    expires_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Wanted:
    """A batch that a caller asked for; `idempotency_key` is no part of what is compared."""

    input_file_id: str
    endpoint: str
    completion_window: str = WINDOW
    metadata: dict[str, str] | None = None
    output_expires_after: int | None = None  # seconds
    idempotency_key: str | None = None


@dataclass(frozen=True, slots=True)
class Batch:
    """One batch as its row has it."""

    id: str
    tenant_id: str
    key_id: str
    endpoint: str
    input_file_id: str
    completion_window: str
    status: Status
    created_at: datetime
    expires_at: datetime
    input_blob: str | None = None
    metadata: dict[str, str] | None = None
    output_expires_after: int | None = None  # seconds
    idempotency_key: str | None = None
    errors: list[LineError] | None = None
    output_file_id: str | None = None
    error_file_id: str | None = None
    models: tuple[str, ...] = ()  # canonical
    in_progress_at: datetime | None = None
    finalizing_at: datetime | None = None
    completed_at: datetime | None = None
    failed_at: datetime | None = None
    expired_at: datetime | None = None
    cancelling_at: datetime | None = None
    cancelled_at: datetime | None = None
    total: int = 0
    completed: int = 0
    failed: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    paused: str | None = None


@dataclass(frozen=True, slots=True)
class LineError:
    """Why a file cannot be a batch; `line` is physical, from 1, None for the file as a whole."""

    code: str
    message: str
    param: str | None = None
    line: int | None = None

    def shape(self) -> dict[str, Any]:
        """Return the entry of `errors.data`."""
        return {
            "code": self.code,
            "line": self.line,
            "message": self.message,
            "param": self.param,
        }


@dataclass(frozen=True, slots=True)
class Line:
    """One valid request of a batch's file: where it stands and what the engine must know of it."""

    number: int  # physical, from 1
    custom_id: str
    model: str  # canonical
    start: int  # in the input blob, in bytes
    length: int  # without its line break
