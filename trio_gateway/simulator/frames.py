"""A reply as the objects and lines of the native API."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trio_gateway.simulator import wire

if TYPE_CHECKING:
    from trio_gateway.simulator.ask import Ask
    from trio_gateway.simulator.reply import Piece, Reply
    from trio_gateway.simulator.script import Script

_PROMPT_NS = 100_000  # a token of the prompt
_OUTPUT_NS = 1_000_000  # a token of the reply
_LOAD_NS = 2_000_000


class Frames:
    """Renders one reply; every object carries the time at which the reply began."""

    def __init__(self, ask: Ask, script: Script, reply: Reply) -> None:
        """Prepare what all objects share."""
        self._ask = ask
        self._script = script
        self._reply = reply
        self._chat = ask.path == "/api/chat"
        self._common: dict[str, Any] = {"model": ask.requested, "created_at": wire.now()}
        if ask.model.remote_host:
            self._common["remote_model"] = ask.model.remote_model
            self._common["remote_host"] = ask.model.remote_host

    def line(self, piece: Piece) -> bytes:
        """Return the line of one chunk."""
        return wire.encode(self._chunk(piece) | {"done": False}) + b"\n"

    def final_line(self) -> bytes:
        """Return the last line."""
        return wire.encode(self._final()) + b"\n"

    def whole(self, *, done: bool = True) -> bytes:
        """Return the single object of a reply that is not streamed; `done` False is cut short."""
        pieces = self._reply.pieces
        calls = [call for piece in pieces for call in piece.calls]
        words = self._words(
            "".join(piece.content for piece in pieces),
            "".join(piece.thinking for piece in pieces),
            calls + self._reply.calls,
        )
        tokens = [token for piece in pieces for token in piece.tokens]
        end = self._final() if done else self._common | {"done": False}
        return wire.encode(end | words | self._logprobs(tokens))

    def _chunk(self, piece: Piece) -> dict[str, Any]:
        words = self._words(piece.content, piece.thinking, piece.calls)
        return self._common | words | self._logprobs(piece.tokens)

    def _words(self, content: str, thinking: str, calls: list[dict[str, Any]]) -> dict[str, Any]:
        more: dict[str, Any] = {}
        if thinking:
            more["thinking"] = thinking
        if calls:
            more["tool_calls"] = calls
        if self._chat:
            return {"message": {"role": "assistant", "content": content, **more}}
        return {"response": content, **more}

    def _logprobs(self, tokens: list[str]) -> dict[str, Any]:
        top = self._ask.top_logprobs
        if top is None or not tokens:
            return {}
        return {"logprobs": [_logprob(token, top) for token in tokens]}

    def _final(self) -> dict[str, Any]:
        ask, reply = self._ask, self._reply
        final = self._common | self._words("", "", reply.calls)
        final |= {"done": True, "done_reason": reply.reason}
        if ask.empty is None:
            prompt, output = ask.prompt_tokens, reply.tokens
            if ask.context:
                final["context"] = list(range(1, prompt + output + 1))
            metrics = {
                "total_duration": _LOAD_NS + prompt * _PROMPT_NS + output * _OUTPUT_NS,
                "load_duration": _LOAD_NS,
                "prompt_eval_count": prompt,
                "prompt_eval_duration": prompt * _PROMPT_NS,
                "eval_count": output,
                "eval_duration": output * _OUTPUT_NS,
            }
            final |= {name: value for name, value in metrics.items() if value}
        final |= self._script.final
        return {name: value for name, value in final.items() if value is not None}


def _logprob(token: str, top: int) -> dict[str, Any]:
    entry: dict[str, Any] = {"token": token, "logprob": -0.25, "bytes": list(token.encode())}
    if top:
        entry["top_logprobs"] = [
            {"token": token if place == 0 else f"alt{place}", "logprob": -0.25 - place}
            for place in range(top)
        ]
    return entry
