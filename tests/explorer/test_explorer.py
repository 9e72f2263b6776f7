"""Every interleaving of the settlement protocol, by the scripts that Redis runs.

`python -m tests.load.explore_deep` searches further: every fault among all actors, and pairs.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.explorer.faults import EVERY_FAULT
from tests.explorer.nouns import Plan, Scenario
from tests.explorer.search import Found, explore
from trio_gateway.services.quota.keys import scripts

DIRECT = (Plan("a", 2),)
QUEUED = (Plan("b", 2, queued=True, key_budget=9),)
ONE_KEY = (Plan("a", 2), Plan("a", 2))


def small(*faults: str, count: int | None = None, **changes: object) -> Scenario:
    """Two calls and one sweeper; each fault once, or `count` of them in all."""
    chosen = {"sweepers": 1, "bystander": False} | changes
    count = len(faults) if count is None else count
    return Scenario(faults=frozenset(faults), fault_count=count, **chosen)  # type: ignore[arg-type]


def lone(*faults: str, count: int | None = None, **changes: object) -> Scenario:
    """One call, one sweeper and one more hydrate."""
    return small(*faults, count=count, **({"calls": DIRECT, "bystander": True} | changes))


def mutated(script: str, text: str, instead: str) -> dict[str, str]:
    sources = scripts()
    assert sources[script].count(text) == 1, "the mutation does not fit the script any more"
    sources[script] = sources[script].replace(text, instead)
    return sources


def told(found: Found) -> str:
    return "\n  ".join([f"after {found.states} states: {found.violation}", *found.trace])


def test_two_calls_without_a_fault_keep_the_account_exact():
    """Two calls, two sweepers and three hydrates, in any order: counters and ledger agree."""
    found = explore(scripts(), Scenario())
    assert found.violation is None, told(found)
    assert found.complete


@pytest.mark.parametrize("fault", sorted(EVERY_FAULT - {"rollback"}))
def test_one_fault_at_any_moment_keeps_the_account_exact(fault):
    """Two calls, and a fault before, between or after any two steps."""
    found = explore(scripts(), small(fault))
    assert found.violation is None, told(found)
    assert found.complete


def test_a_redis_that_loses_its_last_moments_keeps_the_account_exact():
    """Two calls, and Redis comes back with any earlier state."""
    found = explore(scripts(), small("rollback", calls=ONE_KEY))
    assert found.violation is None, told(found)
    assert found.complete


def test_two_faults_at_any_moments_keep_the_account_exact():
    """One call and a hydrate beside it, with any two of the faults that meet the most."""
    found = explore(scripts(), lone("kill", "stop", "loss", "flush", "reply", count=2))
    assert found.violation is None, told(found)
    assert found.complete


def test_data_loss_with_a_kill_is_the_one_exception():
    """Rule 11: nobody knows of a call whose worker and hold are gone; either alone is harmless."""
    strict = frozenset({"rule 11"})
    found = explore(scripts(), lone("kill", "loss", rules_dropped=strict))
    assert found.violation == "c1 was admitted, and has no row", told(found)
    assert {"c1 KILLED", "REDIS LOSES ITS DATA"} <= set(found.trace)
    for fault in ("kill", "loss"):
        alone = explore(scripts(), lone(fault, rules_dropped=strict))
        assert alone.violation is None, told(alone)


MISSING = "if not text then\n  chill(now)\n  return 0"
TRUSTED = "redis.call('HGET', KEYS[1], 'warm') ~= run"
STALE = "if redis.call('HGET', KEYS[1], 'gen') ~= ARGV[2] then return 0 end"
CHARGING = "if not text then\n  redis.call('HINCRBY', KEYS[2], 's|t|total', ARGV[2])\n  return 0"
MUTATED_SCRIPTS = {
    "rule 1: a settle without its hold leaves the tenant warm": (
        lone("loss", "stop"),
        ("settle", MISSING, "if not text then\n  return 0"),
    ),
    "rule 1: a settle without its hold charges all the same": (
        small("stop"),
        ("settle", MISSING, CHARGING),
    ),
    "rule 2: a hold put back leaves the tenant warm": (
        small("stop"),
        ("renew", "    chill(now)\n", ""),
    ),
    "rule 3: a hydrate ends whatever the generation": (
        Scenario(),
        ("hydrate_end", STALE, ""),
    ),
    "rule 3: a settle does not change the generation": (
        Scenario(),
        ("settle", "bump(now)\nreturn 1", "return 1"),
    ),
    "rule 3: a hydrate that ends does not change the generation": (
        Scenario(),
        ("hydrate_end", "bump(clock())\n", ""),
    ),
    "rule 3: the tenant stays warm during a hydrate": (
        Scenario(calls=(*ONE_KEY, *QUEUED), sweepers=0, bystander=False, budget=9),
        ("hydrate_begin", "redis.call('HDEL', KEYS[1], 'warm')\nif", "if"),
    ),
    "rule 3: held is not summed anew": (
        Scenario(),
        ("hydrate_end", "held[name] + hold.cost", "held[name]"),
    ),
    "rule 4: the counters of another run are trusted": (
        small("rollback", calls=ONE_KEY),
        ("reserve", TRUSTED, "not redis.call('HGET', KEYS[1], 'warm')"),
    ),
    "rule 5: a new epoch is trusted at once": (
        small("loss"),
        ("epoch", "if not since then", "if not since then since = '0' end\nif not since then"),
    ),
    "a settle does not give back what was held": (
        Scenario(),
        ("settle", "adjust(hold, -hold.cost, charged)", "adjust(hold, 0, charged)"),
    ),
    "a settle leaves the hit in the window": (
        Scenario(),
        ("settle", "    redis.call('ZREM', window[2], hit)\n", ""),
    ),
}


@pytest.mark.parametrize("rule", MUTATED_SCRIPTS)
def test_a_script_without_the_rule_is_found_out(rule):
    """The search can fail: each of these lines is needed."""
    scenario, mutation = MUTATED_SCRIPTS[rule]
    found = explore(mutated(*mutation), scenario)
    assert found.violation is not None, f"nothing found in {found.states} states"


STEPS_DROPPED = {
    "mark": lone("stop", calls=QUEUED),  # rule 2: a call that is being closed is not marked
    "late": lone("stop", "sweeper"),  # rule 2: the ledger is asked after a whole lease
    "reconnect": lone("stop", "reply"),  # rule 2: the ledger is asked after a reconnect
    "epoch after begin": lone("loss"),  # rule 5
    "stored row": small("stop"),  # rule 6: a worker settles by the stored row, not by its own
}


@pytest.mark.parametrize("step", STEPS_DROPPED)
def test_a_worker_without_the_step_is_found_out(step):
    """What the scripts leave to their callers is needed too."""
    scenario = replace(STEPS_DROPPED[step], rules_dropped=frozenset({step}))
    found = explore(scripts(), scenario)
    assert found.violation is not None, f"nothing found in {found.states} states"
