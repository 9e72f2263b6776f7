"""What the simulated model says: the same chunks for the same request, each time."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import orjson

from trio_gateway.simulator.sample import sample

if TYPE_CHECKING:
    from trio_gateway.simulator.ask import Ask
    from trio_gateway.simulator.script import Script

_PIECE = re.compile(r"\S+\s*|\s+")
_THOUGHT = ("Let ", "me ", "think. ")
_ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789"


@dataclass(slots=True)
class Piece:
    """One chunk of a reply; `tokens` is how many it stands for."""

    content: str = ""
    thinking: str = ""
    calls: list[dict[str, Any]] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Reply:
    """The chunks before the final object, the calls in it, and why the reply ended."""

    pieces: list[Piece]
    reason: str
    calls: list[dict[str, Any]] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        """Count the tokens of the whole reply; each tool call is one."""
        return sum(len(piece.tokens) for piece in self.pieces) + len(self.calls)


def make_reply(ask: Ask, script: Script) -> Reply:
    """Plan the reply to a request."""
    if ask.empty:
        return Reply([], ask.empty)
    if script.line_bytes:
        return Reply([Piece(content="x" * script.line_bytes, tokens=["x"])], "stop")
    thought = list(_THOUGHT) if ask.think else []
    calls = _calls(ask, script)
    said = [] if calls else _said(ask, script)
    limit = ask.limit
    reason = "stop"
    if limit is not None and 0 <= limit < len(thought) + len(said) + len(calls):
        said = said[: max(0, limit - len(thought))]
        calls = calls[: max(0, limit - len(thought))]
        thought = thought[:limit]
        reason = "length"
    pieces = [Piece(thinking=token, tokens=[token]) for token in thought]
    step = script.chunk_tokens
    for start in range(0, len(said), step):
        tokens = said[start : start + step]
        pieces.append(Piece(content="".join(tokens), tokens=tokens))
    if script.tools_in == "final":
        return Reply(pieces, reason, calls)
    pieces += [Piece(calls=[call], tokens=[call["function"]["name"]]) for call in calls]
    return Reply(pieces, reason)


def _said(ask: Ask, script: Script) -> list[str]:
    if script.tokens is not None:
        return [f"t{place} " for place in range(script.tokens)]
    text = f"Echo: {ask.last_user}"
    if script.reply_text is not None:
        text = script.reply_text
    elif isinstance(ask.format, dict):
        text = orjson.dumps(sample(ask.format)).decode()
    elif ask.format == "json":
        text = orjson.dumps({"echo": ask.last_user}).decode()
    cuts = [place for stop in ask.stop if stop and (place := text.find(stop)) >= 0]
    return _PIECE.findall(text[: min(cuts)] if cuts else text)


def _calls(ask: Ask, script: Script) -> list[dict[str, Any]]:
    by_name = {
        function.get("name"): function
        for tool in ask.tools
        if isinstance(function := tool.get("function"), dict)
    }
    wanted = re.findall(r"\bcall ([\w.-]+)", ask.last_user) if by_name else []
    names = [
        name if name in by_name else name.rstrip(".-")
        for name in wanted
        if name in by_name or name.rstrip(".-") in by_name
    ]
    calls = []
    for place, name in enumerate(names):
        index = place if script.tool_index == "count" else 0
        arguments = sample(by_name[name].get("parameters") or {})
        call: dict[str, Any] = {
            "function": {"index": index, "name": name, "arguments": arguments},
        }
        calls.append({"id": _call_id(ask, place), **call} if script.tool_ids else call)
    return calls


def _call_id(ask: Ask, place: int) -> str:
    digest = hashlib.sha256(f"{place}:{ask.last_user}".encode("utf-8", "replace")).digest()
    return "call_" + "".join(_ALPHABET[byte % 36] for byte in digest[:8])
