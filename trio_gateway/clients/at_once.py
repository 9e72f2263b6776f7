"""Several questions to stores, all at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import trio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

T = TypeVar("T")


async def at_once(asked: Mapping[str, Callable[[], Awaitable[T]]]) -> dict[str, T]:
    """Return the answers by the names of their questions, in the same order.

    What one question raises ends the others, and is raised as it is.
    """
    answers: dict[str, T] = {}

    async def ask(name: str, question: Callable[[], Awaitable[T]]) -> None:
        answers[name] = await question()

    try:
        async with trio.open_nursery() as nursery:
            for name, question in asked.items():
                nursery.start_soon(ask, name, question)
    except BaseExceptionGroup as group:
        if len(group.exceptions) == 1:
            raise group.exceptions[0] from None  # noqa: ASYNC123 - that of one question
        raise
    return {name: answers[name] for name in asked}
