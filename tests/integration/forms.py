"""Multipart forms by hand, and what an upload left behind."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.world import World

BOUNDARY = "----------------------------0123456789"
TYPE = f"multipart/form-data; boundary={BOUNDARY}"
JSONL = b'{"custom_id":"a"}\n'


def field(name: str, value: str | bytes) -> bytes:
    """Write a plain field, with the boundary before it."""
    content = value.encode() if isinstance(value, str) else value
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n'
    return head.encode() + content + b"\r\n"


def head(filename: str | bytes | None = "a.jsonl") -> bytes:
    """Write a file's part up to its contents."""
    name = filename if isinstance(filename, bytes) or filename is None else filename.encode()
    said = b"" if name is None else b'; filename="' + name + b'"'
    first = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"'.encode()
    return first + said + b"\r\nContent-Type: application/jsonl\r\n\r\n"


def file(content: bytes = JSONL, filename: str | bytes | None = "a.jsonl") -> bytes:
    """Write a file's part."""
    return head(filename) + content + b"\r\n"


def form(*parts: bytes) -> bytes:
    """Write a whole form."""
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


BATCH = field("purpose", "batch")
EVALS = field("purpose", "evals")
GOOD = form(BATCH, file())


def begun(world: World, key: Any = None, *, length: int = 10 << 20, **headers: str) -> bytes:
    """Write a request's head that announces a form of `length` bytes; 0 leaves the length out."""
    lines = {
        "Host": "gateway",
        "Authorization": world.auth(key)["authorization"],
        "Content-Type": TYPE,
    } | headers
    if length:
        lines["Content-Length"] = str(length)
    said = [f"{name}: {value}" for name, value in lines.items()]
    return "\r\n".join(["POST /v1/files HTTP/1.1", *said, "", ""]).encode()


def chunk(piece: bytes) -> bytes:
    """Write a piece of a body whose length nobody said."""
    return b"%x\r\n%b\r\n" % (len(piece), piece)


def blobs(world: World) -> list[str]:
    """Name what is in the blob store's folder, staging files as well."""
    return sorted(path.name for path in (world.blobs / "files").rglob("*") if path.is_file())


async def nothing_left(world: World) -> None:
    """Require that no upload is under way, and that none left a file or a blob."""
    await world.settled()
    assert blobs(world) == []
    assert await world.rows("SELECT id FROM gateway.files") == []
    assert await world.rows("SELECT path FROM gateway.doomed_blobs WHERE due > now()") == []
