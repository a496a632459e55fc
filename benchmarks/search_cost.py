"""What the search itself costs the operator in a sweep of 1,000 trials: processor seconds and memory, for each sampler.

Fifty trials run at a time, as History tells the search; results are looked up (search_tables.py, over numbers alone, so
that no recipe comes twice). Each sampler has a process of its own; memory is its peak, the finished trials included.
The slowest suggestion is what a sweep waits for at most.

Usage: python benchmarks/search_cost.py [--trials 1000] [--output FILE] [NAME...]
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from search_quality import NUMBERS, finished, sweep
from search_tables import HERE, recorded

from modelpress.api.v1alpha1 import CompressionJob, CompressionSweepSpec
from modelpress.search.strategy import SearchStrategy
from modelpress.trials import History

SAMPLERS = ("random", "qmc", "tpe", "nsga2", "cmaes")
RUNNING = 50


def measured(name: str, trials: int) -> dict[str, Any]:
    """The search of one sweep, in this process."""
    document = sweep("random", 0, ("merit",)).to_dict()
    document |= {"searchSpace": NUMBERS, "algorithm": {"name": name, "seed": 0}, "constraints": None}
    document |= {"objectives": [{"metric": "merit", "goal": "maximize"}], "maxTrials": trials}
    spec = CompressionSweepSpec.model_validate(document)
    table, strategy, jobs = recorded("digits_table"), SearchStrategy(spec), dict[int, CompressionJob]()
    took: list[float] = []
    for number in range(trials):
        done = max(0, number - RUNNING + 1)
        before = time.process_time()
        suggestion = strategy.suggest(number, History(tuple(range(done)), tuple(range(done, number))), jobs)
        took.append(time.process_time() - before)
        point = dict(suggestion.parameters)
        jobs[number] = finished(
            table, number, suggestion, table.between(point["sparsity"], point["lr"], point["epochs"])
        )
    return {
        "trials": len({json.dumps(job.spec.to_dict(), sort_keys=True) for job in jobs.values()}),
        "seconds": round(sum(took), 2),
        "slowest": round(max(took), 3),
        "last hundred, mean": round(sum(took[-100:]) / 100, 4),
        "rssMiB": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
    }


def main() -> None:
    """Measures each sampler in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--output", type=Path, default=HERE / "results" / "search_cost.json")
    parser.add_argument("--here", action="store_true", help="measure the one that is named, and print it")
    parser.add_argument("names", nargs="*", default=SAMPLERS)
    options = parser.parse_args()
    if options.here:
        print(json.dumps(measured(options.names[0], options.trials)))
        return
    found: dict[str, Any] = json.loads(options.output.read_text()) if options.output.exists() else {}
    for name in options.names:
        command = (sys.executable, __file__, "--here", "--trials", str(options.trials), name)
        found[name] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
        print(name, found[name], flush=True)
        options.output.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
