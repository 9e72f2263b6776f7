"""Names that operators give; none can be taken for an id, as names and ids are accepted alike."""

from __future__ import annotations

import re

from trio_gateway.services.account_rows import Refused

OPERATOR = "operator"  # who has the installation's own token, in the record
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_ADMIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,62}")
_ID = re.compile(r"(?:ten|key|adm|wh)_[0-9A-Za-z]{20}")


def check_name(name: str, what: str) -> None:
    """Raise Refused for what cannot be the name of a tenant or a webhook."""
    if not _PLAIN.fullmatch(name):
        raise Refused(
            f"a {what}'s name must be 1 to 63 letters, digits, dots, underscores or hyphens,"
            " beginning with a letter or a digit",
            "name",
        )
    _check_no_id(name)


def check_admin_name(name: str) -> None:
    """Raise Refused for what cannot be the name of an admin."""
    if not _ADMIN.fullmatch(name):
        raise Refused(
            "an admin's name must be 1 to 63 letters, digits, dots, underscores, hyphens or"
            " @, beginning with a letter or a digit",
            "name",
        )
    if name.casefold() == OPERATOR:
        raise Refused(
            "that is what the record calls whoever has the installation's own token", "name"
        )
    _check_no_id(name)


def check_key_name(name: str) -> None:
    """Raise Refused for what cannot be the name of a key, which may be empty."""
    if len(name) > 200 or not name.isprintable():
        raise Refused("a key's name must be at most 200 printable characters", "name")
    _check_no_id(name)


def is_id(text: str) -> bool:
    """Whether this has the form of an id of a tenant, a key, an admin or a webhook."""
    return _ID.fullmatch(text) is not None


def _check_no_id(name: str) -> None:
    if is_id(name):
        raise Refused("a name must not look like an id", "name")
