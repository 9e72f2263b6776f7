"""The searched Redis against a real one: the same scripts, the same answers."""

from __future__ import annotations

import random
from typing import Any

import trio

from tests.explorer.lua_world import EMPTY, LuaRedis
from tests.explorer.protocol import OPAQUE
from trio_gateway.clients.redis import Redis
from trio_gateway.services.quota.keys import call_keys, scripts, tenant_keys

STEPS = 400
LEASE_US = 15_000_000


def plain(reply: Any) -> Any:
    """Bring both sides' replies to one form; the order of a hash means nothing."""
    if isinstance(reply, bytes):
        return plain(reply.decode())
    if isinstance(reply, list | tuple):
        items = [plain(item) for item in reply]
        return sorted(items) if items and all(isinstance(item, str) for item in items) else items
    return None if reply is False else reply


def timeless(name: str, reply: Any) -> Any:
    """Leave out what comes from the clock."""
    reply = plain(reply)
    if name == "reserve" and reply[0] == "ok":
        return reply[:3] + reply[4:6] + reply[7:10] + reply[11:13]
    if name == "reserve" and reply[0] == "no":
        return reply[:3] + reply[4:6] + reply[7:9]
    if name == "hydrate_begin" and reply is not None:
        return reply[2:]
    return reply


def any_step(dice: random.Random, gen: str, texts: dict[str, str]) -> tuple[str, str, list[Any]]:
    """Choose a script, the key in whose name it runs, and its arguments."""
    i = dice.randrange(6)
    rid, key = f"c{i}", "ab"[i % 2]
    choice = dice.randrange(8)
    if choice == 0 and rid in texts:
        return "renew", key, [LEASE_US, rid, "dispatched", 1, 0, 0, "", texts[rid]]
    if choice == 1:
        return "settle", key, [rid, dice.randrange(4)]
    if choice == 2:
        return "hydrate_begin", key, ["run", "t", "total", f"k:{key}", "total"]
    if choice == 3:
        counters = [(scope, "total", dice.randrange(9)) for scope in ("t", "k:a", "k:b")]
        return "hydrate_end", key, ["run", gen, *(word for counter in counters for word in counter)]
    limits = [50, 400, 90, "total", 9, -1, 60 if dice.randrange(3) else -1, "total"]
    call = ["run", rid, key, 1, 5, 1, 1500, LEASE_US, "queued", 3, 60_000_000]
    return "reserve", key, [*call, OPAQUE, *limits]


async def test_the_scripts_answer_alike_in_the_searched_redis_and_in_a_real_one(redis_url):
    """A long random walk through all of a tenant's scripts leaves the same counters and holds."""
    dice = random.Random(7)
    model, state = LuaRedis(scripts()), EMPTY
    real = Redis(redis_url, scripts())
    gens = ("0", "0")
    texts: list[dict[str, str]] = [{}, {}]
    seen: set[tuple[str, str]] = set()
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            await nursery.start(real.run)
            seconds, micros = await real.command("TIME")
            now_us = int(seconds) * 1_000_000 + int(micros)
            for _ in range(STEPS):
                dealt = dice.getstate()
                name, key, args = any_step(dice, gens[0], texts[0])
                dice.setstate(dealt)
                _, _, real_args = any_step(dice, gens[1], texts[1])
                keys = call_keys("walk", key)
                state, ours = model.script(state, now_us, name, keys, args)
                theirs = plain(await real.script(name, keys, real_args))
                assert timeless(name, ours) == timeless(name, theirs), name
                seen.add((name, str(timeless(name, ours))[:6]))
                if name == "hydrate_begin" and theirs is not None:
                    gens = (ours[0], theirs[0])
                if name == "reserve" and theirs[0] == "ok":
                    texts[0][args[1]], texts[1][args[1]] = ours[13], theirs[13]
            for at in (1, 4):
                stored = plain(await real.command("HGETALL", tenant_keys("walk")[at]))
                view = model.view(state).get(tenant_keys("walk")[at], {})
                assert stored == sorted(word for pair in view.items() for word in pair)
            nursery.cancel_scope.cancel()
    assert {name for name, _ in seen} == {
        "reserve",
        "renew",
        "settle",
        "hydrate_begin",
        "hydrate_end",
    }
    assert ("reserve", "['ok',") in seen
    assert ("reserve", "['no',") in seen
