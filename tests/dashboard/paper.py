"""Forms as a browser would send them: with every field that the page filled in."""

from __future__ import annotations

from html.parser import HTMLParser

Values = dict[str, list[str]]


class _Reader(HTMLParser):
    """Collects, of each form of a page, what it would send if nobody touched it."""

    def __init__(self) -> None:
        super().__init__()
        self.forms: list[tuple[dict[str, str], Values]] = []
        self._select = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if tag == "form":
            self.forms.append((given, {}))
        elif tag == "select":
            self._select = given["name"]
        elif tag == "option" and "selected" in given:
            self._add(self._select, given["value"])
        elif tag == "input" and given.get("name"):
            ticked = given.get("type") not in {"checkbox", "radio"} or "checked" in given
            if ticked:
                self._add(given["name"], given.get("value", ""))

    def _add(self, name: str, value: str) -> None:
        self.forms[-1][1].setdefault(name, []).append(value)


def form_of(text: str, kind: str = "stack") -> Values:
    """Return the fields of the page's one form of a class."""
    reader = _Reader()
    reader.feed(text)
    (found,) = [values for given, values in reader.forms if given.get("class") == kind]
    return found


def form_to(text: str, action: str) -> Values:
    """Return the fields of the page's one form that is sent to an address."""
    reader = _Reader()
    reader.feed(text)
    (found,) = [values for given, values in reader.forms if given.get("action") == action]
    return found
