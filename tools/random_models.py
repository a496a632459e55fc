#!/usr/bin/env python
"""Proves what the dependency analysis lets go of many random models (tests/support/random_nets.py).

    tools/random_models.py FIRST COUNT FILE [WIDEST]

appends a line for each seed to FILE and goes on behind the last one that is there. A refutation is an error of a rule.
With WIDEST completeness is measured in place of that, on as many models of tests/support/channel_search.py of 4 to
WIDEST channels: of those that can go, found by a search of all subsets of up to half of them, the share that may.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

from channel_search import Net, could_and_may
from random_nets import random_net, removal

from modelpress_runner.dependency.analyse import find_dependencies
from modelpress_runner.dependency.prove import prove_structure

IMAGE = torch.zeros(2, 3, 4, 4)


def tried(seed: int) -> dict[str, Any]:
    """What came of one model: proven, nothing (may go), refuted or unfollowed, with the reason."""
    model = random_net(seed)
    try:
        found = find_dependencies(model, IMAGE)
        unknown = [told for told in found.frozen.values() if "cannot be followed" in told or "not known" in told]
        if unknown:
            return {"seed": seed, "outcome": "unfollowed", "reason": unknown[0]}
        edits = removal(found, seed)
        if edits:
            prove_structure(model, edits, IMAGE, draws=1)
        return {"seed": seed, "outcome": "proven" if edits else "nothing"}
    except Exception as error:
        return {"seed": seed, "outcome": "refuted", "reason": f"{type(error).__name__}: {error}"}


def compared(seed: int, widest: int) -> dict[str, Any]:
    """What could go of one model and what may; refuted: something may go that cannot."""
    could, may = could_and_may(Net(seed, range(4, widest + 1, 2)))
    outcome = "complete" if could == may else "incomplete" if may < could else "refuted"
    line: dict[str, Any] = {"seed": seed, "outcome": outcome, "could": len(could), "may": len(may)}
    return line if outcome == "complete" else {**line, "reason": f"{sorted(could)} can go, {sorted(may)} may"}


def main() -> int:
    """Runs what is missing, and prints how many there are of each outcome."""
    first, count, path = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    widest = int(sys.argv[4]) if len(sys.argv) > 4 else None
    torch.set_num_threads(1)
    done = {json.loads(line)["seed"] for line in path.read_text().splitlines()} if path.exists() else set()
    with path.open("a") as file:
        for seed in range(first, first + count):
            if seed not in done:
                line = tried(seed) if widest is None else compared(seed, widest)
                file.write(json.dumps(line) + "\n")
                file.flush()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    outcomes = [line["outcome"] for line in lines if first <= line["seed"] < first + count]
    print({outcome: outcomes.count(outcome) for outcome in sorted(set(outcomes))})
    for line in lines:
        if "reason" in line:
            print(line)
    if widest is not None:
        may, could = (sum(line[key] for line in lines) for key in ("may", "could"))
        print(f"completeness: {may} of {could} ({may / could:.3f})")
    return int(any(outcome in ("refuted", "unfollowed") for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
