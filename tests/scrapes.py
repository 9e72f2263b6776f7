"""Reads scrapes as a Prometheus does."""

from __future__ import annotations

from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from trio_gateway.services.metrics import exposition

Series = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def parse(text: str) -> Series:
    """Return the value of each series by its name and its labels."""
    return {
        (found.name, tuple(sorted(found.labels.items()))): found.value
        for family in text_string_to_metric_families(text)
        for found in family.samples
    }


async def read(metrics: Any, postgres: Any = None) -> Series:
    """Scrape in this process."""
    text, _ = await exposition.scrape(metrics, postgres)
    return parse(text.decode())


def total(series: Series, name: str, **labels: str) -> float:
    """Sum what a name has under these labels, and maybe others."""
    wanted = set(labels.items())
    return sum(
        value for (each, have), value in series.items() if each == name and wanted <= set(have)
    )


def names(series: Series) -> set[str]:
    """Return the names that are there."""
    return {name for name, _ in series}
