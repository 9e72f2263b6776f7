"""What Ollama's inference requests share: options, format, think, images, logprobs.

A sampling option is checked as Ollama would, so that a wrong type is a 400 here and not
its 500. A load-time option or `keep_alive` would reload or unload a model for everyone:
whatever the caller says of these is dropped, and the operator's values are sent.
"""

from __future__ import annotations

import binascii
import re
from dataclasses import dataclass
from typing import Any

import orjson

from trio_gateway.dialects import fields
from trio_gateway.dialects.fields import INT32_MAX, INT64_MAX, INT64_MIN, Json, path, refusal
from trio_gateway.dialects.strict_json import refuse_twins

MAX_STOPS = 64
MAX_STOP_LENGTH = 1024  # characters
MAX_IMAGES = 128  # in one call
MAX_FORMAT_BYTES = 65_536  # a grammar is built of it
MAX_TOP_LOGPROBS = 20
# The server keeps a ring of this many tokens for each sequence.
MAX_REPEAT_LAST_N = 262_144

THINK_LEVELS = ("low", "medium", "high", "max")

_INTEGERS = {
    "num_keep": (-1, INT32_MAX),
    "seed": (INT64_MIN, INT64_MAX),
    "top_k": (-1, INT32_MAX),
    "repeat_last_n": (-1, MAX_REPEAT_LAST_N),
}
_NUMBERS = (
    "top_p",
    "min_p",
    "typical_p",
    "temperature",
    "repeat_penalty",
    "presence_penalty",
    "frequency_penalty",
)
# Accepted and dropped: a change of one reloads the model for everybody.
_LOAD_TIME = (
    "num_ctx",
    "num_batch",
    "num_gpu",
    "main_gpu",
    "use_mmap",
    "num_thread",
    "draft_num_predict",
)
_OPTIONS = frozenset({*_NUMBERS, *_INTEGERS, *_LOAD_TIME, "stop", "num_predict"})
_UNITS = {"ns": 1, "us": 1e3, "µs": 1e3, "μs": 1e3, "ms": 1e6, "s": 1e9, "m": 6e10, "h": 3.6e12}
_SPAN = re.compile(r"([0-9]{1,32}(?:\.[0-9]{0,32})?|\.[0-9]{1,32})(ns|us|µs|μs|ms|s|m|h)")


@dataclass(slots=True)
class Tally:
    """What the model will have to read: UTF-8 bytes of text, and images."""

    size: int = 0
    images: int = 0

    def add(self, value: str | None) -> None:
        """Count a text, if there is one."""
        if value:
            self.size += fields.size(value)

    def add_json(self, value: Any) -> int:
        """Count a value as JSON, and return its bytes."""
        size = len(orjson.dumps(value))
        self.size += size
        return size


def read_options(source: Json) -> tuple[Json, int | None]:
    """Return the sampling options, and the caller's output limit or None.

    -1 and -2 mean no limit, and so does 0, which Ollama takes for one of these.
    Unknown options are dropped. Raises InvalidCall.
    """
    given = fields.mapping(source, "options")
    if not given:
        return {}, None
    refuse_twins(given, _OPTIONS, "options")
    options: Json = {}
    for key in _NUMBERS:
        if given.get(key) is not None:
            options[key] = fields.number(given, key, "options")
    for key, (low, high) in _INTEGERS.items():
        if given.get(key) is not None:
            options[key] = _whole(given, key, low, high)
    stop = fields.texts(given, "stop", "options", most=MAX_STOPS)
    if stop:
        if max(map(len, stop)) > MAX_STOP_LENGTH:
            raise refusal("options.stop", f"must hold at most {MAX_STOP_LENGTH} characters each")
        options["stop"] = stop
    ask = _whole(given, "num_predict", -2, INT32_MAX)
    return options, ask if ask and ask > 0 else None


def _whole(given: Json, key: str, low: int, high: int) -> int | None:
    """Return an integer option; like Ollama, cut off what stands behind a decimal point."""
    value = given.get(key)
    if type(value) is float:
        value = int(value)
    return fields.integer({key: value}, key, "options", low=low, high=high)


def read_format(source: Json, tally: Tally) -> str | Json | None:
    """Return `json`, a JSON Schema, or None. Raises InvalidCall."""
    value = source.get("format")
    if value is None or value == "":
        return None
    if value == "json":
        return "json"
    if type(value) is not dict:
        raise refusal("format", "must be 'json' or a JSON Schema object")
    if tally.add_json(value) > MAX_FORMAT_BYTES:
        raise refusal("format", f"must be at most {MAX_FORMAT_BYTES} bytes long")
    return value


def read_think(source: Json) -> bool | str | None:
    """Return whether, or how much, the model shall think. Raises InvalidCall."""
    value = source.get("think")
    if value is None or type(value) is bool or value in THINK_LEVELS:
        return value
    raise refusal("think", f"must be true, false or one of {', '.join(THINK_LEVELS)}")


def read_images(source: Json, tally: Tally, at: str = "") -> list[str] | None:
    """Return base64 images, each checked. Raises InvalidCall."""
    images = fields.texts(source, "images", at)
    if not images:
        return None
    tally.images += len(images)
    if tally.images > MAX_IMAGES:
        raise refusal(path("images", at), f"must be at most {MAX_IMAGES} in one call")
    for index, image in enumerate(images):
        if not _is_base64(image):
            raise refusal(path(index, path("images", at)), "must be base64 with its padding")
    return images


def _is_base64(value: str) -> bool:
    try:
        return bool(
            binascii.a2b_base64(value.replace("\r", "").replace("\n", ""), strict_mode=True)
        )
    except ValueError:
        return False


def read_logprobs(source: Json) -> Json:
    """Return `logprobs` and `top_logprobs` as far as they were given. Raises InvalidCall."""
    found: Json = {
        "logprobs": fields.boolean(source, "logprobs"),
        "top_logprobs": fields.integer(source, "top_logprobs", low=0, high=MAX_TOP_LOGPROBS),
    }
    return {key: value for key, value in found.items() if value is not None}


def read_keep_alive(source: Json) -> bool:
    """Return whether the caller asks to unload the model at once.

    Policy decides how long a model stays, so a value that cannot be read is no error.
    """
    value = source.get("keep_alive")
    if value is None:
        return False
    if type(value) is int or type(value) is float:
        return 0 <= value < 1e-9
    return type(value) is str and _is_zero(value)


def _is_zero(duration: str) -> bool:
    unsigned = duration[1:] if duration[:1] in {"+", "-"} else duration
    if unsigned == "0":
        return True
    nanoseconds, position = 0.0, 0
    while span := _SPAN.match(unsigned, position):
        nanoseconds += float(span[1]) * _UNITS[span[2]]
        position = span.end()
    return 0 < position == len(unsigned) and nanoseconds < 1
