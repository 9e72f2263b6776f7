"""The book of batches: one batch for each key, whoever asks for it at the same time."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
import trio

from trio_gateway.clients.bridge import open_bridge
from trio_gateway.clients.postgres import open_postgres
from trio_gateway.core.batches import Status, Wanted
from trio_gateway.core.domain import ApiKey, Principal, Tenant
from trio_gateway.core.errors import Conflict, NotFound, RateLimited, Unauthenticated
from trio_gateway.services.accounts import Accounts
from trio_gateway.services.batches.book import BatchBook, fingerprint
from trio_gateway.services.keyring import Keyring
from trio_gateway.services.tenant_rows import read_installation_secret

LIMIT = 60
WANTED = Wanted("file-nowhere", "/v1/chat/completions", "24h", {"a": "1", "b": "2"})
KEYED = replace(WANTED, idempotency_key="once")
OTHERS: list[dict[str, Any]] = [
    {"input_file_id": "file-other"},
    {"endpoint": "/v1/embeddings"},
    {"metadata": {"a": "1", "b": "3"}},
    {"metadata": {}},
    {"metadata": None},
    {"output_expires_after": 3600},
]
SLOW_COMMITS = (
    """
    CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN PERFORM pg_sleep(0.1); RETURN NULL; END $$
    """,
    """
    CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON gateway.batches
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION slow()
    """,
)


@pytest.fixture
def book(postgres):
    return BatchBook(postgres)


async def principal(postgres, name):
    keyring = Keyring(postgres, await read_installation_secret(postgres), "test")
    tenant = await Accounts(postgres, "test").create(name, {"all_models": True})
    key = await keyring.issue(name, {})
    return Principal(Tenant(tenant["id"], name), ApiKey(key["id"], key["public_id"], tenant["id"]))


@pytest.fixture
async def acme(postgres):
    with trio.fail_after(LIMIT):
        yield await principal(postgres, "acme")


@pytest.fixture
async def rival(postgres):
    return await principal(postgres, "rival")


async def put(postgres, batch, status):
    """Let a batch have got as far as `status`."""
    await postgres.fetch("UPDATE gateway.batches SET status = $2 WHERE id = $1", batch.id, status)


async def count(postgres):
    return (await postgres.fetch("SELECT count(*) FROM gateway.batches"))[0][0]


async def attempt(outcomes, create, *args):
    try:
        outcomes.append(await create(*args))
    except (Conflict, RateLimited) as error:
        outcomes.append(error)


# Create and find


async def test_a_new_batch_is_there_as_it_was_returned(book, acme):
    """Validating, for a day, with what was asked for."""
    wanted = replace(WANTED, output_expires_after=3600)
    made, replayed = await book.create(acme, wanted)
    assert not replayed
    assert made.id.startswith("batch_")
    assert len(made.id) == 30
    assert (made.status, made.metadata) == (Status.VALIDATING, WANTED.metadata)
    assert (made.input_file_id, made.endpoint) == ("file-nowhere", "/v1/chat/completions")
    assert (made.tenant_id, made.key_id) == (acme.tenant.id, acme.key.id)
    assert made.expires_at - made.created_at == timedelta(days=1)
    assert made.output_expires_after == 3600
    assert await book.find(acme.tenant.id, made.id) == made
    assert await book.find_any(made.id) == made


async def test_without_a_key_each_create_makes_a_batch(book, acme, postgres):
    """Even if all else is the same."""
    made = [(await book.create(acme, WANTED))[0].id for _ in range(3)]
    assert len(set(made)) == 3 == await count(postgres)


async def test_a_tenant_that_is_gone_makes_no_batch(book, acme, postgres):
    """Its key was proven a moment too early."""
    gone = replace(acme, tenant=Tenant("ten_gone", "gone"))
    with pytest.raises(Unauthenticated):
        await book.create(gone, WANTED)
    assert await count(postgres) == 0


async def test_another_tenants_batch_is_as_unknown_as_a_random_one(book, acme, rival):
    """One text for both, on every way to a batch, and no way to change it."""
    made, _ = await book.create(acme, WANTED)
    for act in (book.find, book.cancel):
        for batch_id in (made.id, "batch_nowhere"):
            with pytest.raises(NotFound) as caught:
                await act(rival.tenant.id, batch_id)
            assert caught.value.message == f"Batch '{batch_id}' not found."
    assert await book.listing(rival.tenant.id, 100) == ([], False)
    assert await book.find(acme.tenant.id, made.id) == made


# Keys


def test_a_fingerprint_does_not_change_with_releases():
    """A key of last month must still find its batch; the order of metadata is no difference."""
    first = fingerprint(WANTED)
    assert first.hex() == "6b65769277212d4ea3aeb38a0060e58dae8675ec8c3fd8603a7484ee4569f2d8"
    assert fingerprint(replace(KEYED, metadata={"b": "2", "a": "1"})) == first
    marks = [fingerprint(replace(WANTED, **other)) for other in OTHERS]
    assert len({first, *marks}) == len(OTHERS) + 1


async def test_a_key_makes_one_batch(book, acme, postgres):
    """The second create gets the batch as it is now, however its metadata is ordered."""
    made, _ = await book.create(acme, KEYED)
    again = replace(KEYED, metadata={"b": "2", "a": "1"})
    assert await book.create(acme, again) == (made, True)
    for status in Status:
        await put(postgres, made, status)
        replay, replayed = await book.create(acme, again)
        assert (replayed, replay) == (True, replace(made, status=status))
    assert await count(postgres) == 1


@pytest.mark.parametrize("other", OTHERS)
async def test_a_key_with_other_parameters_is_a_conflict(book, acme, postgres, other):
    """The first batch stays as it is, and the key is still its own."""
    made, _ = await book.create(acme, KEYED)
    words = "Idempotency key 'once' was previously used with different parameters"
    with pytest.raises(Conflict, match=words) as caught:
        await book.create(acme, replace(KEYED, **other))
    error = caught.value
    assert (error.code, error.param) == ("idempotency_key_conflict", "idempotency_key")
    assert error.should_retry is False
    assert await book.create(acme, KEYED) == (made, True)
    assert await count(postgres) == 1


async def test_keys_of_different_tenants_have_nothing_to_do_with_each_other(book, acme, rival):
    """The same key makes one batch for each; other parameters are no conflict."""
    mine, _ = await book.create(acme, KEYED)
    theirs, replayed = await book.create(rival, replace(KEYED, metadata=None))
    assert not replayed
    assert mine.id != theirs.id


async def test_25_creates_at_once_make_one_batch_for_each_of_two_tenants(
    book, acme, rival, postgres, database
):
    """On two workers; whoever is not first gets the first one's."""
    outcomes: dict[str, list[Any]] = {acme.tenant.id: [], rival.tenant.id: []}
    async with (
        open_bridge() as bridge,
        open_postgres(bridge, database) as second,
        trio.open_nursery() as nursery,
    ):
        books = (book, BatchBook(second))
        for number in range(25):
            who = (acme, rival)[number % 2]
            create = books[number // 2 % 2].create
            nursery.start_soon(attempt, outcomes[who.tenant.id], create, who, KEYED)
    assert await count(postgres) == 2
    for made in outcomes.values():
        assert len({batch.id for batch, _ in made}) == 1
        assert [replayed for _, replayed in made].count(False) == 1
    assert len(outcomes[acme.tenant.id]) + len(outcomes[rival.tenant.id]) == 25


async def test_a_race_with_other_parameters_has_one_winner(book, acme, postgres):
    """All who wanted the winner's batch get it, the others are told of the conflict."""
    outcomes: tuple[list[Any], list[Any]] = ([], [])
    async with trio.open_nursery() as nursery:
        for number in range(20):
            wanted = replace(KEYED, input_file_id=f"file-{number % 2}")
            nursery.start_soon(attempt, outcomes[number % 2], book.create, acme, wanted)
    (row,) = await postgres.fetch("SELECT * FROM gateway.batches")
    winner = int(row["input_file_id"][-1])
    assert {batch.id for batch, _ in outcomes[winner]} == {row["id"]}
    assert [replayed for _, replayed in outcomes[winner]].count(False) == 1
    assert [type(outcome) for outcome in outcomes[1 - winner]] == [Conflict] * 10


# The bound


async def test_open_batches_are_bounded_and_a_refusal_uses_up_no_key(postgres, acme, rival):
    """Replays always work, ended batches do not count, and other tenants have their own."""
    book = BatchBook(postgres, most_open=2)
    made, _ = await book.create(acme, KEYED)
    await book.create(acme, WANTED)
    wanted = replace(WANTED, idempotency_key="later")
    with pytest.raises(RateLimited, match="2 batches that have not ended") as caught:
        await book.create(acme, wanted)
    assert caught.value.should_retry is False
    assert await book.create(acme, KEYED) == (made, True)
    await book.create(rival, WANTED)
    await put(postgres, made, "completed")
    _, replayed = await book.create(acme, replace(wanted, input_file_id="file-another"))
    assert not replayed


async def test_the_bound_is_exact_when_all_come_at_once(postgres, acme):
    """No create slips past because it did not see the others, however slow the database is."""
    for statement in SLOW_COMMITS:
        await postgres.fetch(statement)
    book = BatchBook(postgres, most_open=2)
    outcomes: list[Any] = []
    async with trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(attempt, outcomes, book.create, acme, WANTED)
    refused = [outcome for outcome in outcomes if isinstance(outcome, RateLimited)]
    assert (len(refused), await count(postgres)) == (6, 2)


# Lists


async def test_pages_go_from_the_newest_to_the_oldest(book, acme, rival):
    """Each batch is on one page, whatever was made in the same second."""
    made: list[Any] = []
    for _ in range(5):
        made.insert(0, (await book.create(acme, WANTED))[0])
        await book.create(rival, WANTED)
    assert await book.listing(acme.tenant.id, 5) == (made, False)
    assert await book.listing(acme.tenant.id, 2) == (made[:2], True)
    assert await book.listing(acme.tenant.id, 2, made[1].id) == (made[2:4], True)
    assert await book.listing(acme.tenant.id, 2, made[3].id) == (made[4:], False)
    assert await book.listing(acme.tenant.id, 2, made[4].id) == ([], False)


async def test_a_list_after_an_unknown_batch_begins_at_the_start(book, acme, rival):
    """Another tenant's is unknown."""
    theirs, _ = await book.create(rival, WANTED)
    made, _ = await book.create(acme, WANTED)
    for after in ("batch_nowhere", theirs.id, "", "a\0b"):
        assert await book.listing(acme.tenant.id, 20, after) == ([made], False)


# Cancel


@pytest.mark.parametrize("status", ["validating", "in_progress", "finalizing"])
async def test_a_cancel_begins_once(book, acme, postgres, status):
    """Many at once, and later ones, are told of the first; the end is another's to reach."""
    made, _ = await book.create(acme, WANTED)
    await put(postgres, made, status)
    await postgres.fetch("UPDATE gateway.batches SET paused = 'insufficient_quota'")
    outcomes: list[Any] = []
    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(attempt, outcomes, book.cancel, acme.tenant.id, made.id)
    assert len(outcomes) == 10
    first = outcomes[0]
    assert (first.status, first.paused) == (Status.CANCELLING, None)
    assert first.cancelling_at >= made.created_at
    assert all(outcome == first for outcome in outcomes)
    await put(postgres, made, "cancelled")
    assert await book.cancel(acme.tenant.id, made.id) == replace(first, status=Status.CANCELLED)


@pytest.mark.parametrize("status", ["completed", "failed", "expired"])
async def test_what_has_ended_cannot_be_cancelled(book, acme, postgres, status):
    """A conflict that says which status stands in the way."""
    made, _ = await book.create(acme, WANTED)
    await put(postgres, made, status)
    words = f"Cannot cancel batch '{made.id}' with status '{status}'."
    for cancel in (lambda: book.cancel(acme.tenant.id, made.id), lambda: book.cancel_any(made.id)):
        with pytest.raises(Conflict) as caught:
            await cancel()
        assert caught.value.message == words
    assert await book.find_any(made.id) == replace(made, status=Status(status))


# The operator


async def test_the_operator_sees_and_cancels_everybodys(book, acme, rival, postgres):
    """By tenant, by status, newest first, and no more than asked for."""
    first, _ = await book.create(acme, WANTED)
    second, _ = await book.create(rival, WANTED)
    third, _ = await book.create(acme, WANTED)
    assert await book.all() == [third, second, first]
    assert await book.all(limit=1) == [third]
    assert await book.all(acme.tenant.id) == [third, first]
    cancelled = await book.cancel_any(second.id)
    assert cancelled.status == Status.CANCELLING
    assert await book.all(status=Status.CANCELLING) == [cancelled]
    assert await book.all(acme.tenant.id, Status.CANCELLING) == []
    for act in (book.find_any, book.cancel_any):
        with pytest.raises(NotFound):
            await act("batch_nowhere")
