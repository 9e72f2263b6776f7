"""The text of a key: its shape and its check."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_gateway.core.keys import ALPHABET, KEY_LENGTH, digest, last4, new_key, parse_key

SECRET = b"installation secret"
KEY = new_key(SECRET)


def test_a_new_key_has_the_documented_shape():
    """sk-tg-, sixteen characters, a dash, forty more; no dash inside."""
    prefix, rest = KEY.text[:6], KEY.text[6:]
    public_id, _, tail = rest.partition("-")
    assert prefix == "sk-tg-"
    assert public_id == KEY.public_id
    assert len(public_id) == 16
    assert tail.startswith(KEY.secret)
    assert len(KEY.secret) == 32
    assert len(tail) == 40
    assert len(KEY.text) == KEY_LENGTH
    assert set(public_id + tail) <= set(ALPHABET)


def test_a_key_parses_into_its_halves():
    """parse_key gives back what new_key made."""
    parsed = parse_key(KEY.text, SECRET)
    assert parsed is not None
    assert (parsed.public_id, parsed.secret) == (KEY.public_id, KEY.secret)


def test_keys_do_not_repeat():
    """A thousand keys are a thousand public ids and a thousand secrets."""
    keys = [new_key(SECRET) for _ in range(1000)]
    assert len({key.public_id for key in keys}) == 1000
    assert len({key.secret for key in keys}) == 1000


def test_another_installation_refuses_the_key():
    """The check is made with the installation's secret."""
    assert parse_key(KEY.text, b"another") is None


@given(st.integers(6, KEY_LENGTH - 1), st.sampled_from(ALPHABET))
def test_one_changed_character_is_refused(position, letter):
    """The check covers every character before it, and itself."""
    forged = KEY.text[:position] + letter + KEY.text[position + 1 :]
    assert (parse_key(forged, SECRET) is None) == (forged != KEY.text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "sk-tg-",
        KEY.text[:-1],
        KEY.text + "a",
        KEY.text[:-1] + "\n",
        KEY.text + "\n",
        " " + KEY.text[1:],
        KEY.text.replace("sk-tg-", "SK-TG-"),
        KEY.text.replace("sk-tg-", "sk-xx-"),
        KEY.text[:-1] + "\u0661",
        KEY.text[:-1] + "\uff11",
        KEY.text[:-1] + "\x00",
        KEY.text[:10] + "'" + KEY.text[11:],
        KEY.text[:10] + "-" + KEY.text[11:],
        KEY.text[:22] + "x" + KEY.text[23:],
        "x" * KEY_LENGTH,
        "x" * 1_000_000,
        "\ud800" * KEY_LENGTH,
    ],
    ids=itertools.count(),  # two processes must name the same tests, and keys are random
)
def test_malformed_text_is_no_key(text):
    """Anything that is not exactly a key is None, and raises nothing."""
    assert parse_key(text, SECRET) is None


@given(st.text(max_size=80))
def test_random_text_is_no_key(text):
    """No text makes the parser raise."""
    assert parse_key(text, SECRET) is None


def test_a_key_never_shows_its_secret_in_a_repr():
    """repr, and so a traceback, holds the public id only."""
    shown = repr(KEY) + repr(parse_key(KEY.text, SECRET))
    assert KEY.public_id in shown
    assert KEY.secret not in shown


def test_the_digest_depends_on_every_input():
    """Another key or another process gives another digest, of 32 bytes."""
    made = {
        digest(b"a", KEY.text),
        digest(b"b", KEY.text),
        digest(b"a", KEY.text[:-1]),
        digest(b"a", "\udcff"),
    }
    assert len(made) == 4
    assert {len(item) for item in made} == {32}


def test_last4_is_the_end_of_the_check():
    """A list shows four characters, none of them of the secret."""
    assert KEY.text.endswith(last4(KEY.text))
    assert len(last4(KEY.text)) == 4
