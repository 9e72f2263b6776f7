"""What a generating request asks for, checked in the order and the words of Ollama."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from trio_gateway.simulator import wire

if TYPE_CHECKING:
    from trio_gateway.simulator.models import Model
    from trio_gateway.simulator.state import Simulation

_SHARED = {
    "model": "string",
    "stream": "bool",
    "format": "interface {}",
    "keep_alive": "interface {}",
    "options": "map[string]interface {}",
    "think": "interface {}",
    "logprobs": "bool",
    "top_logprobs": "int",
    "truncate": "bool",
    "shift": "bool",
}
CHAT = _SHARED | {"messages": "[]api.Message", "tools": "[]api.Tool"}
GENERATE = _SHARED | {
    "prompt": "string",
    "suffix": "string",
    "system": "string",
    "template": "string",
    "context": "[]int",
    "raw": "bool",
    "images": "[]string",
}
_MESSAGE = {
    "role": "string",
    "content": "string",
    "thinking": "string",
    "images": "[]string",
    "tool_calls": "[]api.ToolCall",
    "tool_name": "string",
    "tool_call_id": "string",
}
_INTS = {
    "draft_num_predict",
    "main_gpu",
    "num_batch",
    "num_ctx",
    "num_gpu",
    "num_keep",
    "num_predict",
    "num_thread",
    "repeat_last_n",
    "seed",
    "top_k",
}
_FLOATS = {
    "frequency_penalty",
    "min_p",
    "presence_penalty",
    "repeat_penalty",
    "temperature",
    "top_p",
    "typical_p",
}
_LEVELS = (True, False, "low", "medium", "high", "max")
_FULL = "registry.ollama.ai/library/{} does not support {}"


@dataclass(slots=True)
class Ask:
    """One chat or generate request, understood."""

    path: str
    requested: str
    model: Model
    last_user: str = ""
    prompt_tokens: int = 0
    tools: list[dict[str, Any]] = field(default_factory=list)
    think: bool = False
    format: Any = None
    limit: int | None = None  # tokens
    stop: list[str] = field(default_factory=list)
    top_logprobs: int | None = None  # None where logprobs were not asked for
    stream: bool = True
    context: bool = False  # the final object carries one
    empty: str | None = None  # "load" or "unload" where there is nothing to generate


def understand(path: str, body: dict[str, Any], sim: Simulation) -> Ask:
    """Check a decoded request and find its model, or raise Refusal."""
    chat = path == "/api/chat"
    if not 0 <= body.get("top_logprobs", 0) <= 20:
        raise wire.Refusal(400, "top_logprobs must be between 0 and 20")
    requested = body.get("model", "")
    model = find_model(requested, sim, chat=chat)
    if not model.can("completion"):
        verb = "chat" if chat else "generate"
        raise wire.Refusal(400, f'"{requested}" does not support {verb}')
    options = check_options(body.get("options", {}))
    ask = Ask(
        path,
        requested,
        model,
        think=_think(body.get("think"), requested, model),
        format=_format(body.get("format")),
        stop=options.get("stop", []),
        limit=options.get("num_predict"),
        stream=body.get("stream", True),
        top_logprobs=body.get("top_logprobs", 0) if body.get("logprobs") else None,
    )
    unload = check_keep_alive(body.get("keep_alive")) == 0
    filled = _read_chat(ask, body) if chat else _read_prompt(ask, body)
    if not filled:
        ask.empty = "unload" if unload else "load"
    return ask


def find_model(requested: str, sim: Simulation, *, chat: bool) -> Model:
    """Find a model for chat or generate, or raise Refusal."""
    if not requested and chat:
        raise wire.Refusal(400, "model is required")
    model = sim.find(requested) if requested else None
    if model is None:
        raise wire.Refusal(404, f"model '{requested}' not found")
    return model


def check_options(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options with integers cut from floats; a wrong type is Ollama's 500."""
    checked: dict[str, Any] = {}
    for name, value in options.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if value is None:
            continue
        if name in _INTS:
            _require(number, name, "integer")
        elif name in _FLOATS:
            _require(number, name, "float32")
        elif name == "stop":
            good = isinstance(value, list) and all(isinstance(item, str) for item in value)
            _require(good, name, "array")
        elif name == "use_mmap":
            _require(isinstance(value, bool), name, "boolean")
        checked[name] = int(value) if name in _INTS else value
    return checked


def check_keep_alive(value: Any) -> float:
    """Return the seconds, or raise Refusal; -1 is for ever, 300 the default."""
    if value is None:
        return 300
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    units = {"s": 1, "m": 60, "h": 3600}
    if isinstance(value, str):
        text = value.strip()
        scale = units.get(text[-1:], 1)
        try:
            return float(text.rstrip("smh")) * scale
        except ValueError:
            pass
    raise wire.Refusal(400, f'time: invalid duration "{value}"')


def words(text: str) -> int:
    """Count tokens as the simulation does: words."""
    return len(text.split())


def _require(good: object, name: str, kind: str) -> None:
    if not good:
        raise wire.Refusal(500, f'option "{name}" must be of type {kind}')


def _think(value: Any, requested: str, model: Model) -> bool:
    if value is not None and value not in _LEVELS:
        raise wire.Refusal(400, f'invalid think value: "{value}" (must be "high", "medium", "low")')
    if model.can("thinking"):
        return value is not False
    if value is None or value is False:
        return False
    raise wire.Refusal(400, f'"{requested}" does not support thinking')


def _format(value: Any) -> Any:
    if value is None or value == "":
        return None
    if value == "json" or isinstance(value, dict):
        return value
    raise wire.Refusal(500, 'invalid format: expected "json" or a JSON schema')


def _read_chat(ask: Ask, body: dict[str, Any]) -> bool:
    messages = [
        wire.decode(wire.encode(item), "Message", _MESSAGE) for item in body.get("messages", [])
    ]
    for message in messages:
        wire.check_images(message.get("images", []))
        for call in message.get("tool_calls", []):
            arguments = (call.get("function") or {}).get("arguments")
            if arguments is not None and not isinstance(arguments, dict):
                raise wire.Refusal(
                    400,
                    "json: cannot unmarshal string into Go struct field "
                    "ToolCallFunction.messages.tool_calls.function.arguments of type "
                    "api.ToolCallFunctionArguments",
                )
    users = [item.get("content", "") for item in messages if item.get("role") == "user"]
    ask.last_user = users[-1] if users else ""
    ask.prompt_tokens = sum(words(item.get("content", "")) + 3 for item in messages)
    tools = body.get("tools", [])
    if tools and not ask.model.can("tools"):
        raise wire.Refusal(400, _FULL.format(ask.model.name, "tools"))
    if messages and messages[-1].get("role") == "user":
        ask.tools = tools
    return bool(messages)


def _read_prompt(ask: Ask, body: dict[str, Any]) -> bool:
    raw = body.get("raw", False)
    if raw and any(body.get(name) for name in ("template", "system", "context")):
        raise wire.Refusal(400, "raw mode does not support template, system, or context")
    if body.get("suffix") and not ask.model.can("insert"):
        raise wire.Refusal(400, _FULL.format(ask.model.name, "insert"))
    wire.check_images(body.get("images", []))
    ask.context = not raw
    ask.last_user = body.get("prompt", "")
    ask.prompt_tokens = words(ask.last_user) + words(body.get("system", "")) + 3
    return bool(ask.last_user)
