"""A first exchange over a fresh connection, with a Redis server or a sentinel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import hiredis
import trio

if TYPE_CHECKING:
    from collections.abc import Sequence

Command = tuple[Any, ...]

READ = 65_536


class ConnectionLost(Exception):
    """There is no connection, or no longer; the text is for an operator and holds no secret."""


def login(username: str | None, password: str | None) -> list[Command]:
    """Return the command that authenticates, or none; a password alone is the default user's."""
    if not password:
        return []
    return [("AUTH", username, password) if username else ("AUTH", password)]


async def open_stream(host: str, port: int, *, tls: bool) -> trio.abc.Stream:
    """Connect; raises OSError, and ConnectionLost for a name that cannot be one."""
    try:
        if tls:
            return await trio.open_ssl_over_tcp_stream(host, port)
        return await trio.open_tcp_stream(host, port)
    except UnicodeError:
        raise ConnectionLost("the host's name cannot be looked up") from None


async def converse(stream: trio.abc.Stream, commands: Sequence[Command]) -> list[Any]:
    """Send the commands in one write; return the answers in order, refusals among them.

    Raises ConnectionLost, and trio.BrokenResourceError.
    """
    await stream.send_all(b"".join(map(hiredis.pack_command, commands)))
    reader = hiredis.Reader()
    answers: list[Any] = []
    while len(answers) < len(commands):
        try:
            while (answer := reader.gets()) is False:
                reader.feed(await _read(stream))
        except hiredis.ProtocolError:
            raise ConnectionLost("this is no Redis") from None
        answers.append(answer)
    return answers


def refusal(answer: Any) -> str:
    """Return the code of an answer that is an error, such as WRONGPASS; empty for any other."""
    return str(answer).partition(" ")[0] if isinstance(answer, hiredis.ReplyError) else ""


def run_id_of(answer: Any) -> str:
    """Return the run id in an answer to INFO; raises ConnectionLost where there is none."""
    text = answer.decode(errors="replace") if isinstance(answer, bytes) else ""
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    if not fields.get("run_id"):
        raise ConnectionLost("the server has no run id")
    return fields["run_id"]


async def _read(stream: trio.abc.Stream) -> bytes:
    data = bytes(await stream.receive_some(READ))
    if not data:
        raise ConnectionLost("the connection ended")
    return data
