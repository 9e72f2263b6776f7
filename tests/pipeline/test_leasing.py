"""What a worker holds of the queue, over a real PostgreSQL."""

from __future__ import annotations

import trio

from tests.services.test_batch_lines import Queue, claimed
from trio_gateway.pipeline.batches.leasing import Leases

LEASE = 6.0  # seconds; it is prolonged after a third
HELD = "SELECT lease_until FROM gateway.batch_lines WHERE state = 'leased' AND lease_until > now()"


async def test_leases_are_prolonged_however_often_batches_change(postgres):
    """News of a batch is looked at in between, and puts off no renewal."""
    queue = Queue(postgres)
    await queue.tenant("acme")
    await queue.batch("b1", 3)
    lines = queue.lines(lease=LEASE)
    leases = Leases(lines, LEASE)
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            asked_at = trio.current_time()
            leases.take(await claimed(lines), asked_at)
            (first, *_) = await postgres.fetch(HELD)
            nursery.start_soon(leases.run)
            while first in (held := await postgres.fetch(HELD)):
                leases.changed("b1")
                await trio.sleep(LEASE / 100)
            assert len(held) == 3
            nursery.cancel_scope.cancel()
