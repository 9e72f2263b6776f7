"""Files in the database: who sees them, what they may weigh, and when they and their blobs go."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
import trio

from trio_gateway.clients.blobs import BlobMissing, open_blobs
from trio_gateway.core.batches import StoredFile
from trio_gateway.core.errors import CallTooLarge, NotFound, StoreUnavailable
from trio_gateway.services.accounts import Accounts
from trio_gateway.services.files.files import Files, blob_of, new_file_id
from trio_gateway.services.files.janitor import Janitor
from trio_gateway.services.files.rows import insert_file
from trio_gateway.services.keyring import Keyring
from trio_gateway.services.tenant_rows import read_installation_secret

LIMIT = 60
MOST = 1000  # bytes of one tenant's files
BATCH = """
INSERT INTO gateway.batches (id, tenant_id, key_id, endpoint, input_file_id, input_blob,
    completion_window, fingerprint, status, expires_at)
VALUES ('batch_1', $1, $2, '/v1/embeddings', 'x', $3, '24h', '', 'in_progress', now())
"""


@pytest.fixture
async def tenants(postgres):
    with trio.fail_after(LIMIT):
        accounts = Accounts(postgres, "test")
        yield [(await accounts.create(name, {}))["id"] for name in ("acme", "other")]


@pytest.fixture
def files(postgres):
    return Files(postgres, MOST)


@pytest.fixture
def blobs(tmp_path):
    return open_blobs(tmp_path.as_uri())


@pytest.fixture
def janitor(postgres, blobs):
    return Janitor(postgres, blobs, 60)


def described(tenant_id, size=10, **changes):
    """Describe a file that is not there yet."""
    file_id = new_file_id()
    blob = blob_of(tenant_id, file_id)
    now = datetime.now(UTC)
    return replace(StoredFile(file_id, tenant_id, "batch", "a.jsonl", size, blob, now), **changes)


async def stored(files, tenant_id, blobs=None, **changes):
    """Keep a file, with its blob where blobs are given."""
    file = described(tenant_id, **changes)
    await files.reserve(tenant_id, file.blob)
    if blobs is not None:
        await blobs.put(file.blob, b"x" * file.bytes)
    await files.keep(file)
    return file


async def there(blobs, file):
    """Whether a file's blob is there."""
    try:
        await blobs.read(file.blob, 0, file.bytes)
    except BlobMissing:
        return False
    return True


async def doomed(postgres):
    """Name what the janitor has on its list."""
    rows = await postgres.fetch("SELECT path FROM gateway.doomed_blobs")
    return {row["path"] for row in rows}


async def test_a_kept_file_is_found_by_its_tenant_alone(files, tenants):
    """The same error, but for the id, for another's, a random and an impossible one."""
    file = await stored(files, tenants[0], purpose="evals")
    assert await files.find(tenants[0], file.id) == file
    for tenant_id, file_id in (
        (tenants[1], file.id),
        (tenants[0], new_file_id()),
        (tenants[0], "x\x00y"),
        (tenants[0], "ä"),
    ):
        for act in (files.find, files.remove):
            with pytest.raises(NotFound) as caught:
                await act(tenant_id, file_id)
            assert caught.value.message == f"No such File object: {file_id}"
    assert await files.find(tenants[0], file.id) == file


async def test_a_removed_file_is_gone_at_once_and_once(files, tenants):
    """From the list as well; a second time it is not there."""
    file = await stored(files, tenants[0])
    await files.remove(tenants[0], file.id)
    with pytest.raises(NotFound):
        await files.find(tenants[0], file.id)
    with pytest.raises(NotFound):
        await files.remove(tenants[0], file.id)
    assert await files.listing(tenants[0], None, 10, "desc", None) == ([], False)


async def test_an_expired_file_is_gone_before_any_janitor_came(files, tenants):
    """Found, listed and removed is only what is not over."""
    over = datetime.now(UTC) - timedelta(seconds=1)
    file = await stored(files, tenants[0], expires_at=over)
    for act in (files.find, files.remove):
        with pytest.raises(NotFound):
            await act(tenants[0], file.id)
    assert await files.listing(tenants[0], None, 10, "desc", None) == ([], False)


async def test_pages_show_each_file_once_in_either_order(files, tenants):
    """Files of one second too; a cursor that is no file of the tenant's starts over."""
    await stored(files, tenants[1])
    same = datetime.now(UTC)
    made = [await stored(files, tenants[0], created_at=same) for _ in range(7)]
    purposes = await stored(files, tenants[0], purpose="evals")
    for order, expected in (("asc", [*made, purposes]), ("desc", [purposes, *made[::-1]])):
        seen, after, more = [], None, True
        while more:
            page, more = await files.listing(tenants[0], None, 3, order, after)
            seen += page
            after = page[-1].id
        assert seen == expected
    assert await files.listing(tenants[0], "evals", 3, "asc", None) == ([purposes], False)
    assert (await files.listing(tenants[0], None, 8, "asc", None))[1] is False
    for after in ("nothing", "x\x00", (await stored(files, tenants[1])).id):
        assert (await files.listing(tenants[0], None, 1, "asc", after)) == ([made[0]], True)


async def test_a_tenants_files_have_a_most_together(files, tenants, postgres):
    """To the byte; what was removed no longer counts, and another tenant's never did."""
    await stored(files, tenants[1], size=MOST)
    first = await stored(files, tenants[0], size=MOST - 10)
    assert await files.reserve(tenants[0], "files/x") == 10
    with pytest.raises(CallTooLarge) as caught:
        await stored(files, tenants[0], size=11)
    assert (caught.value.code, caught.value.param) == ("file_quota_exceeded", "file")
    await stored(files, tenants[0], size=10)
    await files.remove(tenants[0], first.id)
    await stored(files, tenants[0], size=MOST - 10)
    assert len(await postgres.fetch("SELECT FROM gateway.files")) == 4


async def test_files_racing_for_the_last_byte_fit_exactly(files, tenants):
    """Twenty at once with room for ten: ten are kept."""
    fates = []

    async def one():
        try:
            await stored(files, tenants[0], size=MOST // 10)
            fates.append(True)
        except CallTooLarge:
            fates.append(False)

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(one)
    assert sorted(fates) == [False] * 10 + [True] * 10


async def test_a_blob_is_listed_until_it_is_a_file(files, tenants, postgres):
    """Struck off in the step that keeps it; given up, it is due at once."""
    file = described(tenants[0])
    await files.reserve(tenants[0], file.blob)
    assert await doomed(postgres) == {file.blob}
    await files.keep(file)
    assert await doomed(postgres) == set()
    await files.abandon(file.blob)
    assert await doomed(postgres) == set()
    await files.reserve(tenants[0], "files/given-up")
    await files.abandon("files/given-up")
    due = await postgres.fetch("SELECT FROM gateway.doomed_blobs WHERE due <= now()")
    assert len(due) == 1


async def test_a_blob_that_is_due_is_never_made_a_file(files, tenants, postgres):
    """It may be gone already: the upload fails instead."""
    late = described(tenants[0])
    await files.reserve(tenants[0], late.blob)
    await files.abandon(late.blob)
    with pytest.raises(StoreUnavailable):
        await files.keep(late)
    never = described(tenants[0])
    assert await postgres.transact(insert_file, never) is False
    assert await postgres.fetch("SELECT FROM gateway.files") == []


async def test_the_janitor_removes_what_is_over_and_nothing_else(
    files, tenants, postgres, blobs, janitor
):
    """Expired, removed and abandoned: row, blob and list; what lives, lives on."""
    over = datetime.now(UTC) - timedelta(seconds=1)
    live = await stored(files, tenants[0], blobs)
    later = await stored(files, tenants[0], blobs, expires_at=over + timedelta(hours=1))
    expired = await stored(files, tenants[0], blobs, expires_at=over)
    removed = await stored(files, tenants[0], blobs)
    await files.remove(tenants[0], removed.id)
    abandoned = described(tenants[0])
    await files.reserve(tenants[0], abandoned.blob)
    await blobs.put(abandoned.blob, b"x" * 10)
    await files.abandon(abandoned.blob)
    coming = described(tenants[0])
    await files.reserve(tenants[0], coming.blob)
    await blobs.put(coming.blob, b"x" * 10)
    await janitor.round()
    every = (live, later, coming, expired, removed, abandoned)
    assert [await there(blobs, file) for file in every] == [True] * 3 + [False] * 3
    rows = await postgres.fetch("SELECT id FROM gateway.files")
    assert {row["id"] for row in rows} == {live.id, later.id}
    assert await doomed(postgres) == {coming.blob}
    await files.keep(coming)


async def test_a_batchs_input_stays_until_the_batch_has_ended(
    files, tenants, postgres, blobs, janitor
):
    """Its file is gone from sight; what the batch reads is not."""
    key = await Keyring(postgres, await read_installation_secret(postgres), "test").issue(
        "acme", {}
    )
    file = await stored(files, tenants[0], blobs)
    await postgres.fetch(BATCH, tenants[0], key["id"], file.blob)
    await files.remove(tenants[0], file.id)
    await janitor.round()
    assert await there(blobs, file)
    await postgres.fetch("UPDATE gateway.batches SET status = 'completed'")
    await janitor.round()
    assert not await there(blobs, file)
    assert await postgres.fetch("SELECT FROM gateway.files") == []


async def test_the_janitor_empties_folders(postgres, blobs, janitor):
    """A path with a slash at its end is everything below it."""
    for name in ("results/b/1", "results/b/2", "results/c/1"):
        await blobs.put(name, b"x")
    await postgres.fetch("INSERT INTO gateway.doomed_blobs VALUES ('results/b/', now())")
    await janitor.round()
    with pytest.raises(BlobMissing):
        await blobs.read("results/b/1", 0, 1)
    assert await blobs.read("results/c/1", 0, 1) == b"x"


async def test_a_blob_that_cannot_be_deleted_does_not_hold_up_the_others(
    tmp_path, postgres, blobs, janitor
):
    """It is tried again a minute later, and never kept meanwhile."""
    (tmp_path / "files" / "stuck").mkdir(parents=True)  # not what unlink can remove
    await blobs.put("files/fine", b"x")
    await postgres.fetch(
        "INSERT INTO gateway.doomed_blobs VALUES ('files/stuck', now() - interval '1 hour'),"
        " ('files/fine', now())"
    )
    with pytest.raises(StoreUnavailable):
        await janitor.round()
    await janitor.round()
    assert await doomed(postgres) == {"files/stuck"}
    with pytest.raises(BlobMissing):
        await blobs.read("files/fine", 0, 1)


async def test_janitors_do_not_wait_for_each_other(files, tenants, postgres, blobs):
    """Several at once on many files: all is gone, once, and none fails."""
    for _ in range(30):
        file = await stored(files, tenants[0], blobs)
        await files.remove(tenants[0], file.id)
    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(Janitor(postgres, blobs, 60).round)
    await Janitor(postgres, blobs, 60).round()
    assert await doomed(postgres) == set()
    assert await postgres.fetch("SELECT FROM gateway.files") == []


async def test_the_janitor_goes_on_after_an_outage(files, tenants, postgres, blobs, tmp_path):
    """What could not be done in one round is done in a later one."""
    file = await stored(files, tenants[0], blobs)
    await files.remove(tenants[0], file.id)
    await postgres.fetch("ALTER TABLE gateway.files RENAME TO files_away")
    async with trio.open_nursery() as nursery:
        await nursery.start(Janitor(postgres, blobs, 0.05).run)
        await postgres.fetch("ALTER TABLE gateway.files_away RENAME TO files")
        while await there(blobs, file):
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
