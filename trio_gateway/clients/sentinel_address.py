"""The address of a Redis that sentinels watch.

    redis+sentinel://[[user]:password@]host[:26379],host[:26379]/NAME[/db][?sentinel_password=...]

User, password and db are the primary's; `rediss+sentinel` means TLS to it and to the sentinels.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from ipaddress import IPv6Address
from urllib.parse import unquote

PORT = 26_379
MOST = 15  # sentinels in an address
SCHEME = re.compile(r"(rediss?)\+sentinel://")
SHAPE = "redis+sentinel://host:26379,host:26379,host:26379/NAME"

_HOST = re.compile(r"(?:(?P<host>[A-Za-z0-9._-]{1,253})|\[(?P<v6>[^\]]*)\])(?::(?P<port>.*))?")
_NUMBER = re.compile(r"[0-9]{1,5}")
_NAME = re.compile(r"[A-Za-z0-9._-]{1,255}")  # as sentinel.conf has it
_NO_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_OPTION = "sentinel_password"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a server listens."""

    host: str
    port: int

    def __post_init__(self) -> None:
        """Check the port; raises ValueError."""
        if not 0 < self.port < 65_536:
            raise ValueError("the port must be a number from 1 to 65535")

    def __str__(self) -> str:
        """Write it as an address does."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Sentinels:
    """What such an address says."""

    places: tuple[Place, ...]
    name: str
    db: int = 0
    tls: bool = False
    username: str = ""
    password: str = field(default="", repr=False)
    sentinel_password: str = field(default="", repr=False)

    def of_primary(self) -> dict[str, str | int]:
        """Return what the primary is greeted with."""
        return {"username": self.username, "password": self.password, "db": self.db}


def is_sentinel(url: str) -> bool:
    """Whether an address is of this kind."""
    return SCHEME.match(url) is not None


def parse(url: str) -> Sentinels:
    """Read an address; raises ValueError with what is wrong, and nothing of its text."""
    scheme = SCHEME.match(url)
    if scheme is None:
        raise ValueError(f"must be {SHAPE}")
    rest = url[scheme.end() :]
    if "#" in rest:
        raise ValueError("has a # in it; in a password it is written %23")
    rest, _, query = rest.partition("?")
    authority, _, path = rest.partition("/")
    credentials, _, hosts = authority.rpartition("@")
    username, password = _credentials(credentials)
    places = _places(hosts)
    name, db = _primary(path)
    return Sentinels(
        places=places,
        name=name,
        db=db,
        tls=scheme[1] == "rediss",
        username=username,
        password=password,
        sentinel_password=_sentinel_password(query),
    )


def _credentials(text: str) -> tuple[str, str]:
    if "@" in text:
        raise ValueError(
            "has more than one @ before the sentinels; in a password it is written %40"
        )
    username, _, password = text.partition(":")
    if username and not password:
        raise ValueError("names a user without a password")
    return _decoded(username, "user"), _decoded(password, "password")


def _places(text: str) -> tuple[Place, ...]:
    if not text:
        raise ValueError(f"names no sentinel: {SHAPE}")
    words = text.split(",")
    if len(words) > MOST:
        raise ValueError(f"names more than {MOST} sentinels")
    places: list[Place] = []
    for number, word in enumerate(words, 1):
        place = _place(word, f"sentinel {number} of {len(words)}")
        if place in places:
            first = places.index(place) + 1
            raise ValueError(f"names one sentinel twice: number {first} and number {number}")
        places.append(place)
    return tuple(places)


def _place(word: str, which: str) -> Place:
    if word.count(":") > 1 and not word.startswith("["):
        raise ValueError(f"{which}: an IPv6 address is written in brackets, [::1]:26379")
    found = _HOST.fullmatch(word)
    if found is None:
        raise ValueError(f"{which} is not host:port")
    host = (found["host"] or "").lower()
    if found["v6"] is not None:
        try:
            host = str(IPv6Address(found["v6"]))
        except ValueError:
            raise ValueError(f"{which}: no IPv6 address is in the brackets") from None
    port = str(PORT) if found["port"] is None else found["port"]
    try:
        return Place(host, int(port) if _NUMBER.fullmatch(port) else 0)
    except ValueError as error:
        raise ValueError(f"{which}: {error}") from None


def _primary(path: str) -> tuple[str, int]:
    name, _, db = path.partition("/")
    if not name:
        raise ValueError(f"names no primary after the sentinels: {SHAPE}")
    if not _NAME.fullmatch(name):
        raise ValueError("has a primary's name with other characters than A-Z a-z 0-9 . _ -")
    if db and not _NUMBER.fullmatch(db):
        raise ValueError("wants a number after the primary's name, the database: /NAME/0")
    return name, int(db or 0)


def _sentinel_password(query: str) -> str:
    if not query:
        return ""
    # A plus sign is one: passwords have them more often than spaces.
    pairs = [pair.partition("=") for pair in query.split("&")]
    if any(name != _OPTION for name, _, _ in pairs):
        raise ValueError(f"has an option other than {_OPTION}; in a password ? and & are escaped")
    if len(pairs) > 1:
        raise ValueError(f"has {_OPTION} twice")
    if not pairs[0][2]:
        raise ValueError(f"has an empty {_OPTION}")
    return _decoded(pairs[0][2], _OPTION)


def _decoded(text: str, what: str) -> str:
    if _NO_ESCAPE.search(text):
        raise ValueError(f"has a % in the {what} that begins no escape; it is written %25")
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError:
        raise ValueError(f"has a {what} whose escapes are not UTF-8") from None
