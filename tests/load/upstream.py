"""A model server that costs next to nothing: fixed answers over asyncio protocols.

    python -m tests.load.upstream PORT TOKENS GAP_SECONDS

Whole calls end at once; a model named `paced` streams TOKENS chunks, one every GAP_SECONDS.
"""

from __future__ import annotations

import asyncio
import json
import sys

NAMES = ("llama3.2:latest", "paced:latest")
TAGS = json.dumps(
    {
        "models": [
            {"name": name, "model": name, "digest": "0" * 64, "size": 1, "details": {}}
            for name in NAMES
        ]
    }
).encode()
WORDS = ("Echo: ", "say ", "something ", "short")


def _line(text: str, **more: object) -> bytes:
    message = {"role": "assistant", "content": text}
    value = {"model": "m", "created_at": "2026-01-01T00:00:00Z", "message": message, "done": False}
    return json.dumps(value | more, separators=(",", ":")).encode() + b"\n"


def _final(count: int) -> bytes:
    counts = {"prompt_eval_count": 12, "eval_count": count, "total_duration": 1}
    return _line("", done=True, done_reason="stop", **counts)


def _chunked(payload: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(payload), payload)


HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: application/x-ndjson\r\ntransfer-encoding: chunked\r\n\r\n"
)
CALL = HEAD + _chunked(b"".join(map(_line, WORDS)) + _final(len(WORDS))) + b"0\r\n\r\n"


def _whole(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)


class Server(asyncio.Protocol):
    """One connection; requests come one after the other."""

    tokens = 64
    gap = 0.02

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.buffer = b""
        self.task: asyncio.Task[None] | None = None

    def connection_lost(self, exc: Exception | None) -> None:
        if self.task is not None:
            self.task.cancel()

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            head = self.buffer[:end].lower()
            size = 0
            if (at := head.find(b"content-length:")) >= 0:
                size = int(head[at + 15 :].split(b"\r\n", 1)[0])
            if len(self.buffer) < end + 4 + size:
                return
            body = self.buffer[end + 4 : end + 4 + size]
            self.buffer = self.buffer[end + 4 + size :]
            self.answer(head, body)

    def answer(self, head: bytes, body: bytes) -> None:
        if head.startswith(b"get /api/tags"):
            self.transport.write(_whole(TAGS))
        elif head.startswith(b"get "):
            self.transport.write(_whole(b'{"version":"0.30.0"}'))
        elif b'"paced' in body:
            self.task = asyncio.get_running_loop().create_task(self.stream())
        else:
            self.transport.write(CALL)

    async def stream(self) -> None:
        self.transport.write(HEAD)
        for number in range(self.tokens):
            self.transport.write(_chunked(_line(f"t{number} ")))
            await asyncio.sleep(self.gap)
        self.transport.write(_chunked(_final(self.tokens)) + b"0\r\n\r\n")


async def main(port: int, tokens: int, gap: float) -> None:
    """Serve until told to stop."""
    Server.tokens, Server.gap = tokens, gap
    server = await asyncio.get_running_loop().create_server(Server, "127.0.0.1", port, backlog=1024)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])))
