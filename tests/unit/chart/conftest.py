"""The chart, rendered by the real helm."""

from __future__ import annotations

import functools
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
CHART = ROOT / "helm" / "modelpress"

Rendered = list[dict[str, Any]]


def tool(script: str, *names: str) -> Path:
    """The folder that a script of tools/cluster prints; fails with what the script says is missing."""
    done = subprocess.run([str(ROOT / "tools" / "cluster" / script), *names], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip().splitlines()[-1])


@pytest.fixture(scope="session")
def helm() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs helm; the caller looks at the exit code."""
    binary = tool("tools.sh", "helm") / "helm"

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([str(binary), *arguments], capture_output=True, text=True, timeout=120)

    return run


@pytest.fixture(scope="session")
def render(
    helm: Callable[..., subprocess.CompletedProcess[str]], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Rendered]:
    """All objects of the chart for some values, release `modelpress` in namespace `press` unless told otherwise."""

    @functools.cache
    def text(values: str, release: str) -> str:
        file = tmp_path_factory.mktemp("values") / "values.yaml"
        file.write_text(values)
        done = helm(
            *("template", release, str(CHART), "--namespace", "press", "--kube-version", "1.35", "--values", str(file))
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def objects(values: dict[str, Any] | None = None, release: str = "modelpress") -> Rendered:
        documents = yaml.load_all(text(yaml.safe_dump(values or {}), release), Loader=yaml.CSafeLoader)
        return [document for document in documents if document]

    return objects


@pytest.fixture(scope="session")
def promtool() -> Path:
    """Prometheus' checker of rules."""
    return tool("prometheus.sh") / "promtool"
