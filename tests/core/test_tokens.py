"""Estimates, counts and charges."""

from fractions import Fraction
from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_gateway.core.domain import Basis, Call, Chunk
from trio_gateway.core.tokens import Count, Usage, believe, charge, estimate


def call(upstream="/api/chat", **changes):
    return Call("/x", upstream, "m", "m:latest", {}, **{"prompt_bytes": 100, **changes})


def counted(**changes):
    return Count(**{"estimate": 29, "ceiling": 50, "dispatched": True, **changes})


def test_an_estimate_is_a_quarter_of_the_bytes_plus_parts_and_images():
    """Bytes round up; each part costs 4 tokens and each image 768."""
    assert estimate(call(prompt_bytes=0, parts=0)) == 0
    assert estimate(call(prompt_bytes=1, parts=1)) == 5
    assert estimate(call(prompt_bytes=8, parts=2)) == 10
    assert estimate(call(prompt_bytes=9, parts=1, images=2)) == 3 + 4 + 1536


@given(st.integers(0, 10**15), st.integers(0, 10**9))
def test_a_charge_is_the_exact_product_rounded_up(tokens, weight):
    """No float stands between the tokens and the units."""
    assert charge(tokens, weight) == ceil(Fraction(tokens * weight, 1000))


def test_a_call_that_was_never_dispatched_costs_nothing():
    """Whatever was counted, nothing is charged."""
    usage = believe(call(), counted(dispatched=False, seen=3, final=True, output=3))
    assert usage == Usage(0, 0, Basis.NONE)


def test_final_counts_are_charged_as_they_are():
    """Counts that can be true are the truth."""
    usage = believe(call(), counted(seen=7, final=True, prompt=26, output=50))
    assert usage == Usage(26, 50, Basis.FINAL)
    assert usage.tokens == 76


def test_absent_final_counts_are_zero():
    """Ollama leaves out a count of zero."""
    assert believe(call(), counted(final=True)) == Usage(0, 0, Basis.FINAL)
    assert believe(call(), counted(final=True, output=4)) == Usage(0, 4, Basis.FINAL)


def test_a_short_prompt_in_a_long_template_is_believed():
    """Two bytes of prompt may well be dozens of tokens once the template is around them."""
    usage = believe(call(prompt_bytes=2), counted(final=True, prompt=68, output=1))
    assert usage.basis is Basis.FINAL


@pytest.mark.parametrize(
    ("prompt", "output"),
    [(-1, 5), (26, -1), (26, 51), (26, 10**12), (10**9, 5), (400 + 256 + 16 + 1, 5)],
)
def test_absurd_counts_are_replaced_by_estimate_and_chunks(prompt, output):
    """Negative, above the ceiling, or more prompt tokens than its bytes can hold."""
    usage = believe(call(), counted(seen=7, final=True, prompt=prompt, output=output))
    assert usage == Usage(29, 7, Basis.PARTIAL)


def test_images_may_cost_many_tokens():
    """The bound of a prompt grows with its images."""
    usage = believe(call(images=1), counted(final=True, prompt=5000, output=1))
    assert usage == Usage(5000, 1, Basis.FINAL)


def test_an_aborted_call_pays_for_estimate_and_chunks():
    """Without chunks it is an estimate, with them partial."""
    assert believe(call(), counted()) == Usage(29, 0, Basis.ESTIMATED)
    assert believe(call(), counted(seen=3)) == Usage(29, 3, Basis.PARTIAL)


def test_chunks_past_the_ceiling_are_not_charged():
    """What was held is the most that can be charged for output."""
    assert believe(call(), counted(seen=90)) == Usage(29, 50, Basis.PARTIAL)
    assert believe(call(), counted(seen=90, ceiling=None)) == Usage(29, 90, Basis.PARTIAL)
    usage = believe(call(), counted(final=True, output=90, ceiling=None))
    assert usage == Usage(0, 90, Basis.FINAL)


def test_embeddings_pay_for_their_prompt_alone():
    """/api/embed counts, /api/embeddings does not."""
    embed = call("/api/embed", generates=False)
    assert believe(embed, counted(ceiling=None, final=True, prompt=9)) == Usage(9, 0, Basis.FINAL)
    lie = counted(ceiling=None, final=True, prompt=9, output=9)
    assert believe(embed, lie) == Usage(29, 0, Basis.PARTIAL)
    legacy = call("/api/embeddings", generates=False)
    done = counted(ceiling=None, final=True)
    assert believe(legacy, done) == Usage(29, 0, Basis.ESTIMATED)


def test_a_count_meters_chunks_until_the_final_one():
    """Text, thinking and tool calls count one each, logprobs as many as they are."""
    count = counted()
    for chunk in (
        Chunk({}, content="a"),
        Chunk({}, thinking="b"),
        Chunk({}, tool_calls=[{}]),
        Chunk({}),
        Chunk({}, content="cd", logprobs=[{}, {}]),
    ):
        count.meter(chunk)
    assert (count.seen, count.final) == (5, False)
    count.meter(Chunk({}, done=True, prompt_tokens=26, output_tokens=6))
    assert believe(call(), count) == Usage(26, 6, Basis.FINAL)
