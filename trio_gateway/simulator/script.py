"""How the simulated Ollama is told to misbehave."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

Ending = Literal["done", "die", "eof", "error", "garbage"]
ENDINGS = ("done", "die", "eof", "error", "garbage")

_KINDS: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "bool": (bool,),
    "int": (int,),
    "float": (int, float),
    "dict": (dict,),
    "Ending": (str,),
    "Literal": (str,),
}


@dataclass(frozen=True, slots=True)
class Script:
    """What happens to the requests that it matches; the default is a good, instant reply.

    Without `path` it matches the four inference routes, with one that route alone (also
    `/api/tags` and the like, where head_delay, never_reads, never_answers and the status
    are what counts). `times` is how many requests it serves, None for ever.
    """

    model: str | None = None
    path: str | None = None
    times: int | None = None

    head_delay: float = 0.0  # seconds before the head
    token_gap: float = 0.0  # seconds between chunks; 0 writes them all at once
    tokens: int | None = None  # this many tokens "t0 t1 ..." in place of the reply
    reply_text: str | None = None
    chunk_tokens: int = 1  # tokens in each chunk
    flood: bool = False  # tokens without end, whatever num_predict says

    held: bool = False  # the end waits until other scripts are played

    ending: Ending = "done"  # die breaks the connection, eof just stops, error is a line
    after: int | None = None  # chunks before any other ending than done; None is all
    final: dict[str, Any] = field(default_factory=dict)  # changes to it; None removes a field
    line_bytes: int = 0  # one chunk whose text is so long, in place of the reply

    status: int | None = None  # an error, or a redirect, in place of the reply
    error_text: str | None = None
    location: str = "/api/pull"  # where a redirect leads
    headers: dict[str, str] = field(default_factory=dict)  # added to the head

    never_reads: bool = False  # leaves the body on the socket; it cannot go by model
    never_answers: bool = False

    tools_in: Literal["final", "intermediate"] = "final"
    tool_ids: bool = True
    tool_index: Literal["count", "zero"] = "count"

    def __post_init__(self) -> None:
        """Raise ValueError where the script cannot work."""
        if self.ending not in ENDINGS:
            raise ValueError(f"ending must be one of {', '.join(ENDINGS)}")
        if self.never_reads and self.model is not None:
            raise ValueError("never_reads cannot go by model: the body is not read")
        if self.tools_in not in {"final", "intermediate"}:
            raise ValueError("tools_in must be final or intermediate")
        if self.tool_index not in {"count", "zero"}:
            raise ValueError("tool_index must be count or zero")
        if self.chunk_tokens < 1:
            raise ValueError("chunk_tokens must be at least 1")

    @property
    def instant(self) -> bool:
        """Tell whether the whole reply may go out in one write."""
        plain = self.ending == "done" and not self.line_bytes
        return plain and not self.flood and not self.token_gap and not self.held


def parse_script(given: Any) -> Script:
    """Build a script from parsed JSON, or raise ValueError naming what is wrong."""
    if not isinstance(given, dict):
        raise ValueError("a script is an object")  # noqa: TRY004  (bad input, not a bad call)
    kinds = {item.name: str(item.type) for item in fields(Script)}
    for name, value in given.items():
        if name not in kinds:
            raise ValueError(f"{name} is not a field of a script")
        if not _fits(value, kinds[name]):
            raise ValueError(f"{name} must be {kinds[name]}")
    return Script(**given)


def parse_scripts(given: Any) -> tuple[Script, ...]:
    """Build scripts from an object, a list of objects or null; or raise ValueError."""
    if given is None:
        return ()
    return tuple(parse_script(item) for item in (given if isinstance(given, list) else [given]))


def dump_script(script: Script) -> Mapping[str, Any]:
    """Return the fields of a script."""
    return {item.name: getattr(script, item.name) for item in fields(Script)}


def _fits(value: Any, annotation: str) -> bool:
    if value is None:
        return "None" in annotation
    kinds = _KINDS[annotation.partition("[")[0].partition(" ")[0]]
    return isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool))
