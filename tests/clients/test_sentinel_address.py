"""Addresses of a Redis that sentinels watch: read whole, or refused without a word of them."""

import pytest

from trio_gateway import settings
from trio_gateway.clients.redis import Redis
from trio_gateway.clients.sentinel_address import Place, is_sentinel, parse


def test_an_address_has_sentinels_a_name_and_more():
    """Ports and databases have defaults; user, passwords and name are told apart."""
    found = parse("redis+sentinel://10.0.0.1:26379,Redis-2,[0:0::1]:7/books")
    assert found.places == (Place("10.0.0.1", 26379), Place("redis-2", 26379), Place("::1", 7))
    assert (found.name, found.db, found.tls) == ("books", 0, False)
    assert (found.username, found.password, found.sentinel_password) == ("", "", "")
    assert str(found.places[2]) == "[::1]:7"
    whole = parse("rediss+sentinel://ann:a%40%2F%25b:c@h/my.name_1/15?sentinel_password=s+%26t")
    assert (whole.username, whole.password) == ("ann", "a@/%b:c")
    assert (whole.db, whole.tls, whole.sentinel_password) == (15, True, "s+&t")
    assert parse("redis+sentinel://:secret@h/books/").password == "secret"


def test_passwords_are_not_shown():
    """An address that was read can be written to a log."""
    found = parse("redis+sentinel://u:hidden@h/books?sentinel_password=hidden")
    assert "hidden" not in f"{found!r} {found}"


@pytest.mark.parametrize(
    ("rest", "words"),
    [
        ("", "names no sentinel"),
        ("/books", "names no sentinel"),
        ("u:hidden@/books", "names no sentinel"),
        ("h", "names no primary"),
        ("h/", "names no primary"),
        ("h//0", "names no primary"),
        ("h?sentinel_password=hidden", "names no primary"),
        ("h/hid den", "other characters"),
        ("h/hid%20den", "other characters"),
        ("h/books/hidden", "wants a number"),
        ("h/books/-1", "wants a number"),
        ("h/books/0/hidden", "wants a number"),
        ("h,,g/books", "sentinel 2 of 3 is not host:port"),
        ("h,g,/books", "sentinel 3 of 3 is not host:port"),
        ("hid den/books", "sentinel 1 of 1 is not host:port"),
        ("h:/books", "sentinel 1 of 1: the port"),
        ("h:hidden/books", "sentinel 1 of 1: the port"),
        ("g,h:0/books", "sentinel 2 of 2: the port"),
        ("h:65536/books", "the port must be a number from 1 to 65535"),
        ("h:٤٢/books", "the port"),
        ("::1/books", "brackets"),
        ("[hidden]/books", "no IPv6 address"),
        ("[::1/books", "is not host:port"),
        ("[::1]x/books", "is not host:port"),
        ("h,g,H:26379/books", "one sentinel twice: number 1 and number 3"),
        ("[::1],[0::1]:26379/books", "one sentinel twice: number 1 and number 2"),
        (",".join(f"h{number}" for number in range(16)) + "/books", "more than 15"),
        ("u:hid@den@h/books", "%40"),
        ("u:hid#den@h/books", "%23"),
        ("u:%hidden@h/books", "%25"),
        (":%ffhidden@h/books", "not UTF-8"),
        ("user@h/books", "a user without a password"),
        ("u:hid?den@h/books", "sentinel 1 of 1: the port"),
        ("h/books?password=hidden", "an option other than sentinel_password"),
        ("h/books?sentinel_password=a&hidden", "an option other than sentinel_password"),
        ("h/books?sentinel_password=a&sentinel_password=hidden", "sentinel_password twice"),
        ("h/books?sentinel_password=", "an empty sentinel_password"),
        ("h/books?sentinel_password=%hidden", "sentinel_password that begins no escape"),
    ],
)
def test_a_bad_address_is_refused_with_what_is_wrong(rest, words):
    """By the settings as by the client, and none of its text, which may hold a password."""
    url = f"redis+sentinel://{rest}"
    assert is_sentinel(url)
    with pytest.raises(ValueError, match=words) as refused:
        parse(url)
    assert "hidden" not in str(refused.value)
    assert refused.value.__cause__ is None
    with pytest.raises(settings.BadSettings) as started:
        settings.load({"REDIS_URL": url})
    assert started.value.problems == [f"REDIS_URL: {refused.value}"]
    with pytest.raises(ValueError, match=r"^REDIS_URL ") as opened:
        Redis(url, {})
    assert str(opened.value) == f"REDIS_URL {refused.value}"


@pytest.mark.parametrize(
    "url", ["redis://h/0", "sentinel://h/x", "redis+sentinel:h/x", "REDIS", ""]
)
def test_other_addresses_are_not_of_this_kind(url):
    """They are read as those of a server, or refused."""
    assert not is_sentinel(url)
    with pytest.raises(ValueError, match="must be redis"):
        parse(url)


def test_settings_take_such_an_address():
    """As it stands, for TLS too."""
    for url in ("redis+sentinel://h,g,i/books", "rediss+sentinel://:p@h:1/books/2"):
        assert settings.load({"REDIS_URL": url}).redis_url == url
