"""Model policies: what is decided is what is seen after a refresh, under any spelling."""

import pytest
import trio

from trio_gateway.clients.bridge import open_bridge
from trio_gateway.clients.postgres import open_postgres
from trio_gateway.core.domain import ModelPolicy
from trio_gateway.core.errors import StoreUnavailable
from trio_gateway.services.policies import ModelBook, Policies

LIMIT = 60


async def test_a_model_without_a_policy_has_the_default_one(postgres):
    """Before any row, and before any refresh, nothing is blocked and all weigh one."""
    with trio.fail_after(LIMIT):
        policies = Policies(postgres)
        assert policies.policy("m:latest") == ModelPolicy("m:latest")
        await policies.refresh()
        assert policies.policy("m:latest") == ModelPolicy("m:latest")
        assert policies.blocked == frozenset()


async def test_what_the_operator_sets_is_seen_at_the_next_refresh(postgres):
    """Block, weight, size and digest arrive, change and go."""
    with trio.fail_after(LIMIT):
        policies, book = Policies(postgres), ModelBook(postgres, "test")
        await book.set("m:latest", {"blocked": True}, "model.block")
        await book.set("m:latest", {"milli_weight": 2500}, "model.weight")
        row = await book.set("m:latest", {"num_ctx": 4096, "digest": "d" * 64}, "model.pin")
        assert policies.blocked == frozenset()
        await policies.refresh()
        assert policies.policy("m:latest") == ModelPolicy("m:latest", True, 2500, 4096, "d" * 64)
        assert policies.blocked == {"m:latest"}
        assert [found["name"] for found in await book.listing()] == [row["name"]]
        await book.set("m:latest", {"blocked": False, "num_ctx": None}, "model.unblock")
        await policies.refresh()
        assert policies.policy("m:latest") == ModelPolicy("m:latest", False, 2500, None, "d" * 64)
        assert policies.blocked == frozenset()


@pytest.mark.parametrize(
    ("value", "usual"),
    [
        ({"blocked": True}, {"blocked": False}),
        ({"milli_weight": 5}, {"milli_weight": 1000}),
        ({"num_ctx": 4096, "digest": "d" * 64}, {"num_ctx": None, "digest": None}),
    ],
)
async def test_a_policy_that_says_nothing_any_more_is_gone(postgres, value, usual):
    """From the book as from what workers know; that it was there stays on record."""
    with trio.fail_after(LIMIT):
        policies, book = Policies(postgres), ModelBook(postgres, "test")
        await book.set("m:latest", value, "model.update")
        row = await book.set("m:latest", usual, "model.update")
        assert {column: row[column] for column in usual} == usual
        assert await book.listing() == []
        await policies.refresh()
        assert policies.policy("m:latest") == ModelPolicy("m:latest")
        acts = await postgres.fetch("SELECT before FROM gateway.admin_events ORDER BY id")
        assert [act["before"] is None for act in acts] == [True, False]


async def test_each_change_is_recorded_with_what_was_before(postgres):
    """The record of an act is in the same transaction."""
    with trio.fail_after(LIMIT):
        book = ModelBook(postgres, "test")
        await book.set("m:latest", {"blocked": True}, "model.block")
        await book.set("m:latest", {"milli_weight": 1}, "model.weight")
        rows = await postgres.fetch(
            "SELECT actor, action, subject, before->>'blocked' AS was, after->>'blocked' AS is"
            " FROM gateway.admin_events ORDER BY id"
        )
        assert [tuple(row) for row in rows] == [
            ("test", "model.block", "m:latest", None, "true"),
            ("test", "model.weight", "m:latest", "true", "true"),
        ]


async def test_columns_are_those_of_a_policy_alone(postgres):
    """A programming error is loud, and no statement is made of it."""
    with trio.fail_after(LIMIT):
        book = ModelBook(postgres, "test")
        for values in ({}, {"name": "x"}, {"blocked = true --": 1}):
            with pytest.raises(TypeError):
                await book.set("m:latest", values, "model.block")


async def test_rows_written_by_hand_count_under_their_canonical_name(postgres):
    """Two spellings are one policy, where a block wins; a name of nothing is passed over."""
    with trio.fail_after(LIMIT):
        await postgres.fetch(
            "INSERT INTO gateway.models (name, blocked) VALUES"
            " ('LLAMA3', true), ('llama3:latest', false), ('a b', true)"
        )
        policies = Policies(postgres)
        await policies.refresh()
        assert policies.blocked == {"llama3:latest"}


async def test_a_failed_refresh_leaves_the_last_policies_standing():
    """A store out of reach is said, and forgets nothing."""
    with trio.fail_after(LIMIT):
        async with (
            open_bridge() as bridge,
            open_postgres(bridge, "postgresql://x@127.0.0.1:1/x") as postgres,
        ):
            policies = Policies(postgres)
            with pytest.raises(StoreUnavailable):
                await policies.refresh()
            assert policies.blocked == frozenset()
