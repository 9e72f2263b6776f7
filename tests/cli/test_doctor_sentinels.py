"""What the doctor and the commands say where sentinels watch Redis."""

import json

import pytest

from deploy.staging.programs import free_port
from tests.integration.calls import command
from tests.sentinels import ensemble, until
from trio_gateway.cli.check_sentinels import check_sentinels


@pytest.fixture
async def redises(tmp_path):
    async with ensemble(tmp_path, password="hid:den", sentinel_password="hid/den") as found:
        yield found


async def found_by(url):
    return {each.check: each for each in await check_sentinels(url)}


async def test_a_whole_ensemble_is_found_good(redises, database):
    """The doctor names the primary and the replicas, and no password; commands take the address."""
    names = {"DATABASE_URL": database, "REDIS_URL": redises.url}
    _, findings = await command("doctor", **names)
    found = {each["check"]: each for each in findings}
    primary = redises.data[0]
    assert found["redis sentinels"]["state"] == "ok"
    assert f"3 of 3 name 127.0.0.1:{primary} the primary" in found["redis sentinels"]["detail"]
    assert (found["redis replicas"]["state"], found["redis replicas"]["detail"]) == ("ok", "1 up")
    assert found["redis"]["state"] == "ok"
    assert "hid" not in json.dumps(findings)
    code, verified = await command("ledger", "verify", **names)
    assert (code, verified["ok"]) == (0, True)


async def test_what_would_keep_a_failover_from_happening_is_told(redises):
    """A replica that is down, sentinels that are away, and too few to decide."""
    redises.kill(redises.data[1])
    await until(lambda: not any(map(redises.complete, redises.watchers)))
    found = await found_by(redises.url)
    assert (found["redis sentinels"].state, found["redis replicas"].state) == ("ok", "warn")
    redises.kill(redises.watchers[0])
    finding = (await found_by(redises.url))["redis sentinels"]
    assert finding.state == "warn"
    assert f"2 of 3 answer; 127.0.0.1:{redises.watchers[0]} does not answer" in finding.detail
    redises.kill(redises.watchers[1])
    last = redises.address(watchers=redises.watchers[2:])
    await until(lambda: b"NOQUORUM" in quorum(redises))
    finding = (await found_by(last))["redis sentinels"]
    assert (finding.state, "CKQUORUM" in finding.detail) == ("warn", True)
    redises.kill(redises.watchers[2])
    finding = (await found_by(redises.url))["redis sentinels"]
    assert finding.state == "fail"
    assert finding.detail.startswith("none of 3 names a primary: 127.0.0.1:")


def quorum(redises):
    try:
        return redises.ask(redises.watchers[2], "SENTINEL", "CKQUORUM", "books")
    except Exception as error:
        return str(error).encode()


async def test_a_wrong_name_password_or_place_is_told_apart(redises):
    """Each with its own words, and none that is secret."""
    elsewhere = redises.address(watchers=[free_port()])
    for url, words in (
        (redises.address(name="other"), "knows no primary of that name"),
        (redises.url.replace("hid%2Fden", "hidden"), "refuses the sentinel_password: WRONGPASS"),
        (elsewhere, "does not answer"),
        ("redis+sentinel://:hidden@h:hidden/books", "REDIS_URL sentinel 1 of 1: the port"),
    ):
        finding = (await found_by(url))["redis sentinels"]
        assert finding.state == "fail"
        assert words in finding.detail
        assert "hid" not in finding.detail + finding.advice
    assert await check_sentinels("redis://:hidden@h/0") == []


async def test_commands_say_why_redis_cannot_be_used(redises, database):
    """One line with the sentinels' places and the reason, on an address that is well written."""
    for url, why in (
        (redises.address(name="other"), "no sentinel knows a primary of that name"),
        (redises.url.replace("hid%3Aden", "hidden"), "WRONGPASS"),
    ):
        with pytest.raises(AssertionError) as said:
            await command("ledger", "verify", DATABASE_URL=database, REDIS_URL=url)
        hosts = ",".join(f"127.0.0.1:{port}" for port in redises.watchers)
        text = str(said.value).partition("\n")[0]
        assert f"Redis cannot be used at {hosts}/" in text
        assert text.endswith(why)
        assert "hid" not in text
