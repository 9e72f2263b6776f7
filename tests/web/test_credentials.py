"""Where a key may stand, and who the client is."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_gateway.core.errors import Unauthenticated
from trio_gateway.web.credentials import client_address, presented_key, trusted_networks

BEARER, PLAIN = b"authorization", b"x-api-key"


@pytest.mark.parametrize(
    ("headers", "key"),
    [
        ([], None),
        ([(b"cookie", b"x-api-key=k")], None),
        ([(BEARER, b"Bearer k")], "k"),
        ([(BEARER, b"bearer   k ")], "k"),
        ([(PLAIN, b" k ")], "k"),
        ([(BEARER, b"Bearer k"), (PLAIN, b"k")], "k"),
        ([(PLAIN, b"k"), (BEARER, b"Bearer k")], "k"),
        ([(BEARER, b"Bearer \xff")], "\xff"),
        ([(BEARER, b"Bearer")], ""),
        ([(PLAIN, b"")], ""),
    ],
)
def test_a_key_stands_in_either_header(headers, key):
    """The scheme in any case; spaces around the key do not count."""
    assert presented_key(headers) == key


@pytest.mark.parametrize(
    "headers",
    [
        [(BEARER, b"Basic k")],
        [(BEARER, b"k")],
        [(BEARER, b"")],
        [(BEARER, b"Bearer\tk")],
        [(BEARER, b"Bearer k"), (PLAIN, b"other")],
        [(BEARER, b"Bearer k"), (PLAIN, b"")],
        [(BEARER, b"Bearer"), (PLAIN, b"k")],
        [(BEARER, b"Basic k"), (PLAIN, b"k")],
    ],
)
def test_other_schemes_and_two_keys_that_disagree_are_refused(headers):
    """They are no key, whatever the other header says."""
    with pytest.raises(Unauthenticated):
        presented_key(headers)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_key_or_a_refusal(value):
    """No value of a header makes it fail otherwise."""
    with contextlib.suppress(Unauthenticated):
        assert isinstance(presented_key([(BEARER, value)]), str)


def address(peer, forwarded, trusted):
    """Say who the client is."""
    headers = [(b"x-forwarded-for", value) for value in forwarded]
    scope = {"client": None if peer is None else (peer, 1), "headers": headers}
    return client_address(scope, trusted_networks(trusted))


@pytest.mark.parametrize(
    ("peer", "forwarded", "trusted", "client"),
    [
        ("10.0.0.1", [b"1.1.1.1"], "", "10.0.0.1"),
        ("10.0.0.1", [b"1.1.1.1"], "10.0.0.2", "10.0.0.1"),
        ("10.0.0.1", [b"1.1.1.1"], "10.0.0.1", "1.1.1.1"),
        ("10.0.0.1", [b"6.6.6.6, 1.1.1.1"], "10.0.0.0/8", "1.1.1.1"),
        ("10.0.0.1", [b"6.6.6.6, 1.1.1.1, 10.0.0.2"], "10.0.0.0/8", "1.1.1.1"),
        ("10.0.0.1", [b"6.6.6.6", b"1.1.1.1,10.0.0.2"], "10.0.0.0/8", "1.1.1.1"),
        ("10.0.0.1", [b"10.0.0.3, 10.0.0.2"], "10.0.0.0/8", "10.0.0.3"),
        ("10.0.0.1", [b"6.6.6.6, unknown"], "10.0.0.1", "10.0.0.1"),
        ("10.0.0.1", [b"6.6.6.6, <script>, 10.0.0.2"], "10.0.0.0/8", "10.0.0.2"),
        ("10.0.0.1", [], "10.0.0.1", "10.0.0.1"),
        ("10.0.0.1", [b" , ,"], "10.0.0.1", "10.0.0.1"),
        ("::1", [b"2001:db8::1"], "::1", "2001:db8::1"),
        (None, [b"1.1.1.1"], "10.0.0.1", None),
        ("unix:", [b"1.1.1.1"], "10.0.0.1", "unix:"),
    ],
)
def test_forwarded_addresses_count_as_far_as_proxies_are_trusted(peer, forwarded, trusted, client):
    """Read from the right, up to the first that is not trusted; claims to its left are not."""
    assert address(peer, forwarded, trusted) == client


@given(st.lists(st.binary(max_size=30), max_size=3))
def test_a_forwarded_header_is_an_address_or_nothing(values):
    """Whatever it holds, the result is the peer or something that reads as an address."""
    found = address("10.0.0.1", values, "10.0.0.1")
    assert found is not None
    assert trusted_networks(found)


def test_trusted_proxies_that_are_no_addresses_are_refused():
    """The start stops; it does not trust less than it was told to."""
    with pytest.raises(ValueError):
        trusted_networks("10.0.0.1, proxy.local")
