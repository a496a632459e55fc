"""A package that is installed adds a kind of stage by one file; recipes use it as they use the shipped ones."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

CODE = Path(__file__).parent / "code"


def job(path: Path, factor: float) -> str:
    document: dict[str, Any] = {
        "apiVersion": "modelpress.dev/v1alpha1",
        "kind": "CompressionJob",
        "metadata": {"name": "scaled"},
        "spec": {
            "model": {"entrypoint": "summing:create"},
            "code": {"path": str(CODE)},
            "stages": [{"scale": {"factor": factor}}],
            "benchmark": {"warmup": 0, "iterations": 1},
        },
    }
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    return str(path)


def test_a_job_runs_a_stage_of_a_plugin(modelpress: Callable[..., Any], tmp_path: Path) -> None:
    """Three weights of 1, times 4, sum up to 12; record and card tell the stage as its file says."""
    done = modelpress("run", job(tmp_path / "job.yaml", 4.0), "--no-progress", plugin=CODE)
    assert done.returncode == 0, done.stderr
    manifest = json.loads(next(tmp_path.glob("modelpress-runs/default/scaled-*/manifest.json")).read_text())
    assert manifest["metrics"]["compressed"]["default"] == 12.0
    (stage,) = manifest["metrics"]["stages"]
    assert (stage["name"], stage["method"], stage["factor"], stage["score"]) == (
        "0-scale",
        "scale",
        4.0,
        {"default": 12},
    )
    card = next(tmp_path.glob("modelpress-runs/default/scaled-*/*/README.md")).read_text()
    assert "A PyTorch model compressed by modelpress: scaled by 4.0." in card


def test_validation_knows_its_rules(modelpress: Callable[..., Any], tmp_path: Path) -> None:
    """What its rules and its type refuse is told with the place in the file; its CRD has the block."""
    done = modelpress("validate", job(tmp_path / "job.yaml", 0.0), plugin=CODE)
    assert done.returncode == 2
    assert (
        "spec.stages[0].scale.factor: 0 leaves nothing of the model; give another number" in done.stderr + done.stdout
    )
    assert "Traceback" not in done.stderr
    assert modelpress("crd", "--output", str(tmp_path), plugin=CODE).returncode == 0
    crd = yaml.safe_load((tmp_path / "modelpress.dev_compressionjobs.yaml").read_text())
    schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["stages"]
    assert schema["items"]["properties"]["scale"]["properties"]["factor"]["type"] == "number"


def test_without_the_plugin_the_block_is_unknown(modelpress: Callable[..., Any], tmp_path: Path) -> None:
    """The same file is refused where the package is not installed."""
    done = modelpress("validate", job(tmp_path / "job.yaml", 4.0), plugin=tmp_path)
    assert done.returncode == 2
    assert "scale" in done.stderr + done.stdout


def test_a_plugin_that_cannot_be_loaded_is_named(modelpress: Callable[..., Any], tmp_path: Path) -> None:
    """One line says which package and what to do; no traceback."""
    shutil.copytree(CODE / "scaling_plugin-1.0.dist-info", tmp_path / "scaling_plugin-1.0.dist-info")
    (tmp_path / "scaling_plugin.py").write_text("import nowhere_to_be_found\n")
    done = modelpress("validate", job(tmp_path / "job.yaml", 4.0), plugin=tmp_path)
    assert done.returncode == 2
    assert "the plug-in 'scale' of scaling-plugin (scaling_plugin) cannot be loaded: ModuleNotFoundError" in done.stdout
    assert "mend or uninstall it" in done.stdout
    assert "Traceback" not in done.stderr
