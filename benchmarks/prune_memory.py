"""Peak memory of prune, shrink and finetune on a bfloat16 decoder of 400 M parameters, in multiples of its weights.

Each run is a process of its own, so that none inherits another's memory. Half of the channels inside of every MLP go,
by L1 norm; then three steps of SGD, which keeps nothing beside the weights; then the artifact is written. With `+depth`
behind the algorithm a fourth of the layers goes in the place of the training. Counted are
resident bytes of the process above what it had before the decoder was built, and the private bytes of its children;
on a GPU what torch has allocated there. The phases are the functions of mp.compress that tools/gpu_check/decoder.py
lists; "rest" is everything between them.

Usage: python benchmarks/prune_memory.py [--size 400M] [--device cpu] [--algorithms l1,level]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
# Multiples of the weights that pruning and finetuning, and pruning of width and depth, may take at most.
LIMIT, WITHOUT_TRAINING = 3.5, 3.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", default="400M")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--algorithms", default="l1,l1+depth", help="comma-separated")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    sys.path.insert(0, str(HERE.parent / "tools"))
    if options.one:
        from gpu_check import decoder

        done = decoder.run(options.size, options.device, options.one, export=True)
        print(json.dumps({**dataclasses.asdict(done), "table": decoder.table(done)}))
        return 0
    runs, good = {}, True
    for algorithm in options.algorithms.split(","):
        command = [sys.executable, __file__, "--size", options.size, "--device", options.device, "--one", algorithm]
        run = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        print(f"{algorithm}: " + "\n".join(run.pop("table")), flush=True)
        multiples = {name: round(peak / run["weights"], 3) for name, peak in run["peaks"].items()}
        most = max(value for name, value in multiples.items() if name != "export")
        limit = WITHOUT_TRAINING if algorithm.endswith("+depth") else LIMIT
        good = good and most <= limit
        print(f"  at most {most:.2f} x weights (limit {limit})", flush=True)
        runs[algorithm] = {**run, "multiples": multiples, "most": most, "limit": limit}
    report = {
        "benchmark": "prune_memory",
        "size": options.size,
        "device": options.device,
        "machine": {"python": platform.python_version(), "cpu": platform.machine()},
        "runs": runs,
    }
    target = HERE / "results" / "prune_memory.json"
    target.write_text(json.dumps(report, indent=2) + "\n")
    print(f"written to {target.relative_to(HERE.parent)}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
