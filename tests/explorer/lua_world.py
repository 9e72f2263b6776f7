"""A Redis small enough to search: the commands that the scripts use, over immutable states.

The scripts themselves are the real ones, run by Lua 5.1 as in Redis. A state is frozen into a
tuple and interned as a small number, and what a script makes of a state is remembered: the
search asks the same question many times over.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lupa import lua51

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

Live = dict[str, Any]  # key -> dict (hash: field -> text; sorted set: member -> number) or text
Frozen = tuple[tuple[str, Any], ...]
EMPTY = 0


def _score(text: str) -> float:
    return float(text.replace("inf", "Infinity")) if "inf" in text else float(text)


def _number(score: float) -> str:
    return f"{score:.17g}"


def _ordered(members: Mapping[str, float]) -> list[str]:
    return sorted(members, key=lambda member: (members[member], member))


class Commands:
    """Redis commands on one thawed state; None is nil, as in a reply."""

    def __init__(self, live: Live, now_us: int) -> None:
        self._live = live
        self._now_us = now_us

    def call(self, name: str, *args: Any) -> Any:
        command: Callable[..., Any] = getattr(self, name.lower())
        texts = [str(int(arg)) if isinstance(arg, float) else str(arg) for arg in args]
        reply = command(*texts)
        for key in [key for key, value in self._live.items() if value == {}]:
            del self._live[key]
        return reply

    def _at(self, key: str) -> dict[str, Any]:
        found: dict[str, Any] = self._live.setdefault(key, {})
        return found

    def time(self) -> list[str]:
        return [str(self._now_us // 1_000_000), str(self._now_us % 1_000_000)]

    def get(self, key: str) -> str | None:
        return self._live.get(key)

    def set(self, key: str, text: str) -> None:
        self._live[key] = text

    def delete(self, key: str) -> int:
        return int(self._live.pop(key, None) is not None)

    def exists(self, key: str) -> int:
        return int(key in self._live)

    def pexpire(self, key: str, _milliseconds: str) -> int:
        return int(key in self._live)  # longer than any run of the search

    def hget(self, key: str, field: str) -> str | None:
        return self._at(key).get(field)

    def hmget(self, key: str, *fields: str) -> list[str | None]:
        return [self._at(key).get(field) for field in fields]

    def hset(self, key: str, *pairs: str) -> int:
        at = self._at(key)
        before = len(at)
        at.update(zip(pairs[::2], pairs[1::2], strict=True))
        return len(at) - before

    def hsetnx(self, key: str, field: str, text: str) -> int:
        return 0 if field in self._at(key) else self.hset(key, field, text)

    def hdel(self, key: str, *fields: str) -> int:
        return sum(self._at(key).pop(field, None) is not None for field in fields)

    def hexists(self, key: str, field: str) -> int:
        return int(field in self._at(key))

    def hlen(self, key: str) -> int:
        return len(self._at(key))

    def hkeys(self, key: str) -> list[str]:
        return list(self._at(key))

    def hvals(self, key: str) -> list[str]:
        return list(self._at(key).values())

    def hgetall(self, key: str) -> list[str]:
        return [text for pair in self._at(key).items() for text in pair]

    def hincrby(self, key: str, field: str, by: str) -> int:
        value = int(self._at(key).get(field, "0")) + int(by)
        self._at(key)[field] = str(value)
        return value

    def zadd(self, key: str, score: str, member: str) -> int:
        added = int(member not in self._at(key))
        self._at(key)[member] = _score(score)
        return added

    def zrem(self, key: str, *members: str) -> int:
        return self.hdel(key, *members)

    def zcard(self, key: str) -> int:
        return len(self._at(key))

    def zscore(self, key: str, member: str) -> str | None:
        score = self._at(key).get(member)
        return None if score is None else _number(score)

    def zrange(self, key: str, first: str, last: str, *words: str) -> list[str]:
        members = _ordered(self._at(key))
        end = int(last) + 1 or None
        chosen = members[int(first) : end]
        if "WITHSCORES" not in words:
            return chosen
        return [text for name in chosen for text in (name, _number(self._at(key)[name]))]

    def zrangebyscore(self, key: str, low: str, high: str) -> list[str]:
        at = self._at(key)
        return [name for name in _ordered(at) if _score(low) <= at[name] <= _score(high)]

    def zremrangebyscore(self, key: str, low: str, high: str) -> int:
        return self.zrem(key, *self.zrangebyscore(key, low, high))


setattr(Commands, "del", Commands.delete)


class LuaRedis:
    """The server: interned states, and scripts that lead from one to the next."""

    def __init__(self, scripts: Mapping[str, str]) -> None:
        self._lua = lua51.LuaRuntime(unpack_returned_tuples=False)
        self._run = {
            name: self._lua.execute(f"return function(redis, KEYS, ARGV)\n{text}\nend")
            for name, text in scripts.items()
        }
        self._states: list[Frozen] = [()]
        self._ids: dict[Frozen, int] = {(): EMPTY}
        self._memo: dict[tuple[Any, ...], tuple[int, Any]] = {}
        self._thawed: dict[int, Live] = {}

    def script(
        self, state: int, now_us: int, name: str, keys: Sequence[str], args: Sequence[Any]
    ) -> tuple[int, Any]:
        """Run a script on a state; return the state after it, and the reply."""
        question = (state, now_us, name, tuple(args))
        known = self._memo.get(question)
        if known is None:
            live = self._thaw(state)
            commands = Commands(live, now_us)
            redis = self._lua.table(call=lambda *words: self._into_lua(commands.call(*words)))
            tables = [self._lua.table_from([str(x) for x in side]) for side in (keys, args)]
            reply = _out_of_lua(self._run[name](redis, *tables))
            known = self._memo[question] = (self.intern(live), reply)
        return known

    def view(self, state: int) -> Live:
        """Show a state; not to be changed."""
        if state not in self._thawed:
            self._thawed[state] = self._thaw(state)
        return self._thawed[state]

    def replaced(self, state: int, key: str, field: str, text: str) -> int:
        """Return the state with one field of a hash rewritten."""
        live = self._thaw(state)
        live[key][field] = text
        return self.intern(live)

    def intern(self, live: Live) -> int:
        frozen = tuple(
            (key, tuple(sorted(value.items())) if isinstance(value, dict) else value)
            for key, value in sorted(live.items())
        )
        if frozen not in self._ids:
            self._ids[frozen] = len(self._states)
            self._states.append(frozen)
        return self._ids[frozen]

    def _thaw(self, state: int) -> Live:
        return {
            key: dict(value) if isinstance(value, tuple) else value
            for key, value in self._states[state]
        }

    def _into_lua(self, reply: Any) -> Any:
        if isinstance(reply, list):
            return self._lua.table_from([False if item is None else item for item in reply])
        return False if reply is None else reply


def _out_of_lua(reply: Any) -> Any:
    if lua51.lua_type(reply) == "table":
        return tuple(_out_of_lua(reply[at]) for at in range(1, len(reply) + 1))
    return int(reply) if isinstance(reply, float) else reply
