"""Joins the files of all processes into the text of a scrape, fast enough for many workers.

The client library's own collector says the same, and takes ten times as long: it parses each
key of each file anew. Keys stay where they are once they are in a file, so here a file is
parsed when it has grown; otherwise its numbers are picked out at known places.
"""

from __future__ import annotations

import json
import math
import os
import struct
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from prometheus_client.mmap_dict import MmapedDict

from trio_gateway.services.metrics.place import alive

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Values = list[float | None]

_used = struct.Struct("i").unpack_from
WORD = 8  # bytes; numbers stand at its multiples
JOINS: dict[str, Callable[[float, float], float]] = {
    "counter": float.__add__,
    "histogram": float.__add__,
    "gauge_livesum": float.__add__,
    "gauge_livemin": min,
    "gauge_livemax": max,
}


@dataclass(slots=True)
class _File:
    """One file as it was last parsed: its numbers' words, and their places in the sums."""

    inode: int
    used: int
    words: list[int]
    places: list[int]


@dataclass(slots=True)
class _Histogram:
    """One series of buckets: each with its bound, text and place."""

    count: str
    buckets: list[tuple[float, str, int]] = field(default_factory=list)

    def lines(self, values: Values) -> Iterator[str]:
        """Write the buckets, each with all below it, and their count."""
        total = 0.0
        for _, text, place in self.buckets:
            total += values[place] or 0.0
            yield f"{text}{_number(total)}"
        yield f"{self.count}{_number(total)}"


@dataclass(slots=True)
class _Family:
    """One metric: its plain series, and those of buckets by their labels."""

    head: str
    plain: list[tuple[str, int]] = field(default_factory=list)
    histograms: dict[str, _Histogram] = field(default_factory=dict)

    def lines(self, values: Values) -> Iterator[str]:
        """Write what is there."""
        for histogram in self.histograms.values():
            if any(values[place] is not None for _, _, place in histogram.buckets):
                yield from histogram.lines(values)
        for text, place in self.plain:
            value = values[place]
            if value is not None:
                yield f"{text}{_number(value)}"


class Merged:
    """The files of a folder; what a dead process was doing is left out, what it counted is not."""

    def __init__(self, folder: Path) -> None:
        """Begin with nothing parsed."""
        self._folder = folder
        self._files: dict[str, _File] = {}
        self._places: dict[str, int] = {}
        self._families: dict[str, _Family] = {}
        self._lock = threading.Lock()

    def text(self) -> bytes:
        """Return the scrape, in the text format 0.0.4."""
        with self._lock:
            values = self._values()
            lines = []
            for family in self._families.values():
                series = list(family.lines(values))
                if series:
                    lines += [family.head, *series]
        return "".join(f"{line}\n" for line in lines).encode()

    def _values(self) -> Values:
        """Read every file; the sums by their places, None where no process has one."""
        living: dict[str, bool] = {}
        found = []
        for path in sorted(self._folder.glob("*.db")):
            kind, slot = path.stem.rsplit("_", 1)
            if kind.startswith("gauge") and not living.setdefault(slot, alive(self._folder, slot)):
                continue
            try:
                data, inode = _read(path)
            except FileNotFoundError:  # of a worker that begins just now
                continue
            if data:
                found.append((kind, data, self._parsed(path, kind, data, inode)))
        values: Values = [None] * len(self._places)
        for kind, data, file in found:
            join, numbers = JOINS[kind], memoryview(data).cast("d")
            for word, place in zip(file.words, file.places, strict=True):
                value, before = numbers[word], values[place]
                values[place] = value if before is None else join(before, value)
        return values

    def _parsed(self, path: Path, kind: str, data: bytes, inode: int) -> _File:
        used = _used(data)[0]
        file = self._files.get(path.name)
        if file is None or (file.inode, file.used) != (inode, used):
            file = self._files[path.name] = _File(inode, used, [], [])
            for key, _, _, at in MmapedDict.read_all_values_from_file(str(path)):
                if at + 2 * WORD <= used:  # a number and its time; else it came after `data`
                    file.words.append(at // WORD)
                    file.places.append(self._place(kind.partition("_")[0], key))
        return file

    def _place(self, kind: str, key: str) -> int:
        place = self._places.get(key)
        if place is None:
            place = self._places[key] = len(self._places)
            self._add(kind, key, place)
        return place

    def _add(self, kind: str, key: str, place: int) -> None:
        """Give a new series its text."""
        metric, name, labels, about = json.loads(key)
        family = self._families.get(metric)
        if family is None:
            shown = f"{metric}_total" if kind == "counter" else metric
            about = about.replace("\\", r"\\").replace("\n", r"\n")
            head = f"# HELP {shown} {about}\n# TYPE {shown} {kind}"
            family = self._families[metric] = _Family(head)
        bound = labels.pop("le", None)
        if bound is None:
            family.plain.append((f"{name}{_labels(labels)} ", place))
            return
        common = _labels(labels)
        series = family.histograms.setdefault(common, _Histogram(f"{metric}_count{common} "))
        text = f"{name}{_labels(labels | {'le': bound})} "
        series.buckets.append((float(bound), text, place))
        series.buckets.sort()


def _read(path: Path) -> tuple[bytes, int]:
    """Return the part of a file that is in use, none if it is just being made, and its inode."""
    with path.open("rb") as file:
        head = file.read(WORD)
        used = _used(head)[0] if len(head) == WORD else 0
        return head + file.read(used - WORD) if used > WORD else b"", os.fstat(file.fileno()).st_ino


def _labels(labels: dict[str, str]) -> str:
    pairs = [f'{name}="{_escaped(value)}"' for name, value in sorted(labels.items())]
    return "{" + ",".join(pairs) + "}" if pairs else ""


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def _number(value: float) -> str:
    if math.isfinite(value):
        return repr(value)
    return "NaN" if math.isnan(value) else "+Inf" if value > 0 else "-Inf"
