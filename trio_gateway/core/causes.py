"""What was the matter: the first error inside the groups that nurseries make."""

from __future__ import annotations


def first_of(error: BaseException) -> BaseException:
    """Return the first single error inside groups of groups."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def sentence_of(error: BaseException) -> str:
    """Return the first line of the first single error, or its type where it says nothing."""
    first = first_of(error)
    return str(first).split("\n")[0] or type(first).__name__
