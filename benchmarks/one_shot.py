"""Pruning, distillation and quantization-aware training of a digits CNN: in one training, and one behind the other.

The recipe is examples/recipes/sparse-qat-distilled.yaml, for ONNX Runtime as the target, so that eight bits are what is
computed with. In sequence there are a pruning with a third of the epochs behind it, a distillation and a training with
eight bits, each a third. Reported of both: the score beside the dense model's, the sparsity asked and found in what was
pruned, bytes, and what each stage took.

Usage: python benchmarks/one_shot.py [--output benchmarks/results/one_shot.json]
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml
from jobs import run_job

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "examples" / "recipes" / "sparse-qat-distilled.yaml"
MOST = 0.01  # of the score that may be lost


def documents() -> dict[str, dict[str, Any]]:
    """The recipe as it is but for its target, and with its stages in sequence."""
    whole = yaml.safe_load(RECIPE.read_text())
    whole["spec"]["code"] = {"path": str(ROOT / "examples" / "digits")}
    whole["spec"]["target"] = {"format": "onnxruntime"}
    apart = copy.deepcopy(whole)
    (together,) = (stage["together"] for stage in whole["spec"]["stages"])
    prune, distill, quantize = copy.deepcopy(together["of"])
    epochs = together["epochs"] // 3
    del prune["prune"]["schedule"], quantize["quantize"]["startStep"]
    distill["distill"]["epochs"] = quantize["quantize"]["epochs"] = epochs
    apart["spec"]["stages"] = [prune, {"finetune": {"epochs": epochs}}, distill, quantize]
    return {"together": whole, "sequence": apart}


def run(document: dict[str, Any], name: str, folder: Path) -> dict[str, Any]:
    """One job as `modelpress run` has it: its metrics."""
    document["metadata"]["name"] = name
    found = run_job(document, folder, name)
    print(found.pop("printed"))
    return found


def main() -> int:
    """Runs both, prints and writes what came out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "one_shot.json")
    options = parser.parse_args()
    report: dict[str, Any] = {
        "benchmark": "one_shot",
        "machine": {"python": platform.python_version(), "cpu": platform.machine(), "load": os.getloadavg()[0]},
        "most": MOST,
        "ways": {},
    }
    good = True
    with tempfile.TemporaryDirectory() as name:
        for way, document in documents().items():
            metrics = run(document, way, Path(name))
            dense, score = metrics["baseline"]["default"], metrics["compressed"]["default"]
            good &= dense - score <= MOST
            report["ways"][way] = metrics
            print(f"{way}: {score:.4f}, dense {dense:.4f}, sparsity {metrics['compressed']['sparsity']:.4f}")
    options.output.write_text(json.dumps(report, indent=2) + "\n")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
