"""The operator's process: what it imports, how it refuses nonsense, and that its page of documentation is complete."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

from modelpress_operator.metrics import Metrics
from modelpress_operator.settings import Settings

PAGE = Path(__file__).resolve().parents[3] / "docs" / "reference" / "operator.md"


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Python with these arguments, without settings from outside."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MODELPRESS_", "KUBE"))}
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=clean | environment, capture_output=True, text=True, timeout=60, check=False)


def test_it_imports_neither_torch_nor_optuna() -> None:
    """The image has no torch; Optuna comes when a sweep's sampler needs it."""
    code = "import sys, modelpress_operator.__main__, modelpress_operator.render; print(*sys.modules)"
    done = run("-c", code)
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split())
    assert "kopf" in loaded
    assert loaded & {"torch", "optuna", "numpy", "sqlalchemy", "modelpress_runner", "pytest"} == set()


def test_nonsense_is_one_sentence_and_exit_code_2(tmp_path: Path) -> None:
    """A bad setting, and no way to a cluster."""
    bad = run("-m", "modelpress_operator", MODELPRESS_WORKERS="many")
    assert (bad.returncode, bad.stderr.count("\n")) == (2, 1)
    assert bad.stderr.startswith("modelpress-operator: MODELPRESS_WORKERS: 'many' is not a whole number")
    lost = run("-m", "modelpress_operator", "--kubeconfig", str(tmp_path / "nothing"))
    assert (lost.returncode, lost.stderr.count("\n")) == (2, 1)
    assert lost.stderr.startswith("modelpress-operator: cannot reach a cluster: ")


def test_the_page_names_every_setting_and_metric() -> None:
    """Flags, variables and metrics, by their full names."""
    text = PAGE.read_text()
    for item in fields(Settings):
        assert f"`--{item.name.replace('_', '-')}`" in text
        assert f"`MODELPRESS_{item.name.upper()}`" in text
    metrics = Metrics()
    metrics.watch_phases(dict)
    names = {family.name + ("_total" if family.type == "counter" else "") for family in metrics.registry.collect()}
    for name in names:
        assert not name.startswith("modelpress_") or f"`{name}`" in text, name
