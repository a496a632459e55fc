"""A real Prometheus and the chart: what its ServiceMonitor selects is scraped, its PrometheusRule is evaluated."""

from __future__ import annotations

import json
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from running import SYSTEM, Running

SECONDS = 60  # for a first scrape and a first evaluation; both are done every second


class Prometheus:
    """A server's HTTP API."""

    def __init__(self, port: int, log: Path) -> None:
        self._url = f"http://127.0.0.1:{port}/api/v1"
        self._log = log

    def ask(self, path: str, **parameters: str) -> Any:
        """The data of an answer."""
        with urllib.request.urlopen(f"{self._url}/{path}?{urllib.parse.urlencode(parameters)}", timeout=10) as answer:
            return json.load(answer)["data"]

    def until(self, check: Callable[[], Any], what: str) -> Any:
        """Asks again until an answer is true, which is returned: the server announces nothing."""
        deadline, last = time.monotonic() + SECONDS, ""
        while time.monotonic() < deadline:
            try:
                if found := check():
                    return found
            except OSError as error:
                last = str(error)
            time.sleep(0.2)
        raise AssertionError(f"waited {SECONDS} s in vain for {what} {last}\n{self._log.read_text()[-3000:]}")


def targets(monitor: dict[str, Any], cluster: Running) -> list[dict[str, Any]]:
    """What a ServiceMonitor selects: the endpoints of its Services' port, labelled as the Prometheus operator does.

    Debian's Prometheus is built without the discovery of Kubernetes, so the EndpointSlices are read here.
    """
    (endpoint,) = monitor["spec"]["endpoints"]
    (namespace,) = monitor["spec"]["namespaceSelector"]["matchNames"]
    selector = ",".join(f"{key}={value}" for key, value in monitor["spec"]["selector"]["matchLabels"].items())
    found = []
    for service in cluster.list("services", namespace, selector):
        name = service["metadata"]["name"]
        for part in cluster.list("endpointslices", namespace, f"kubernetes.io/service-name={name}"):
            ports = [port["port"] for port in part["ports"] if port["name"] == endpoint["port"]]
            for one in part["endpoints"] or ():
                labels = {"namespace": namespace, "job": name, "pod": one["targetRef"]["name"]}
                addresses = [f"{address}:{port}" for address in one["addresses"] for port in ports]
                found.append({"targets": addresses, "labels": labels})
    return found


def configuration(monitor: dict[str, Any], rules: Path, cluster: Running) -> dict[str, Any]:
    """What the Prometheus operator makes of a ServiceMonitor and a PrometheusRule, but for quicker intervals."""
    scrape = {
        "job_name": "chart",
        "metrics_path": monitor["spec"]["endpoints"][0]["path"],
        "static_configs": targets(monitor, cluster),
    }
    return {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(rules)],
        "scrape_configs": [scrape],
    }


@pytest.fixture(scope="module")
def objects(cluster: Running) -> dict[str, dict[str, Any]]:
    """The chart's ServiceMonitor and PrometheusRule, by kind."""
    rendered = cluster.rendered(metrics__serviceMonitor__enabled="true", metrics__prometheusRule__enabled="true")
    return {one["kind"]: one for one in rendered if one["kind"] in ("ServiceMonitor", "PrometheusRule")}


@pytest.fixture(scope="module")
def rules(objects: dict[str, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The chart's rules as a file of Prometheus."""
    file = tmp_path_factory.mktemp("prometheus") / "rules.json"
    file.write_text(json.dumps({"groups": objects["PrometheusRule"]["spec"]["groups"]}))
    return file


@pytest.fixture
def prometheus(operator: Running, objects: dict[str, dict[str, Any]], rules: Path) -> Iterator[Prometheus]:
    """A server that scrapes the installed operator and evaluates the chart's rules."""
    folder = rules.parent
    (folder / "prometheus.json").write_text(json.dumps(configuration(objects["ServiceMonitor"], rules, operator)))
    check = [operator.prometheus / "promtool", "check", "config", folder / "prometheus.json"]
    checked = subprocess.run(check, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        str(operator.prometheus / "prometheus"),
        f"--config.file={folder / 'prometheus.json'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    log = folder / "prometheus.log"
    with open(log, "wb") as file, subprocess.Popen(command, stdout=file, stderr=file) as process:
        try:
            yield Prometheus(port, log)
        finally:
            process.terminate()


def test_promtool_finds_nothing_wrong_with_the_rules(cluster: Running, rules: Path, tmp_path: Path) -> None:
    """`promtool check rules` takes the chart's rules, and refuses them once one is spoilt."""

    def check(file: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run([cluster.prometheus / "promtool", "check", "rules", file], capture_output=True, text=True)

    good = check(rules)
    assert good.returncode == 0, good.stdout + good.stderr
    assert "SUCCESS" in good.stdout
    spoilt = tmp_path / "rules.json"
    spoilt.write_text(rules.read_text().replace("absent(", "absent((", 1))
    assert check(spoilt).returncode != 0


def test_prometheus_scrapes_every_replica_and_evaluates_the_rules(operator: Running, prometheus: Prometheus) -> None:
    """Both replicas are up, one of them leads, every alert is evaluated without an error, and none is raised."""

    def up() -> list[dict[str, Any]]:
        targets = prometheus.ask("targets", state="active")["activeTargets"]
        return targets if len(targets) == 2 and all(one["health"] == "up" for one in targets) else []

    labels = [target["labels"] for target in prometheus.until(up, "two healthy targets")]
    assert {(one["namespace"], one["job"]) for one in labels} == {(SYSTEM, "modelpress-operator")}
    pods = {pod["metadata"]["name"] for pod in operator.list("pods", SYSTEM, "app.kubernetes.io/component=operator")}
    assert {one["pod"] for one in labels} == pods

    query = f'sum(modelpress_leader{{namespace="{SYSTEM}",job="modelpress-operator"}})'
    (sample,) = prometheus.until(lambda: prometheus.ask("query", query=query)["result"], "modelpress_leader")
    assert sample["value"][1] == "1"

    def settled() -> list[dict[str, Any]]:
        (group,) = prometheus.ask("rules")["groups"]
        # Before the first scrape nothing is there, which is what ModelpressOperatorAbsent waits for.
        return group["rules"] if all(rule["state"] == "inactive" for rule in group["rules"] if evaluated(rule)) else []

    def evaluated(rule: dict[str, Any]) -> bool:
        return not rule["lastEvaluation"].startswith("0001")

    found = prometheus.until(settled, "rules without an alert")
    assert len(found) >= 9
    assert {(rule["name"], rule["health"], rule.get("lastError")) for rule in found} == {
        (rule["name"], "ok", None) for rule in found
    }
