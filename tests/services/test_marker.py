"""The marker: whether a blob store is the one that holds the installation's files."""

import pytest
import trio
from structlog.testing import capture_logs

from trio_gateway.clients.blobs import open_blobs
from trio_gateway.core.errors import StoreUnavailable
from trio_gateway.services.files.marker import (
    check_marker,
    find_marker,
    is_marked,
    tell_of_marker,
)

LIMIT = 60
DOOMED = "SELECT path FROM gateway.doomed_blobs"


def store(folder):
    return open_blobs(folder.as_uri())


async def test_the_first_worker_marks_its_store(postgres, tmp_path):
    """Whoever comes later finds the marker there, and names no other."""
    with trio.fail_after(LIMIT):
        assert await find_marker(postgres) is None
        assert await check_marker(postgres, store(tmp_path))
        marker = await find_marker(postgres)
        assert marker is not None
        assert marker.startswith("markers/")
        assert await is_marked(store(tmp_path), marker)
        assert await check_marker(postgres, store(tmp_path))
        assert await find_marker(postgres) == marker
        assert await postgres.fetch(DOOMED) == []


async def test_another_store_is_told_apart(postgres, tmp_path):
    """A second machine with a folder of its own does not see the first one's files."""
    with trio.fail_after(LIMIT):
        assert await check_marker(postgres, store(tmp_path / "one"))
        assert not await check_marker(postgres, store(tmp_path / "two"))
        assert await check_marker(postgres, store(tmp_path / "one"))
        assert list((tmp_path / "two").iterdir()) == []


async def test_of_many_first_workers_one_marks(postgres, tmp_path):
    """All at once, over two stores: one is named, and what the others wrote is to be deleted."""
    found = {}

    async def check(place, number):
        found[place, number] = await check_marker(postgres, store(tmp_path / place))

    with trio.fail_after(LIMIT):
        async with trio.open_nursery() as nursery:
            for number in range(4):
                for place in ("one", "two"):
                    nursery.start_soon(check, place, number)
        marker = await find_marker(postgres)
        marked = {place for place in ("one", "two") if (tmp_path / place / marker).exists()}
        assert len(marked) == 1
        assert all(seen is (place in marked) for (place, _), seen in found.items())
        written = {
            f"markers/{path.name}" for p in ("one", "two") for path in tmp_path.glob(f"{p}/*/*")
        }
        assert {row["path"] for row in await postgres.fetch(DOOMED)} == written - {marker}


async def test_a_store_that_cannot_be_used_leaves_no_marker(postgres, tmp_path):
    """The next worker, whose store works, is the first."""
    blobs = store(tmp_path / "blobs")
    (tmp_path / "blobs" / "markers").touch()  # where a folder has to be
    with trio.fail_after(LIMIT):
        with pytest.raises(StoreUnavailable):
            await check_marker(postgres, blobs)
        assert await find_marker(postgres) is None
        assert await check_marker(postgres, store(tmp_path / "other"))


async def test_a_worker_whose_files_are_elsewhere_says_so(postgres, tmp_path):
    """One warning that names the setting, and the worker goes on; none where all is well."""
    with trio.fail_after(LIMIT):
        with capture_logs() as said:
            await tell_of_marker(postgres, store(tmp_path / "one"))
        assert said == []
        with capture_logs() as said:
            await tell_of_marker(postgres, store(tmp_path / "two"))
    (warning,) = said
    assert (warning["event"], warning["log_level"]) == ("blobs_elsewhere", "warning")
    assert "TRIO_GATEWAY_BLOB_URL" in warning["reason"]
