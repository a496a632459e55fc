"""How near `modelpress preflight` comes to what a run then takes: time and peak memory of four recipes.

For each recipe of the examples: the estimate, then the run itself in an empty folder; its time is that of the runner's
process, from the status, and its memory the peak of all processes of the run. A factor of 1 is exact.

Usage: python benchmarks/preflight.py [--output FILE] [FILE...]
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
EXAMPLES = HERE.parent / "examples"
RECIPES = (
    "digits/job.yaml",
    "lightning/job.yaml",
    "minilm/job.yaml",  # after examples/minilm/prepare.py
    "recipes/structured-distilled-int8.yaml",
)


def called(*words: str) -> str:
    """Standard output of a command of ours."""
    done = subprocess.run((sys.executable, "-m", "modelpress.cli", *words), stdout=subprocess.PIPE, text=True)
    if done.returncode not in (0, 3):  # 3: the result misses a constraint, which is no matter here
        sys.exit(f"modelpress {' '.join(words)} exits with {done.returncode}")
    return done.stdout


def measured(file: Path) -> dict[str, Any]:
    """Estimate and run of a recipe; memory is the run's own, so call it in a process of its own."""
    told = json.loads(called("preflight", "--json", str(file)))
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    with tempfile.TemporaryDirectory() as store:
        status = json.loads(called("run", str(file), "--store", store, "--no-progress", "-o", "json"))["objects"][0][
            "status"
        ]
    after = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    attempt = status["attempts"][-1]
    begin, end = (dt.datetime.fromisoformat(attempt[key]) for key in ("startTime", "finishTime"))
    seconds, memory = (end - begin).total_seconds(), after * 1024
    return {
        "seconds": {"told": round(told["seconds"], 1), "measured": round(seconds, 1)},
        "seconds factor": round(told["seconds"] / seconds, 2),
        "memory": {"told": told["memory"], "measured": memory},
        # The estimate's own process is a child, too: the peak tells a run apart only where it is the greater one.
        "memory factor": round(told["memory"] / memory, 2),
        "memory at least that of the estimate": before >= after,
        "size": {
            "told": told["compressed"].get("sizeBytes"),
            "measured": status["metrics"]["compressed"].get("sizeBytes"),
        },
    }


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=HERE / "results" / "preflight.json")
    parser.add_argument("--one", action="store_true", help="print one file's figures as JSON")
    parser.add_argument("files", nargs="*", type=Path, default=[EXAMPLES / name for name in RECIPES])
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measured(options.files[0])))
        return
    found = json.loads(options.output.read_text()) if options.output.exists() else {}  # of the files not named, kept
    for file in options.files:
        name = "/".join(file.resolve().parts[-2:])
        done = subprocess.run(
            (sys.executable, __file__, "--one", str(file)), stdout=subprocess.PIPE, text=True, check=True
        )
        found[name] = json.loads(done.stdout)
        print(name, json.dumps(found[name]), flush=True)
    options.output.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
