"""The texts of claimed lines, read from the input blob some neighbors at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trio_gateway.clients.blobs import BlobMissing

if TYPE_CHECKING:
    from trio_gateway.clients.blobs import Blobs
    from trio_gateway.services.batches.lines import Claim, LeasedLine

AHEAD_BYTES = 256 * 1024  # a longer line is read by itself


class Texts:
    """Reads the lines of one claim, asked for in their order."""

    def __init__(self, blobs: Blobs, claim: Claim) -> None:
        """Read nothing yet."""
        self._blobs = blobs
        self._claim = claim
        self._start = 0
        self._window = b""

    async def read(self, line: LeasedLine) -> bytes | None:
        """Return a line as it stands in the file; None where the blob is gone.

        Raises StoreUnavailable.
        """
        if not self._has(line):
            end = line.start + line.length
            for other in self._claim.lines:
                if end < other.start + other.length <= line.start + AHEAD_BYTES:
                    end = other.start + other.length
            try:
                self._window = await self._blobs.read(
                    self._claim.input_blob, line.start, end - line.start
                )
            except BlobMissing:
                return None
            self._start = line.start
        at = line.start - self._start
        return self._window[at : at + line.length]

    def _has(self, line: LeasedLine) -> bool:
        at = line.start - self._start
        return at >= 0 and at + line.length <= len(self._window)
