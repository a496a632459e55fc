"""Alerts and dashboard: they ask for metrics that the operator has, and fire when they should."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from chart_objects import EVERYTHING, Render, only

from modelpress_operator.metrics import Metrics

ALERTS_TEST = Path(__file__).with_name("alerts_test.yaml")
NAME = re.compile(r"\b(?:modelpress|process)_[a-z0-9_]+\b")
SELECTED = re.compile(r"\b((?:modelpress|process)_[a-z0-9_]+)\{([^}]*)\}")


def exported() -> dict[str, set[str]]:
    """Names of the samples that the operator can export, each with the labels that its own code gives it."""
    metrics = Metrics()
    metrics.watch_phases(lambda: {("CompressionJob", "Running"): 1, ("CompressionSweep", "Running"): 1})
    found: dict[str, set[str]] = {}
    for family in metrics.registry.collect():
        names = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}.get(family.type, [""])
        for ending in names:
            labels = {label for sample in family.samples for label in sample.labels}
            found[family.name + ending] = labels | ({"le"} if ending == "_bucket" else set())
    for metric in vars(metrics).values():  # those with labels have no samples yet
        for labels in [set(getattr(metric, "_labelnames", ()))]:
            for name in list(found):
                if labels and name.startswith(getattr(metric, "_name", "-")):
                    found[name] |= labels
    return found


def dashboard(render: Render) -> dict[str, Any]:
    """The dashboard as Grafana reads it."""
    loaded: dict[str, Any] = json.loads(only(render(EVERYTHING), "ConfigMap")["data"]["modelpress.json"])
    return loaded


def expressions(render: Render) -> Iterator[str]:
    """Every query of the dashboard and of the chart's own rules."""
    for panel in dashboard(render)["panels"]:
        for target in panel.get("targets", ()):
            yield target["expr"]
    for rule in only(render(EVERYTHING), "PrometheusRule")["spec"]["groups"][0]["rules"]:
        yield rule["expr"]


def test_queries_ask_for_what_there_is(render: Render) -> None:
    """Every metric and label in a query is one of the operator's, or comes from its target."""
    known = exported()
    asked = set()
    for query in expressions(render):
        for name in NAME.findall(query):
            assert name in known, query
            asked.add(name)
        for name, selector in SELECTED.findall(query):
            labels = set(re.findall(r"(\w+)\s*(?:=|!=|=~|!~)\"", selector))
            assert labels <= known[name] | {"namespace", "job"}, query
    assert len(asked) > 15


def test_every_metric_of_the_operator_is_shown(render: Render) -> None:
    """The dashboard leaves none of the operator's own metrics out."""
    shown = {name for query in expressions(render) for name in NAME.findall(query)}
    families = {re.sub(r"_(total|bucket|sum|count)$", "", name) for name in exported() if name.startswith("modelpress")}
    assert families == {re.sub(r"_(total|bucket|sum|count)$", "", name) for name in shown if "modelpress" in name}


def test_dashboard_is_whole(render: Render) -> None:
    """Unique ids, no two panels in one place, a title, a unit and a description on every panel, known variables."""
    board = dashboard(render)
    panels = board["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    variables = {variable["name"] for variable in board["templating"]["list"]}
    assert variables == {"datasource", "namespace", "job"}
    for one, other in itertools.combinations([panel["gridPos"] for panel in panels], 2):
        apart = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        assert apart or one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
    for panel in panels:
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24
        if panel["type"] == "row":
            continue
        assert panel["title"]
        assert panel["description"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        for target in panel["targets"]:
            assert set(re.findall(r"\$(\w+)", target["expr"])) <= variables | {"__rate_interval"}


def test_promtool_accepts_all_queries(render: Render, promtool: Path, tmp_path: Path) -> None:
    """Prometheus' own checker parses the rules, and the dashboard's queries as rules."""
    spec = only(render(EVERYTHING), "PrometheusRule")["spec"]
    queries = [query.replace("$__rate_interval", "5m") for query in expressions(render)]
    recorded = [{"record": f"query:{number}", "expr": query} for number, query in enumerate(queries)]
    for name, groups in (("rules", spec["groups"]), ("board", [{"name": "board", "rules": recorded}])):
        file = tmp_path / f"{name}.yaml"
        file.write_text(yaml.safe_dump({"groups": groups}))
        done = subprocess.run([str(promtool), "check", "rules", str(file)], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr
        assert f"SUCCESS: {sum(len(group['rules']) for group in groups)} rules found" in done.stdout


def test_alerts_fire_when_they_should(render: Render, promtool: Path, tmp_path: Path) -> None:
    """Every alert stays silent on a healthy operator and fires on the series that show its trouble."""
    spec = only(render({"metrics": {"prometheusRule": {"enabled": True}}}), "PrometheusRule")["spec"]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": spec["groups"]}))
    cases = ALERTS_TEST.read_text()
    (tmp_path / "alerts_test.yaml").write_text(cases)
    done = subprocess.run(
        [str(promtool), "test", "rules", "alerts_test.yaml"], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    alerts = {rule["alert"] for rule in spec["groups"][0]["rules"]}
    fired, silent = set(), set()
    for test in yaml.safe_load(cases)["tests"]:
        for case in test["alert_rule_test"]:
            (fired if case.get("exp_alerts") else silent).add(case["alertname"])
    assert fired == silent == alerts


@pytest.mark.parametrize("seconds", [120, 300, 900])
def test_silence_follows_the_value(render: Render, seconds: int) -> None:
    """The alert comes before the replica starts itself again: at four fifths of watchSilenceSeconds."""
    values = {"watchSilenceSeconds": seconds, "metrics": {"prometheusRule": {"enabled": True}}}
    rules = only(render(values), "PrometheusRule")["spec"]["groups"][0]["rules"]
    (rule,) = [rule for rule in rules if rule["alert"] == "ModelpressWatchSilent"]
    assert float(rule["expr"].rpartition("> ")[2]) == pytest.approx(0.8 * seconds)


def test_additional_rules_and_labels(render: Render) -> None:
    """The user's rules come after the chart's, and alertLabels are on each of these."""
    rules = only(render(EVERYTHING), "PrometheusRule")["spec"]["groups"][0]["rules"]
    assert rules[-1] == EVERYTHING["metrics"]["prometheusRule"]["additionalRules"][0]
    for rule in rules[:-1]:
        assert rule["labels"]["team"] == "ml"
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        assert rule["annotations"].keys() == {"summary", "description"}
