"""A sweep of 12 trials that share their first stages, with the stage cache and without it, in one run.

The recipe prunes and trains a digits CNN, then finetunes for as many epochs and quantizes to as many bits as the trial
says. Both sweeps go through the same grid, one trial at a time; their results must be equal to the last bit, and the
first stages must have run once.

Usage: python benchmarks/stage_cache.py [--epochs 6] [--width 16] [--output benchmarks/results/stage_cache.json]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import modelpress as mp

ROOT = Path(__file__).resolve().parents[1]
BITS = [8, 4]


def document(cache: bool, epochs: int, width: int) -> dict[str, Any]:
    """The sweep."""
    spec = {
        "model": {"entrypoint": "digits:create", "args": {"width": width}},
        "code": {"path": str(ROOT / "examples" / "digits")},
        "stages": [
            {"prune": {"algorithm": "taylor", "config_list": [{"op_types": ["Conv2d"], "sparsity": 0.5}]}},
            {"finetune": {"epochs": 4}},
            {"name": "last", "finetune": {"epochs": 1}},
            {
                "quantize": {
                    "algorithm": "weight_only",
                    "config_list": [{"op_types": ["Conv2d", "Linear"], "quant_bits": 8}],
                }
            },
        ],
        "target": {"format": "eager"},
    }
    return {
        "api_version": "modelpress.dev/v1alpha1",
        "kind": "CompressionSweep",
        "metadata": {"name": "cached" if cache else "plain"},
        "spec": {
            "template": {"spec": spec},
            "search_space": [
                {"name": "epochs", "paths": ["/stages/2/finetune/epochs"], "int": {"min": 1, "max": epochs}},
                {
                    "name": "bits",
                    "paths": ["/stages/3/quantize/configList/0/quantBits"],
                    "categorical": {"values": BITS},
                },
            ],
            "objectives": [{"metric": "default"}],
            "algorithm": {"name": "grid"},
            "max_trials": epochs * len(BITS),
            "stage_cache": cache,
        },
    }


def run(cache: bool, epochs: int, width: int, folder: str) -> dict[str, Any]:
    """Seconds, and for each trial what came out of it."""
    began, before = time.monotonic(), processor()
    result = mp.run(document(cache, epochs, width), store=f"{folder}/{cache}", parallel=1, progress=False)
    seconds, worked = time.monotonic() - began, processor() - before
    assert result.exit_code == 0, result
    found = []
    for path in sorted(Path(folder, str(cache)).glob("*/*/trials/*/*/metrics.json")):
        metrics = json.loads(path.read_text())
        found.append(
            {
                "score": metrics["compressed"]["default"],
                "parameters": metrics["compressed"]["parameters"],
                "cached": [bool(stage.get("cached")) for stage in metrics["stages"]],
                "executed": metrics["training"]["executed"],
                "weights": digest(path.parent / "model.safetensors"),
            }
        )
    left = list(Path(folder, str(cache)).glob("*/*/stages/*"))
    return {"seconds": seconds, "processor": worked, "trials": found, "left": len(left)}


def processor() -> float:
    """Processor seconds of this process and of those that it waited for: what else runs on the machine is not in it."""
    return sum(os.times()[:4])


def digest(path: Path) -> str:
    """sha256 of a file."""
    from modelpress.store.manifest import hash_file

    return hash_file(path)[0]


def main() -> None:
    """Runs both sweeps and writes what they took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=6, help="of the last training at most; each with 8 and 4 bits")
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "stage_cache.json")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        sides = {side: run(side == "cached", options.epochs, options.width, folder) for side in ("cached", "plain")}
    cached, plain = sides["cached"]["trials"], sides["plain"]["trials"]
    assert len(cached) == len(plain) == options.epochs * len(BITS)
    result = {
        "benchmark": "stage_cache",
        "trials": len(plain),
        "machine": {"python": platform.python_version(), "cpu": platform.machine(), "load": load},
        "seconds": {side: sides[side]["seconds"] for side in sides},
        "ratio": sides["cached"]["seconds"] / sides["plain"]["seconds"],
        "processorSeconds": {side: sides[side]["processor"] for side in sides},
        "processorRatio": sides["cached"]["processor"] / sides["plain"]["processor"],
        "optimizerSteps": {side: sum(trial["executed"] for trial in sides[side]["trials"]) for side in sides},
        "timesTheFirstStagesRan": sum(not trial["cached"][0] for trial in cached),
        "equalWeights": [one["weights"] for one in cached] == [one["weights"] for one in plain],
        "equalScores": [one["score"] for one in cached] == [one["score"] for one in plain],
        "statesLeft": sides["cached"]["left"],
    }
    print(json.dumps(result, indent=2))
    options.output.write_text(json.dumps(result, indent=2) + "\n")
    assert result["equalWeights"], "cached and uncached results differ"
    assert result["timesTheFirstStagesRan"] == 1, "the first stages ran more than once"


if __name__ == "__main__":
    main()
