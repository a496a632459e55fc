"""values.yaml, values.schema.json and README.md say the same, and the schema refuses the rest."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from chart import descriptions, leaves
from chart_objects import EVERYTHING

ROOT = Path(__file__).resolve().parents[3]
CHART = ROOT / "helm" / "modelpress"
SCHEMA = json.loads((CHART / "values.schema.json").read_text())
VALUES = yaml.safe_load((CHART / "values.yaml").read_text())
FOR_PARENTS = {"global", "enabled"}  # a parent chart gives these to any subchart
Helm = Callable[..., subprocess.CompletedProcess[str]]


def own_paths(schema: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every property of the schema's own objects."""
    for name, part in schema.get("properties", {}).items():
        yield f"{prefix}{name}", part
        yield from own_paths(part, f"{prefix}{name}.")


def test_every_value_is_described_and_in_the_schema() -> None:
    """values.yaml holds exactly the properties that the schema allows, each with a description."""
    known = descriptions((CHART / "values.yaml").read_text())
    values = {path for path, _ in leaves(VALUES, known)}
    assert values == known.keys()
    deep = {path for path, part in own_paths(SCHEMA) if "properties" not in part} - FOR_PARENTS
    # Resources and contexts of Kubernetes have a description of their own, whatever the schema knows inside.
    own = {path for path in deep if not any(path.startswith(f"{value}.") for value in values)}
    assert own | {"resources", "runner.podTemplate"} == values


def test_every_value_reaches_an_object(helm: Helm, tmp_path: Path) -> None:
    """Whatever value is changed, some object changes: none is taken and ignored."""
    known = descriptions((CHART / "values.yaml").read_text())
    parts = dict(own_paths(SCHEMA))
    file = tmp_path / "values.yaml"
    quick = {"crds": {"enabled": False}}  # they are most of the text

    def text(values: dict[str, Any]) -> str:
        file.write_text(json.dumps(values))
        done = helm("template", "modelpress", str(CHART), "--kube-version", "1.35", "--values", str(file))
        assert done.returncode == 0, done.stderr
        return done.stdout

    bases = [(base, text(base)) for base in ({**EVERYTHING, **quick}, quick, {})]
    ignored = []
    for path, default in leaves(VALUES, known):
        now = at(EVERYTHING, path, default)
        other = default if now != default else another(parts[path], default)
        # Some values give way to others, such as a tag to a digest: in one of the cases it must show.
        if not any(text(with_value(base, path, other)) != before for base, before in bases):
            ignored.append(path)
    assert ignored == []


def at(values: dict[str, Any], path: str, otherwise: Any) -> Any:
    """The value at a dotted path."""
    found: Any = values
    for key in path.split("."):
        if not isinstance(found, dict) or key not in found:
            return otherwise
        found = found[key]
    return found


def with_value(values: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """The values with another one at a dotted path."""
    first, _, rest = path.partition(".")
    return {**values, first: with_value(values.get(first, {}), rest, value) if rest else value}


def another(part: dict[str, Any], default: Any) -> Any:
    """A value that the schema allows and that is not the default; EVERYTHING has those that are hard to guess."""
    if "enum" in part:
        return next(value for value in part["enum"] if value != default)
    if isinstance(default, bool):
        return not default
    if isinstance(default, int | float):
        return default + 1
    if isinstance(default, str):
        guesses = ("other", "1h", f"sha256:{'b' * 64}")
        return next(text for text in guesses if text != default and re.search(part.get("pattern", ""), text))
    assert "$ref" in part, "chart_objects.EVERYTHING must have another value than the default"
    return {"example.com/key": "value"}


def test_schema_is_closed() -> None:
    """Every object of the schema's own refuses unknown properties."""
    for path, part in [("", SCHEMA), *own_paths(SCHEMA)]:
        if "properties" in part:
            assert part["additionalProperties"] is False, path


def test_generated_parts_are_current() -> None:
    """The chart's CRDs equal crds/, and the README's table equals values.yaml."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "chart.py"), "--check"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


def test_app_version_is_the_projects() -> None:
    """The images that the chart names by default are those of this version."""
    project = next(
        line.split('"')[1] for line in (ROOT / "pyproject.toml").read_text().splitlines() if line.startswith("version")
    )
    assert yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"] == project


@pytest.mark.parametrize(
    "values",
    [{}, EVERYTHING, {"global": {"region": "eu"}, "enabled": True}],
    ids=["defaults", "everything", "from a parent"],
)
def test_lint(helm: Helm, values: dict[str, Any], tmp_path: Path) -> None:
    """helm lint --strict finds nothing to complain about."""
    file = tmp_path / "values.yaml"
    file.write_text(yaml.safe_dump(values))
    done = helm("lint", "--strict", str(CHART), "--values", str(file))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 chart(s) failed" in done.stdout


@pytest.mark.parametrize(
    ("setting", "where"),
    [
        ("replica=2", "replica"),
        ("crds.enable=true", "enable"),
        ("replicas=0", "/replicas"),
        ("logLevel=verbose", "/logLevel"),
        ("watchNamespaces={Team_A}", "/watchNamespaces/0"),
        ("image.digest=latest", "/image/digest"),
        ("image.repository=a b", "/image/repository"),
        ("watchSilenceSeconds=60", "/watchSilenceSeconds"),
        ("metrics.serviceMonitor.interval=30", "/metrics/serviceMonitor/interval"),
        ("podLabels.a=1", "/podLabels/a"),
        ("runner.podTemplate.containers={a}", "containers"),
        ("runner.allowed.image={a}", "image"),
        ("runner.allowed.podTemplate=maybe", "/runner/allowed/podTemplate"),
        ("admissionPolicy.exemptUsers=a", "/admissionPolicy/exemptUsers"),
        ("runner.graceSeconds=0", "/runner/graceSeconds"),
        ("imagePullSecrets={registry}", "/imagePullSecrets/0"),
    ],
)
def test_schema_refuses(helm: Helm, setting: str, where: str) -> None:
    """A wrong value ends helm with an error that names it."""
    done = helm("template", "modelpress", str(CHART), "--kube-version", "1.35", "--set", setting)
    assert done.returncode != 0
    assert where in done.stderr.replace(".", "/")
