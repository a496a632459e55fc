"""Runs the demo's sweep for many seeds and checks each: no failed trial, no recipe twice, a best model.

Usage: demo_seeds.py [--seeds N] [--first N] [--trials N] [--width N] [--epochs N] [--store FOLDER]

With --width 8 --epochs 1 a seed takes a few seconds on one core; without, it is `make demo` but for its last check.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections import Counter
from pathlib import Path

import yaml

import modelpress as mp

EXAMPLE = Path(__file__).parents[1] / "examples" / "digits"


def main() -> int:
    """The exit code: 1 if a seed fails its check, 128 + signal where one ended the row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the first one")
    parser.add_argument("--trials", type=int, help="of each; default: the example's")
    parser.add_argument("--width", type=int, help="channels of the example's model")
    parser.add_argument("--epochs", type=int, help="of its finetuning")
    parser.add_argument("--store", type=Path, default=Path("modelpress-runs/seeds"), help="emptied before each seed")
    options = parser.parse_args()
    wrong = 0
    for seed in range(options.first, options.first + options.seeds):
        began = time.monotonic()
        shutil.rmtree(options.store, ignore_errors=True)
        result = mp.run(_document(seed, options), store=str(options.store), parallel=2, progress=False)
        if result.exit_code > 128:  # a signal
            return result.exit_code
        phases = Counter(str(trial.status.phase) for trial in result.trials)
        recipes = {json.dumps(trial.spec.to_dict(), sort_keys=True) for trial in result.trials}
        best = result.best.number if result.best is not None else None
        good = phases == {"Succeeded": len(result.trials)} and len(recipes) == len(result.trials) and bool(recipes)
        wrong += not good
        seconds = time.monotonic() - began
        told = f"{dict(phases)}, {len(recipes)} recipes of {len(result.trials)} trials, best {best}, {seconds:.0f} s"
        print(f"seed {seed}: {'good' if good else 'WRONG'}: {told}", flush=True)
        for trial in result.trials:
            if trial.status.phase != "Succeeded":
                print(f"  {trial.metadata.name}: {trial.status.attempts[-1].message}", flush=True)
    return 1 if wrong else 0


def _document(seed: int, options: argparse.Namespace) -> dict[str, object]:
    document: dict[str, object] = yaml.safe_load((EXAMPLE / "sweep.yaml").read_text(encoding="utf-8"))
    spec = document["spec"]
    assert isinstance(spec, dict)
    spec["algorithm"]["seed"] = seed
    spec["maxTrials"] = options.trials or spec["maxTrials"]
    recipe = spec["template"]["spec"]
    recipe["seed"] = seed
    recipe["code"]["path"] = str(EXAMPLE)
    if options.width:
        recipe["model"]["args"]["width"] = options.width
    if options.epochs:
        recipe["stages"][1]["finetune"]["epochs"] = options.epochs
    return document


if __name__ == "__main__":
    sys.exit(main())
