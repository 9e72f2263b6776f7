"""argon2id: what is proven, what is not, and when a hash is out of date."""

import trio
from argon2 import PasswordHasher

from trio_gateway.services.secrets import PROOFS_AT_ONCE, Secrets

LIMIT = 60


async def test_a_secret_is_proven_by_its_hash_and_nothing_else_is():
    """Only the secret behind the hash verifies, and a damaged hash proves nothing."""
    with trio.fail_after(LIMIT):
        hashing = Secrets()
        encoded = await hashing.hash("open sesame")
        assert encoded.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
        assert "sesame" not in encoded
        assert await hashing.verify(encoded, "open sesame")
        assert not await hashing.verify(encoded, "open  sesame")
        for damaged in ("", "nonsense", encoded[:-5], "$argon2id$v=19$m=1,t=1,p=1$x$y"):
            assert not await hashing.verify(damaged, "open sesame")


async def test_a_hash_of_other_parameters_is_outdated():
    """Today's parameters are up to date; any others are not, and verify all the same."""
    with trio.fail_after(LIMIT):
        hashing = Secrets()
        other = PasswordHasher(time_cost=1, memory_cost=1024, parallelism=1).hash("s")
        assert hashing.outdated(other)
        assert await hashing.verify(other, "s")
        assert not hashing.outdated(await hashing.hash("s"))


async def test_proofs_run_few_at_a_time_and_all_end():
    """Many proofs at once queue behind the limiter instead of filling memory."""
    with trio.fail_after(LIMIT):
        hashing, proven = Secrets(), []
        encoded = await hashing.hash("s")

        async def prove() -> None:
            proven.append(await hashing.verify(encoded, "s"))

        async with trio.open_nursery() as nursery:
            for _ in range(PROOFS_AT_ONCE * 4):
                nursery.start_soon(prove)
        assert proven == [True] * (PROOFS_AT_ONCE * 4)
