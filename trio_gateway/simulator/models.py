"""Which models the simulated Ollama has, and how a name finds one of them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

DEFAULT_MODELS = (
    "llama3.2:latest",
    "qwen3:8b",
    "nomic-embed-text:latest",
    "llava:7b",
    "gpt-oss:20b-cloud",
)
CLOUD_HOST = "https://ollama.com:443"

_PREFIXES = ("https://", "http://", "registry.ollama.ai/", "library/")
_THINKERS = ("qwen3", "gpt-oss", "deepseek-r1", "think")
_SEERS = ("llava", "vision")
_EPOCH = datetime(2026, 1, 31, 12, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Model:
    """One model; `name` is canonical and has its tag, sizes are bytes."""

    name: str
    family: str
    size: int
    digest: str
    capabilities: tuple[str, ...]
    modified_at: str
    remote_host: str | None = None
    remote_model: str | None = None
    parameter_size: str = "8.0B"
    context_length: int = 8192
    embedding_length: int = 768

    def can(self, capability: str) -> bool:
        """Tell whether the model has a capability."""
        return capability in self.capabilities


def canonical(name: str) -> str:
    """Reduce a model's name to the form in which it is stored: lower case, with a tag."""
    short = name.strip().lower()
    for prefix in _PREFIXES:
        short = short.removeprefix(prefix)
    if short.rpartition(":")[2] == "local":
        short = short.rpartition(":")[0]
    return short if ":" in short.rpartition("/")[2] else f"{short}:latest"


def is_cloud(name: str) -> bool:
    """Tell whether a canonical name sends the request to Ollama's cloud, pulled or not."""
    tag = name.rpartition(":")[2]
    return tag == "cloud" or tag.endswith("-cloud")


def make_model(spec: str | Mapping[str, Any], place: int = 0) -> Model:
    """Build a model from its name, or from a mapping with `name` and any fields of Model.

    What is not given follows from the name: the family, the capabilities (thinking for
    qwen3 and gpt-oss, vision for llava, embedding for *embed*), a remote host for cloud
    names. `place` sets how old it is.
    """
    given: dict[str, Any] = {"name": spec} if isinstance(spec, str) else dict(spec)
    name = given["name"] = canonical(given["name"])
    digest = hashlib.sha256(name.encode()).hexdigest()
    implied: dict[str, Any] = {
        "family": name.partition(":")[0].rpartition("/")[2].partition("-")[0],
        "size": 1_000_000_000 + int(digest[:7], 16),
        "digest": digest,
        "capabilities": _capabilities(name),
        "modified_at": (_EPOCH - timedelta(hours=place)).isoformat().replace("+00:00", "Z"),
    }
    if is_cloud(name):
        remote = name.removesuffix("-cloud").removesuffix(":cloud")
        implied |= {"remote_host": CLOUD_HOST, "remote_model": remote, "size": 384}
    fields = implied | given
    fields["capabilities"] = tuple(fields["capabilities"])
    return Model(**fields)


def make_catalog(specs: Iterable[str | Mapping[str, Any] | Model]) -> dict[str, Model]:
    """Build the models by canonical name, newest first."""
    models = [
        spec if isinstance(spec, Model) else make_model(spec, place)
        for place, spec in enumerate(specs)
    ]
    return {model.name: model for model in models}


def _capabilities(name: str) -> tuple[str, ...]:
    if "embed" in name:
        return ("embedding",)
    found = ["completion", "tools"]
    if any(word in name for word in _THINKERS):
        found.append("thinking")
    if any(word in name for word in _SEERS):
        found.append("vision")
    return tuple(found)
