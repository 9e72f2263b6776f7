"""Log probabilities, in the two shapes that OpenAI gives them."""

from __future__ import annotations

from typing import Any


def shape_tokens(entries: list[dict[str, Any]]) -> dict[str, Any]:
    """Shape chat's form: every token has `bytes` and a `top_logprobs` list, empty if need be."""
    content = [
        {**_token(entry), "top_logprobs": [_token(other) for other in entry_top(entry)]}
        for entry in entries
    ]
    return {"content": content, "refusal": None}


def entry_top(entry: dict[str, Any]) -> list[dict[str, Any]]:
    """Return upstream's alternatives for one token; it leaves the list out where it is empty."""
    top: list[dict[str, Any]] = entry.get("top_logprobs") or []
    return top


def _token(entry: dict[str, Any]) -> dict[str, Any]:
    token = str(entry.get("token", ""))
    spelled = entry.get("bytes")
    return {
        "token": token,
        "logprob": entry.get("logprob", 0.0),
        "bytes": list(token.encode()) if spelled is None else spelled,
    }


class TextLogprobs:
    """The columns of /v1/completions; offsets are in characters of the whole answer."""

    def __init__(self, alternatives: int) -> None:
        """`alternatives` is what the caller asked for; 0 leaves `top_logprobs` null."""
        self._alternatives = alternatives
        self._offset = 0

    def shape(self, entries: list[dict[str, Any]]) -> dict[str, Any]:
        """Shape the next tokens, going on from the offset that the last ones reached."""
        tokens = [str(entry.get("token", "")) for entry in entries]
        offsets = []
        for token in tokens:
            offsets.append(self._offset)
            self._offset += len(token)
        return {
            "tokens": tokens,
            "token_logprobs": [entry.get("logprob", 0.0) for entry in entries],
            "top_logprobs": [_alternatives(entry) for entry in entries]
            if self._alternatives
            else None,
            "text_offset": offsets,
        }


def _alternatives(entry: dict[str, Any]) -> dict[str, float]:
    return {str(other.get("token", "")): other.get("logprob", 0.0) for other in entry_top(entry)}
