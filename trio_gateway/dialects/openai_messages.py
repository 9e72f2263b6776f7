"""Chat messages on their way in: OpenAI's roles and content parts to Ollama's flat messages."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from trio_gateway.core.errors import InvalidCall
from trio_gateway.dialects import fields
from trio_gateway.dialects.ollama_messages import MAX_MESSAGES, MAX_TOOL_CALLS
from trio_gateway.dialects.ollama_values import MAX_IMAGES, Tally
from trio_gateway.dialects.openai_media import audio, image
from trio_gateway.dialects.strict_json import CROWDED, Crowd, parse_object

_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}
# What was never said cannot be asked, but a tool may return nothing, and a call needs no words.
_MAY_BE_EMPTY = frozenset({"assistant", "tool"})

Json = dict[str, Any]


@dataclass(slots=True)
class Transcript:
    """The messages in upstream's terms, and what the model will have to read of them."""

    tally: Tally
    messages: list[Json] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=dict)  # tool names by tool call id
    crowd: Crowd = field(default_factory=Crowd)  # of all arguments

    def add(self, raw: Json, at: str) -> None:
        """Add one message, or raise InvalidCall; `at` is its path, such as `messages[0]`."""
        given = fields.required(fields.choice(raw, "role", tuple(_ROLES), at), "role", at)
        role = _ROLES[given]
        message: Json = {"role": role}
        self._add_content(message, raw.get("content"), fields.path("content", at))
        if role == "assistant":
            self._add_thinking(message, raw, at)
            self._add_calls(message, raw, at)
        elif role == "tool":
            self._add_answered_call(message, raw, at)
        self.messages.append(message)

    def _add_content(self, message: Json, content: Any, at: str) -> None:
        if content is None and message["role"] in _MAY_BE_EMPTY:
            content = ""
        texts: list[str] = []
        images: list[str] = []
        if isinstance(content, str):
            texts = [content]
        elif isinstance(content, list):
            texts, images = _split(content, at)
        else:
            raise fields.refusal(at, "must be a string or an array of parts")
        # Parts are separate passages to their writer; upstream has one text for them all.
        message["content"] = self._counted("\n".join(texts))
        if images:
            message["images"] = images
            self.tally.images += len(images)
            if self.tally.images > MAX_IMAGES:
                raise fields.refusal(at, f"brings more than the {MAX_IMAGES} images of one call")

    def _add_thinking(self, message: Json, raw: Json, at: str) -> None:
        thinking = fields.text(raw, "reasoning", at) or fields.text(raw, "reasoning_content", at)
        if thinking:
            message["thinking"] = self._counted(thinking)

    def _add_calls(self, message: Json, raw: Json, at: str) -> None:
        calls = fields.objects(raw, "tool_calls", at, most=MAX_TOOL_CALLS) or []
        inside = fields.path("tool_calls", at)
        shaped = [self._call(entry, i, fields.path(i, inside)) for i, entry in enumerate(calls)]
        if not shaped and fields.mapping(raw, "function_call", at):
            shaped = [{"function": self._function(raw, "function_call", at, index=0)}]
        if shaped:
            message["tool_calls"] = shaped

    def _call(self, raw: Json, index: int, at: str) -> Json:
        fields.choice(raw, "type", ("function",), at)
        call_id = fields.text(raw, "id", at)
        function = self._function(raw, "function", at, index=index)
        if not call_id:
            return {"function": function}
        self.names[call_id] = function["name"]
        return {"id": call_id, "function": function}

    def _function(self, raw: Json, key: str, at: str, *, index: int) -> Json:
        function = fields.required(fields.mapping(raw, key, at), key, at)
        inside = fields.path(key, at)
        name = fields.required(fields.text(function, "name", inside) or None, "name", inside)
        arguments = self._arguments(function.get("arguments"), fields.path("arguments", inside))
        called = {"index": index, "name": name, "arguments": arguments}
        self.tally.add_json(called)
        return called

    def _arguments(self, raw: Any, at: str) -> Json:
        """Read arguments, which OpenAI writes as JSON in a string and upstream as an object."""
        if raw is None or raw == "":
            return {}
        if isinstance(raw, dict):
            return raw
        rule = "must be a JSON object in a string"
        if not isinstance(raw, str):
            raise fields.refusal(at, rule)
        text = raw.encode()
        if self.crowd.add(text):
            raise fields.refusal(at, f"holds, with those before it, {CROWDED}")
        try:
            return parse_object(text, frozenset())
        except InvalidCall:
            raise fields.refusal(at, rule) from None

    def _add_answered_call(self, message: Json, raw: Json, at: str) -> None:
        call_id = fields.text(raw, "tool_call_id", at)
        name = fields.text(raw, "name", at) or self.names.get(call_id or "")
        if name:
            message["tool_name"] = self._counted(name)
        if call_id:
            message["tool_call_id"] = call_id

    def _counted(self, text: str) -> str:
        self.tally.add(text)
        return text


def read_messages(body: Json, tally: Tally) -> list[Json]:
    """Read the `messages` field, or raise InvalidCall naming the offending part of it."""
    given = fields.objects(body, "messages", most=MAX_MESSAGES)
    raw = fields.required(given, "messages")
    if not raw:
        raise fields.refusal("messages", "must not be empty")
    transcript = Transcript(tally)
    for index, message in enumerate(raw):
        transcript.add(message, fields.path(index, "messages"))
    return transcript.messages


def _split(parts: list[Any], at: str) -> tuple[list[str], list[str]]:
    """Tell the texts of an array of content parts from its images and sounds."""
    texts: list[str] = []
    images: list[str] = []
    for index, part in enumerate(parts):
        place = fields.path(index, at)
        if not isinstance(part, dict):
            raise fields.refusal(place, "must be an object")
        kinds = ("text", "image_url", "input_audio", "refusal")
        kind = fields.required(fields.choice(part, "type", kinds, place), "type", place)
        if kind == "image_url":
            images.append(image(part.get(kind), fields.path(kind, place)))
        elif kind == "input_audio":
            images.append(audio(part.get(kind), fields.path(kind, place)))
        else:
            texts.append(fields.required(fields.text(part, kind, place), kind, place))
    return texts, images
