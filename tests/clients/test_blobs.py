"""The blob store, once as a folder and once as a bucket: the same promises of both."""

import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import pytest
import trio

from trio_gateway.clients.blobs import BadBlobUrl, BlobMissing, Blobs, open_blobs
from trio_gateway.core.errors import StoreUnavailable

MIB = 1024 * 1024
LIMIT = 90.0  # seconds


@dataclass
class Shelf:
    """A store with a way to see what is in it, leftovers included."""

    url: str
    blobs: Blobs
    names: Any


@pytest.fixture(params=["folder", "bucket"])
def shelf(request, tmp_path):
    if request.param == "folder":
        root = tmp_path / "blobs"

        def names():
            return sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file())

        yield Shelf(root.as_uri(), open_blobs(root.as_uri()), names)
        return
    bucket = request.getfixturevalue("bucket")

    def objects():
        parts = [f"unfinished {each.object_key}" for each in bucket.multipart_uploads.all()]
        return sorted([each.key.removeprefix("pre/") for each in bucket.objects.all()] + parts)

    url = f"s3://{bucket.name}/pre"
    yield Shelf(url, open_blobs(url), objects)


async def whole(blobs, path, **part):
    """Read through a reader; no piece is larger than a MiB."""
    pieces = []
    async with blobs.reader(path, **part) as reader:
        while piece := await reader.read():
            pieces.append(piece)
    assert all(len(piece) <= MIB for piece in pieces)
    return b"".join(pieces)


async def test_what_was_put_is_read_again(shelf):
    """Whole or in ranges; the next put takes the place of the first."""
    with trio.fail_after(LIMIT):
        await shelf.blobs.put("results/b/1", b"first")
        await shelf.blobs.put("results/b/1", b"0123456789")
        assert await whole(shelf.blobs, "results/b/1") == b"0123456789"
        assert await shelf.blobs.read("results/b/1", 2, 3) == b"234"
        assert await shelf.blobs.read("results/b/1", 0, 10) == b"0123456789"
        assert await shelf.blobs.read("results/b/1", 4, 0) == b""
        assert await whole(shelf.blobs, "results/b/1", start=7) == b"789"
        assert await whole(shelf.blobs, "results/b/1", start=1, length=2) == b"12"
        await shelf.blobs.put("results/b/2", b"")
        assert await whole(shelf.blobs, "results/b/2") == b""
        assert shelf.names() == ["results/b/1", "results/b/2"]


async def test_a_range_that_is_not_there_is_a_missing_blob(shelf):
    """Never fewer bytes than were asked for, and never another error."""
    with trio.fail_after(LIMIT):
        await shelf.blobs.put("files/t/short", b"12345")
        for start, length in ((0, 6), (3, 3), (5, 1), (9, 2)):
            with pytest.raises(BlobMissing):
                await shelf.blobs.read("files/t/short", start, length)
            with pytest.raises(BlobMissing):
                await whole(shelf.blobs, "files/t/short", start=start, length=length)
        with pytest.raises(BlobMissing):
            await shelf.blobs.read("files/t/absent", 0, 1)
        with pytest.raises(BlobMissing):
            await whole(shelf.blobs, "files/t/absent")


@pytest.mark.parametrize("size", [0, 1, MIB, 5 * MIB, 11 * MIB + 7])
async def test_a_written_blob_appears_at_its_end_and_whole(shelf, size):
    """Nothing of it can be read before; its size is counted on the way."""
    content = os.urandom(size)
    with trio.fail_after(LIMIT):
        async with shelf.blobs.writer("files/t/w") as writer:
            for at in range(0, size, 300_000):
                await writer.write(content[at : at + 300_000])
            with pytest.raises(BlobMissing):
                await shelf.blobs.read("files/t/w", 0, 1)
        assert writer.size == size
        assert await whole(shelf.blobs, "files/t/w") == content
        assert shelf.names() == ["files/t/w"]


class Stop(Exception):
    """Ends a block."""


@pytest.mark.parametrize("size", [10, 3 * MIB, 12 * MIB])
@pytest.mark.parametrize("how", ["exception", "cancel"])
async def test_an_abandoned_writer_leaves_nothing(shelf, size, how):
    """No blob, no staging file and no unfinished upload."""
    with trio.fail_after(LIMIT):
        with trio.CancelScope() as scope:
            try:
                async with shelf.blobs.writer("files/t/w") as writer:
                    for _ in range(max(1, size // MIB)):
                        await writer.write(bytes(min(size, MIB)))
                    if how == "exception":
                        raise Stop
                    scope.cancel()
                    await trio.lowlevel.checkpoint()
            except Stop:
                pass
        assert shelf.names() == []


async def test_deleting_is_idempotent_and_takes_what_is_named_alone(shelf):
    """A blob, or with a slash all below; a name that only begins alike stays."""
    with trio.fail_after(LIMIT):
        for path in ("results/b1/x", "results/b1/y", "results/b12/x", "files/t/f", "files/t/f2"):
            await shelf.blobs.put(path, b"x")
        for _ in range(2):
            await shelf.blobs.delete("results/b1/")
            await shelf.blobs.delete("files/t/f")
            assert shelf.names() == ["files/t/f2", "results/b12/x"]
        await shelf.blobs.delete("never/been")
        await shelf.blobs.delete("never/been/")


KILLED = """
import sys, trio
from trio_gateway.clients.blobs import open_blobs

async def main():
    async with open_blobs(sys.argv[1]).writer("files/t/w") as writer:
        for _ in range(12):
            await writer.write(bytes(1 << 20))
        print("written", flush=True)
        await trio.sleep_forever()

trio.run(main)
"""


async def test_a_killed_writer_leaves_no_blob(shelf):
    """Nothing to read; and in a folder a delete takes its staging file too."""
    command = [sys.executable, "-c", KILLED, shelf.url]
    with trio.fail_after(LIMIT):
        child = await trio.lowlevel.open_process(command, stdout=subprocess.PIPE)
        assert child.stdout is not None
        said = b""
        while not said.endswith(b"\n"):  # unbuffered, a line comes in two pieces
            piece = await child.stdout.receive_some()
            assert piece, "the writer ended by itself"
            said += piece
        child.kill()
        await child.wait()
        await child.stdout.aclose()
        with pytest.raises(BlobMissing):
            await shelf.blobs.read("files/t/w", 0, 1)
        (leftover,) = shelf.names()
        await shelf.blobs.delete("files/t/w")
        assert shelf.names() == ([] if shelf.url.startswith("file:") else [leftover])


FLAT = """
import resource, sys, trio
from trio_gateway.clients.blobs import open_blobs

async def pass_through(blobs, path, count):
    async with blobs.writer(path) as writer:
        for _ in range(count * 16):
            await writer.write(bytes(1 << 16))
    async with blobs.reader(path) as reader:
        while await reader.read():
            pass

async def main():
    blobs = open_blobs(sys.argv[1])
    for count in (12, 44):
        await pass_through(blobs, "files/t/w", count)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)

trio.run(main)
"""


async def test_memory_stays_flat(shelf):
    """A blob of 44 MiB takes hardly more memory than one of 12, on the way in and out."""
    with trio.fail_after(2 * LIMIT):
        done = await trio.run_process([sys.executable, "-c", FLAT, shelf.url], capture_stdout=True)
    small, large = map(int, done.stdout.split())
    assert large - small < 16 * 1024  # KiB


async def test_a_bucket_that_cannot_be_reached_is_an_unavailable_store(monkeypatch):
    """And it takes seconds to say so, not minutes."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    blobs = open_blobs("s3://some-bucket")
    with trio.fail_after(LIMIT):
        for operation in (
            lambda: blobs.put("a/b", b"x"),
            lambda: blobs.read("a/b", 0, 1),
            lambda: blobs.delete("a/b"),
            lambda: blobs.delete("a/"),
            lambda: whole(blobs, "a/b"),
        ):
            with pytest.raises(StoreUnavailable):
                await operation()
        with pytest.raises(StoreUnavailable):
            async with blobs.writer("a/b") as writer:
                await writer.write(b"x")


async def test_a_folder_that_takes_nothing_is_an_unavailable_store(tmp_path):
    """As where a file sits on the place of a folder."""
    blobs = open_blobs(tmp_path.as_uri())
    (tmp_path / "files").write_bytes(b"")
    with trio.fail_after(LIMIT), pytest.raises(StoreUnavailable):
        await blobs.put("files/x", b"x")


def test_a_folder_is_made_for_its_owner_alone(tmp_path):
    """A new one is 0700; one that is there is left as it is."""
    there = tmp_path / "there"
    there.mkdir(mode=0o755)
    open_blobs((tmp_path / "a b" / "blobs").as_uri())
    open_blobs(there.as_uri())
    assert (tmp_path / "a b" / "blobs").stat().st_mode & 0o777 == 0o700
    assert there.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize(
    "url",
    [
        "",
        "blobs",
        "/var/blobs",
        "file:blobs",
        "file://host/blobs",
        "http://some-secret@host/bucket",
        "s3://",
        "s3://key:some-secret@bucket",
        "s3://bucket?endpoint=some-secret",
        "s3://Bucket",
        "file:///proc/some-secret",
    ],
)
def test_an_address_that_cannot_be_used_is_refused_without_being_told(url):
    """One sentence that names the setting, and never the address."""
    with pytest.raises(BadBlobUrl) as caught:
        open_blobs(url)
    assert "TRIO_GATEWAY_BLOB_URL" in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "path", ["../x", "a/../b", "/a", "a//b", "a/./b", "", "a#1", "a\x00b", "ä"]
)
async def test_a_path_stays_inside_the_store(tmp_path, path):
    """Whatever could mean another place, or the same one twice, is a bug of the caller's."""
    blobs = open_blobs((tmp_path / "blobs").as_uri())
    for operation in (blobs.put(path, b""), blobs.read(path, 0, 1), blobs.delete(path)):
        with pytest.raises(ValueError, match="path"):
            await operation
    assert not any((tmp_path / "blobs").rglob("*"))
