"""What people write into forms: every field is checked, and a fault names its field."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial
from typing import TYPE_CHECKING, Any

from quart import request

from trio_gateway.core.models import InvalidModelName, canonical
from trio_gateway.services.account_rows import BIGGEST, Refused
from trio_gateway.web.admin.dashboard.words import field_time

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from werkzeug.datastructures import MultiDict

    Reader = Callable[[], Any]

_WHOLE = re.compile(r"[0-9]{1,19}|[0-9]{1,3}(?:([\s,_'])[0-9]{3})(?:\1[0-9]{3})*")
_WEIGHT = re.compile(r"[0-9]{1,4}(?:\.[0-9]{1,3})?")
_DIGEST = re.compile(r"(?:sha256:)?([0-9a-f]{64})")
_SEPARATORS = re.compile(r"[^0-9]")
OVERLAPS = {
    "0": timedelta(0),
    "1h": timedelta(hours=1),
    "24h": timedelta(hours=24),
    "7d": timedelta(days=7),
}
COUNTS = ("requests_per_minute", "tokens_per_minute", "budget")
STALE = "The page does not say what it showed. Load the page again, and repeat the change"


class Faults(Refused):
    """Raised for a form with several faults; as an exception it is the first of them."""

    def __init__(self, faults: list[Refused]) -> None:
        """`faults` holds at least one."""
        self.faults = faults
        super().__init__(faults[0].message, faults[0].param)


class Fields:
    """One form. Raises Refused, whose `param` is the field's name."""

    def __init__(self, form: MultiDict[str, str]) -> None:
        """Take what the browser sent."""
        self._form = form

    @property
    def written(self) -> dict[str, Any]:
        """What to show again beside a fault; lists for `models`."""
        kept = {name: self._form[name] for name in self._form if name != "csrf"}
        return {**kept, "models": self._form.getlist("models")}

    @property
    def opened(self) -> dict[str, Any]:
        """What the page showed of the row when the form was opened; see `changes`."""
        try:
            found = json.loads(self._form.get("opened", ""))
            if found.get("expires_at") is not None:
                found["expires_at"] = datetime.fromisoformat(found["expires_at"])
        except (ValueError, TypeError, AttributeError):
            raise Refused(STALE) from None
        return dict(found)

    def all(self, readers: Mapping[str, Reader]) -> dict[str, Any]:
        """Return what each reader gives by its name. Raises Faults, all of them at once."""
        values, faults = {}, []
        for name, read in readers.items():
            try:
                values[name] = read()
            except Refused as fault:
                faults.append(fault)
        if faults:
            raise Faults(faults)
        return values

    def text(self, name: str, most: int = 200) -> str:
        """Return a text on one line."""
        value = self._form.get(name, "").strip()
        if len(value) > most:
            raise Refused(f"must be at most {most} characters", name)
        return value

    def wanted(self, name: str) -> bool:
        """Whether a box is ticked."""
        return name in self._form

    def choice(self, name: str, options: frozenset[str] | set[str]) -> str:
        """Return one of the options."""
        value = self._form.get(name, "")
        if value not in options:
            raise Refused(f"must be one of {', '.join(sorted(options))}", name)
        return value

    def whole(
        self, name: str, least: int = 0, most: int = BIGGEST, empty: str = "; empty is none"
    ) -> int | None:
        """Return a whole number, None for an empty field; thousands may be set apart."""
        value = self._form.get(name, "").strip()
        if not value:
            return None
        number = int(_SEPARATORS.sub("", value)) if _WHOLE.fullmatch(value) else -1
        if not least <= number <= most:
            upto = f" to {most}" if most < BIGGEST else " or more"
            raise Refused(f"must be a whole number, {least}{upto}{empty}", name)
        return number

    def needed(self, name: str, least: int = 1, most: int = BIGGEST) -> int:
        """Return a whole number that may not be left out."""
        value = self.whole(name, least, most, "")
        if value is None:
            raise Refused("is needed", name)
        return value

    def instant(self, name: str, shown: datetime | None = None) -> datetime | None:
        """Return an instant in UTC, None for an empty field.

        The field shows minutes: untouched it is the instant that was `shown`, to its fraction.
        """
        value = self._form.get(name, "").strip()
        if not value:
            return None
        if shown is not None and value == field_time(shown):
            return shown
        try:
            return datetime.fromisoformat(value).replace(tzinfo=UTC)
        except ValueError:
            raise Refused(
                "must be a date and a time such as 2030-12-31T23:59, in UTC", name
            ) from None

    def weight(self, name: str) -> int:
        """Return thousandths."""
        value = self._form.get(name, "").strip()
        if not _WEIGHT.fullmatch(value) or Decimal(value) > 1000:
            raise Refused("must be 0 to 1000 with at most three decimals", name)
        return int(Decimal(value) * 1000)

    def digest(self, name: str) -> str | None:
        """Return 64 hexadecimal digits, None for an empty field."""
        value = self._form.get(name, "").strip().lower()
        found = _DIGEST.fullmatch(value)
        if value and not found:
            raise Refused("must be 64 hexadecimal digits, or empty", name)
        return found.group(1) if found else None

    def model(self, name: str) -> str:
        """Return one model's canonical name."""
        return _canonical(self.text(name, 400), name)

    def models(self) -> list[str]:
        """Return the canonical names that are ticked or written, each once, in order."""
        written = self._form.get("more_models", "").replace("\n", ",").split(",")
        names = [name for name in (*self._form.getlist("models"), *written) if name.strip()]
        if len(names) > 1000:
            raise Refused("must be at most 1000 names", "models")
        return sorted({_canonical(name, "models") for name in names})

    def granted(self) -> list[str] | None:
        """Return the models of the choice `Only these`, None for `All`.

        Models beside the choice of all are a contradiction, and refused.
        """
        every = self.choice("grant", {"all", "these"}) == "all"
        names = self.models()
        if every and names:
            raise Refused('are ticked or listed, but "Only these" is not chosen', "models")
        return None if every else names

    def overlap(self) -> timedelta:
        """Return how long a replaced key goes on."""
        return OVERLAPS[self.choice("overlap", set(OVERLAPS))]

    def extension(self) -> tuple[int, datetime]:
        """Return by how many tokens a budget is increased, and until when."""
        found = self.all(
            {"tokens": partial(self.needed, "tokens"), "until": partial(self._until, "until")}
        )
        return found["tokens"], found["until"]

    def limits(self) -> dict[str, Reader]:
        """Return readers of what a tenant and a key have in common."""
        return {
            **{name: partial(self.whole, name) for name in COUNTS},
            "budget_period": partial(self.choice, "budget_period", {"day", "month", "total"}),
            "max_output_tokens": partial(self.whole, "max_output_tokens", 1),
        }

    def _until(self, name: str) -> datetime:
        value = self.instant(name)
        if value is None:
            raise Refused("is needed", name)
        return value


async def fields() -> Fields:
    """Return the form of the present request."""
    return Fields(await request.form)


def _canonical(name: str, field: str) -> str:
    try:
        return canonical(name).full
    except InvalidModelName as error:
        raise Refused(f"{error}: write it as ollama list does, such as llama3.2", field) from None
