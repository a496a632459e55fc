"""`modelpress analyze` of a recipe whose code is imported in a process of its own."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

CODE = """
import torch
from torch import nn
import modelpress as mp

def create():
    torch.manual_seed(0)
    print("the user's code says something")
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(16, 2))
    example = torch.ones(1, 1, 6, 6)
    return mp.Subject(model, lambda model: float(model(example).abs().sum()), example)
"""


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """A recipe beside its code."""
    (tmp_path / "small.py").write_text(CODE)
    spec = {
        "model": {"entrypoint": "small:create"},
        "code": {"path": "."},
        "stages": [{"prune": {"algorithm": "l2", "configList": [{"opTypes": ["Conv2d"], "sparsity": 0.5}]}}],
    }
    document = {
        "apiVersion": "modelpress.dev/v1alpha1",
        "kind": "CompressionJob",
        "metadata": {"name": "small"},
        "spec": spec,
    }
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def analyze(*arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "modelpress.cli", "analyze", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    return done


def test_layers_as_a_table_and_as_csv(job: Path, tmp_path: Path) -> None:
    done = analyze("layers", str(job), "--csv", str(tmp_path / "layers.csv"))
    assert "the user's code" in done.stderr
    assert "the user's code" not in done.stdout
    with (tmp_path / "layers.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["name"], row["parameters"], row["macs"], row["output"]) for row in rows] == [
        ("0", "40", "576", "1 x 4 x 4 x 4"),
        ("2", "148", "576", "1 x 4 x 2 x 2"),
        ("4", "34", "32", "1 x 2"),
    ]
    assert "total" in done.stdout
    assert "1.18k" in done.stdout  # MACs


def test_sensitivity_writes_a_search_space_that_is_valid(job: Path, tmp_path: Path) -> None:
    bounds = tmp_path / "space.yaml"
    given = ("--sparsity", "0.25", "--sparsity", "0.5", "--bounds", str(bounds), "--tolerance", "1")
    done = analyze("sensitivity", str(job), *given)
    assert "0 at 0.25: " in done.stderr
    found = yaml.safe_load(bounds.read_text())
    assert [entry["opNames"] for entry in found["stages"][0]["prune"]["configList"]] == [["0"], ["2"]]
    document = yaml.safe_load(job.read_text())
    sweep = {
        **document,
        "kind": "CompressionSweep",
        "spec": {
            "template": {"spec": {**document["spec"], "stages": found["stages"]}},
            "searchSpace": found["searchSpace"],
            "objectives": [{"metric": "default"}],
            "maxTrials": 4,
        },
    }
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump(sweep))
    validated = subprocess.run([sys.executable, "-m", "modelpress.cli", "validate", str(path)], capture_output=True)
    assert validated.returncode == 0, validated.stdout


def test_what_is_wrong_is_said_in_a_sentence(job: Path) -> None:
    document = yaml.safe_load(job.read_text())
    document["spec"]["model"]["entrypoint"] = "small:missing"
    job.write_text(yaml.safe_dump(document))
    done = analyze("dependency", str(job), code=2)
    assert "spec.model.entrypoint" in done.stderr
    assert "Traceback" not in done.stderr
    assert (
        "--sparsity and --bounds are of sensitivity" in analyze("layers", str(job), "--sparsity", "0.5", code=2).stderr
    )
