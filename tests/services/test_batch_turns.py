"""Whose lines go next: models together, tenants in turn."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from trio_gateway.services.batches.turns import TURN, Candidate, Turns


def turns(**backends: tuple[str, ...]) -> Turns:
    return Turns(lambda model: backends.get(model, ("one",)))


def candidate(batch: str, tenant: str = "a", share: int = 1, model: str = "m") -> Candidate:
    return Candidate(batch, tenant, share, model)


def test_nothing_to_run_is_nobodys_turn():
    """No candidate, no choice."""
    assert turns().choose([], 0) is None


def test_a_tenants_batches_go_in_the_order_of_their_ends():
    """The first candidate of a tenant stays the first as long as it has lines."""
    own = turns()
    for _ in range(3):
        chosen = own.choose([candidate("b1"), candidate("b2")], 0)
        assert chosen is not None
        assert chosen.batch_id == "b1"
        own.served(chosen, 100)


@given(st.integers(1, 5), st.integers(1, 5))
def test_tenants_are_served_in_proportion_to_their_shares(first, second):
    """Over many claims of equal size, each tenant has lines in proportion to its share."""
    own, lines = turns(), Counter[str]()
    both = [candidate("b1", "a", first), candidate("b2", "b", second)]
    for _ in range(60 * (first + second)):
        chosen = own.choose(both, 0)
        assert chosen is not None
        own.served(chosen, 10)
        lines[chosen.tenant_id] += 10
    assert abs(lines["a"] * second - lines["b"] * first) <= 10 * max(first, second) * 2


def test_a_tenant_that_comes_late_does_not_catch_up():
    """What the others had before is not held against them."""
    own = turns()
    for _ in range(50):
        chosen = own.choose([candidate("b1", "a")], 0)
        assert chosen is not None
        own.served(chosen, 100)
    served = Counter[str]()
    for _ in range(10):
        chosen = own.choose([candidate("b1", "a"), candidate("b2", "b")], 0)
        assert chosen is not None
        own.served(chosen, 100)
        served[chosen.tenant_id] += 1
    assert served == {"a": 5, "b": 5}


def test_models_of_one_backend_run_one_after_the_other():
    """Within a turn every choice is of one model; the next turn is another's."""
    both = [candidate("b1", model="x"), candidate("b2", "b", model="y")]

    def models(now: float) -> set[str]:
        own, seen = turns(), set()
        for _ in range(10):
            chosen = own.choose(both, now)
            assert chosen is not None
            own.served(chosen, 50)
            seen.add(chosen.model)
        return seen

    assert [models(turn * TURN + 1) for turn in range(3)] == [{"x"}, {"y"}, {"x"}]


def test_workers_agree_on_the_model_without_a_word():
    """Two workers with different pasts turn to the same model at the same time."""
    both = [candidate("b1", model="x"), candidate("b2", model="y")]
    busy, idle = turns(), turns()
    for _ in range(7):
        chosen = busy.choose(both, 0)
        assert chosen is not None
        busy.served(chosen, 100)
    for now in (0.0, TURN, 5 * TURN):
        mine, other = busy.choose(both, now), idle.choose(both, now)
        assert mine is not None
        assert other is not None
        assert mine.model == other.model


def test_models_of_different_backends_run_side_by_side():
    """No backend stands idle while it has lines to run."""
    own, seen = turns(x=("one",), y=("two",)), set()
    both = [candidate("b1", "a", model="x"), candidate("b2", "b", model="y")]
    for _ in range(4):
        chosen = own.choose(both, 0)
        assert chosen is not None
        own.served(chosen, 10)
        seen.add(chosen.model)
    assert seen == {"x", "y"}


def test_a_model_that_nobody_has_gets_its_turn_too():
    """Its lines have to end somehow: they are told so when they are run."""
    own = turns(gone=())
    chosen = own.choose([candidate("b1", model="gone")], 0)
    assert chosen is not None
