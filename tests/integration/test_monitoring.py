"""Alert rules and dashboard speak of metrics, labels and values that a gateway really has."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import trio
import yaml

from tests.integration.batching import Batcher, asks
from tests.integration.caller import OPENAI, PATIENCE, calling
from tests.integration.test_metrics import scraped, some_calls
from trio_gateway.core.domain import Basis, Outcome
from trio_gateway.services.metrics.metrics import FAULTS, THRESHOLDS
from trio_gateway.simulator.script import Script

DEPLOY = Path(__file__).parents[2] / "deploy"
README = (DEPLOY.parent / "README.md").read_text(encoding="utf-8")
RULES = [
    rule
    for group in yaml.safe_load((DEPLOY / "prometheus/alerts.yml").read_text())["groups"]
    for rule in group["rules"]
]
DASHBOARD = json.loads((DEPLOY / "grafana/dashboard.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
VARIABLES = {
    "$__rate_interval": "1m",
    "$__interval": "1m",
    "$instance": ".*",
    "$model": ".*",
}
# by endpoint, or by backend and outcome: as many as there are calls of a kind
OF_CALLS = {"trio_gateway_calls_total", "trio_gateway_upstream_calls_total"}
PROMETHEUS_LABELS = {"instance", "job"}  # which it adds by itself
VALUES = {
    "code": set(FAULTS),
    "outcome": {outcome.value for outcome in Outcome},
    "basis": {basis.value for basis in Basis},
    "threshold": {str(threshold) for threshold in THRESHOLDS},
    "job": {"trio-gateway"},
}


def filled(expression):
    """Return a panel's expression with its variables filled in."""
    for name, value in VARIABLES.items():
        expression = expression.replace(name, value)
    return expression


def expressions():
    """Return every expression, by where it stands."""
    found = {f"alert {rule['alert']}": rule["expr"] for rule in RULES}
    for panel in PANELS:
        for target in panel["targets"]:
            found[f"panel {panel['title']} {target['refId']}"] = filled(target["expr"])
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            metric, label = variable["definition"].removeprefix("label_values(")[:-1].split(", ")
            found[f"variable {variable['name']}"] = f"sum by ({label}) ({metric})"
    return found


EXPRESSIONS = expressions()


class Reader:
    """Collects what an expression reads and by which labels it groups."""

    def __init__(self, expression: str) -> None:
        self.selectors: list[tuple[str, list[Any]]] = []
        self.grouped: set[str] = set()
        self._read(promql_parser.parse(expression))

    def _read(self, node: Any) -> None:
        kind = type(node).__name__
        if kind == "VectorSelector":
            self.selectors.append((node.name, list(node.matchers.matchers)))
        elif kind == "BinaryExpr":
            self._read(node.lhs)
            self._read(node.rhs)
        elif kind == "AggregateExpr":
            self.grouped |= set(node.modifier.labels) if node.modifier else set()
            self._read(node.expr)
        elif kind == "Call":
            for argument in node.args:
                self._read(argument)
        elif kind == "MatrixSelector":
            self._read(node.vector_selector)
        elif kind in {"ParenExpr", "UnaryExpr", "SubqueryExpr"}:
            self._read(node.expr)
        else:
            assert kind in {"NumberLiteral", "StringLiteral"}, kind


async def everything(world):
    """Let a gateway do all that has a series: calls, a batch with its files, a revocation."""
    await some_calls(world)
    await world.client.get("/nowhere")
    batcher = Batcher(world.client, world.key)
    batch_id = await batcher.begin(asks(2))
    with trio.fail_after(PATIENCE):
        while (batch := await batcher.show(batch_id))["status"] != "completed":  # noqa: ASYNC110
            await trio.sleep(0.05)
    await world.get(f"/v1/files/{batch['output_file_id']}/content")
    world.sim.play(Script(tokens=50, token_gap=60))
    async with calling(world, OPENAI) as caller:
        await caller.until(b"t0")
        await world.rows("INSERT INTO gateway.revocations (key_id) VALUES ($1)", world.key["id"])
        await caller.until(b"invalid_api_key")


async def test_every_expression_reads_what_is_there(world):
    """Each metric is in a real scrape, and has each label that is selected or grouped by."""
    await everything(world)
    labels: dict[str, set[str]] = {"up": set()}
    for name, pairs in await scraped(world):
        labels.setdefault(name, set()).update(label for label, _ in pairs)
    wrong = []
    for where, expression in EXPRESSIONS.items():
        found = Reader(expression)
        read = {name for name, _ in found.selectors}
        wrong += [f"{where}: no metric {name}" for name in read - set(labels)]
        known = PROMETHEUS_LABELS.union(*(labels.get(name, set()) for name in read))
        wrong += [f"{where}: no label {label}" for label in found.grouped - known]
        for name, matchers in found.selectors:
            wanted = {matcher.name for matcher in matchers} - PROMETHEUS_LABELS
            wrong += [f"{where}: {name} has no {label}" for label in wanted - labels[name]]
    assert wrong == []


async def test_what_has_closed_labels_is_in_the_first_scrape(world):
    """An increase from nothing is not seen: counters begin at 0, as far as labels are known."""
    there = {name for name, _ in await scraped(world)}
    read = {name for where in EXPRESSIONS for name, _ in Reader(EXPRESSIONS[where]).selectors}
    later = {name for name in read - there - {"up"} if not name.startswith("gen_ai_")}
    assert later <= OF_CALLS


@pytest.mark.parametrize("where", EXPRESSIONS)
def test_every_value_that_is_asked_for_can_occur(where):
    """An outcome, a code or a threshold that nobody counts would never fire."""
    for _, matchers in Reader(EXPRESSIONS[where]).selectors:
        for matcher in matchers:
            if matcher.value != ".*":
                assert set(matcher.value.split("|")) <= VALUES[matcher.name]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_every_alert_says_what_it_is(rule):
    """Its urgency, and in words what is the matter and what to look at."""
    assert rule["alert"].startswith("TrioGateway")
    assert rule["labels"]["severity"] in {"page", "ticket"}
    assert set(rule["annotations"]) == {"summary", "description"}
    immediate = "increase(" in rule["expr"] or "revocation_lag" in rule["expr"]
    assert "for" in rule or immediate


def test_alerts_have_names_of_their_own():
    """Twice the same name would be one alert for those who silence it."""
    names = [rule["alert"] for rule in RULES]
    assert len(set(names)) == len(names)


def test_the_dashboard_can_be_imported():
    """Ids are unique, panels do not overlap, and each reads from the source that was chosen."""
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
    assert {panel["datasource"]["uid"] for panel in PANELS} == {"${datasource}"}
    assert all(panel["fieldConfig"]["defaults"]["unit"] for panel in PANELS)
    assert len({panel["title"] for panel in PANELS}) >= len(PANELS)


def test_the_scrape_example_names_the_job_of_the_rules():
    """A job by another name would silence every rule about it."""
    example = yaml.safe_load((DEPLOY / "prometheus/scrape.yml").read_text())
    (job,) = example["scrape_configs"]
    assert (job["job_name"], job["metrics_path"]) == ("trio-gateway", "/metrics")
    assert example["rule_files"] == ["alerts.yml"]


async def test_the_readme_lists_what_there_is(world):
    """Each metric by its name, and no other."""
    section = README.split("### Metrics and traces\n")[1].split("\n## ")[0]
    listed = set(re.findall(r"`((?:gen_ai|trio_gateway)_[a-z_]+)`(?=[^\n]*\|)", section))
    await everything(world)
    labels = {label for _, pairs in await scraped(world) for label, _ in pairs}
    there = {re.sub("_(bucket|count|sum)$", "", name) for name, _ in await scraped(world)}
    assert listed - labels == there
