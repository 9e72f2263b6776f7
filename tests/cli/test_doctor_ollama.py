"""What the doctor says of each Ollama: its release, and who else reaches it."""

import ipaddress

import pytest

from tests.cli.sickroom import found_by, http_server, ollama, state_of
from trio_gateway.cli.check_defects import KNOWN, defects_of, parse, spelled
from trio_gateway.cli.check_exposure import _elsewhere, check_exposure, own_addresses


@pytest.fixture
def backend(monkeypatch):
    """Point the settings at a port."""

    def point(port, host="127.0.0.1"):
        monkeypatch.setenv("OLLAMA_BASE_URL", f"http://{host}:{port}")

    return point


def test_an_old_ollama_is_one_warning_that_lists_what_applies(cli, backend):
    """Security and accounting alike, each with the release that mended it."""
    with ollama("0.12.4") as port:
        backend(port)
        finding = found_by(cli)["ollama"]
        text = cli("doctor").out
    assert finding["state"] == "warn"
    for words in (
        "CVE-2025-51471",
        "CVE-2026-7482",
        "(mended in 0.17.1)",
        "tool calls have no ids",
        "logprobs",
    ):
        assert words in finding["detail"]
    for words in ("CVE-2024-45436", "0.30.1"):
        assert words not in finding["detail"]
    assert finding["advice"] == "Upgrade to 0.32.15 or later."
    assert f"  warn  {finding['check']}: version 0.12.4: " in text


@pytest.mark.parametrize(
    ("version", "state", "words"),
    [
        ("0.32.15", "ok", "version 0.32.15"),
        ("0.33.0-rc2", "ok", "version 0.33.0-rc2"),
        ("1.0.0", "ok", "version 1.0.0"),
        ("0.32.14", "warn", "cannot parse"),
        ("0.30.0", "warn", "prompt tokens that were cached"),
        ("0.0.0", "ok", "built from source"),
        ("nightly", "ok", "built from source"),
    ],
)
def test_each_release_is_judged(cli, backend, version, state, words):
    """By its number alone; a build from source is taken on trust, and told so."""
    with ollama(version) as port:
        backend(port)
        found = state_of(cli, "ollama")
    assert (found[0], words in found[1]) == (state, True)


def test_a_defect_ends_with_the_release_that_mended_it():
    """And begins where it came in; the table is in the order of the releases."""
    for defect in KNOWN:
        before = (*defect.mended[:2], defect.mended[2] - 1)
        assert defect in defects_of(before)
        assert defect not in defects_of(defect.mended)
    (cached,) = [defect for defect in KNOWN if len(defect.since) > 1]
    assert cached not in defects_of((0, 29, 9))
    assert [each.mended for each in KNOWN] == sorted(each.mended for each in KNOWN)


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("v0.12.5", (0, 12, 5)),
        ("0.32.15-simulated", (0, 32, 15)),
        ("0.32", None),
        ("", None),
        ("1.2.99999999999", None),
    ],
)
def test_a_version_is_read_or_it_is_none(text, version):
    """Whatever comes after three numbers is left alone."""
    assert parse(text) == version
    assert version is None or spelled(version) in text


@pytest.mark.parametrize("status", [401, 403])
def test_a_gateway_in_the_place_of_ollama_is_a_failure(cli, backend, status):
    """A backend that wants a key is most likely the gateway itself."""
    with http_server(status, {"error": "invalid_api_key"}) as port:
        backend(port)
        found = state_of(cli, "ollama")
    assert found == ("fail", "wants a key: this is no Ollama")


@pytest.mark.parametrize("fields", [{}, [], {"version": 7}, {"version": "1\x1b[2J"}])
def test_something_else_in_the_place_of_ollama_is_a_failure(cli, backend, fields):
    """Nothing of what it says reaches the terminal."""
    with http_server(200, fields) as port:
        backend(port)
        assert state_of(cli, "ollama") == ("fail", "does not answer /api/version")


def test_an_ollama_on_loopback_alone_is_fine(cli, backend):
    """Nobody but this machine reaches it."""
    with ollama("0.33.0") as port:
        backend(port)
        assert state_of(cli, "exposure")[0] == "ok"


async def test_an_ollama_on_every_address_is_told():
    """Bound to 0.0.0.0 it answers where the gateway does not look: with each such address."""
    # another address of this machine, also where it has loopback alone
    own = [*own_addresses(), ipaddress.ip_address("127.0.0.2")]
    with ollama("0.33.0", host="0.0.0.0") as port:
        (finding,) = await check_exposure(f"http://127.0.0.1:{port}", own)
    assert finding.state == "warn"
    assert "OLLAMA_HOST" in finding.advice
    for address in own:
        shown = f"http://{address}:{port}"
        assert (shown in finding.detail) is (address.version == 4)
    with ollama("0.33.0") as port:
        (finding,) = await check_exposure(f"http://localhost:{port}", own)
    assert finding.state == "ok"


def test_an_exposed_ollama_is_told_by_the_command(cli, backend):
    """With this machine's real addresses."""
    if not any(address.version == 4 for address in own_addresses()):
        pytest.skip("this machine has loopback alone")
    with ollama("0.33.0", host="0.0.0.0") as port:
        backend(port)
        state, detail = state_of(cli, "exposure")
    assert (state, "without a key" in detail) == ("warn", True)


def test_an_ollama_elsewhere_comes_with_advice(cli, backend):
    """Reached over a network, as it must be: said, and not judged."""
    others = [address for address in own_addresses() if address.version == 4]
    if not others:
        pytest.skip("this machine has loopback alone")
    with ollama("0.33.0", host=str(others[0])) as port:
        backend(port, str(others[0]))
        found = [each for check, each in found_by(cli).items() if check.startswith("exposure")]
    assert [(each["state"], "firewall" in each["advice"]) for each in found] == [("ok", True)]


def test_a_public_address_is_a_warning():
    """One that the whole Internet may reach."""
    addresses = [ipaddress.ip_address("10.0.0.1"), ipaddress.ip_address("2606:4700::1111")]
    finding = _elsewhere("exposure x", addresses)
    assert (finding.state, "2606:4700::1111" in finding.detail) == ("warn", True)
    assert _elsewhere("exposure x", addresses[:1]).state == "ok"


async def test_a_name_without_an_address_is_a_warning():
    """Such as one that is misspelled."""
    (finding,) = await check_exposure("http://no-such-host.invalid:11434", [])
    assert finding.state == "warn"


TRIE = """Main:
  +-- 0.0.0.0/0 3 0 5
     |-- 0.0.0.0
        /0 universe UNICAST
     +-- 127.0.0.0/8 2 0 2
        |-- 127.0.0.0
           /8 host LOCAL
        |-- 127.0.0.1
           /32 host LOCAL
     +-- 169.254.0.0/16 2 0 2
        |-- 169.254.3.4
           /32 host LOCAL
     +-- 192.0.2.0/24 2 0 2
        |-- 192.0.2.0
           /24 link UNICAST
        |-- 192.0.2.2
           /32 host LOCAL
        |-- 192.0.2.255
           /32 link BROADCAST
"""
INTERFACES = """fd000000000000000000000000000002 04 40 00 82     eth0
fe8000000000000000fc00fffe000001 04 40 20 80     eth0
00000000000000000000000000000001 01 80 10 80       lo
"""


def test_own_addresses_are_others_than_loopback(tmp_path):
    """What the kernel lists, without loopback and without what needs an interface's name."""
    (tmp_path / "fib_trie").write_text(TRIE)
    assert [str(each) for each in own_addresses(tmp_path)] == ["192.0.2.2"]
    (tmp_path / "if_inet6").write_text(INTERFACES)
    assert [str(each) for each in own_addresses(tmp_path)] == ["192.0.2.2", "fd00::2"]
