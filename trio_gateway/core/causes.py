"""What was the matter: the first error inside the groups that nurseries make."""

from __future__ import annotations

import os

OURS = __name__.partition(".")[0]


def first_of(error: BaseException) -> BaseException:
    """Return the first single error inside groups of groups."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def sentence_of(error: BaseException) -> str:
    """Return what an operator may be told of the first single error.

    The first line of one of our own; of any other its type alone, with the system's own word for
    what the system refused: drivers quote addresses, with their passwords, and statements.
    """
    first = first_of(error)
    name, module = type(first).__name__, type(first).__module__
    if module.partition(".")[0] == OURS:
        return str(first).split("\n")[0] or name
    if isinstance(first, OSError) and first.errno and module == "builtins":
        return f"{name}: {os.strerror(first.errno)}"
    return name
