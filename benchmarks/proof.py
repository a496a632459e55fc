"""Whether the proof of a shrink tells right from wrong, and what it costs.

Deliberately wrong cuts (a wrong channel, mixed heads, a missed consumer, a scale that hangs on a width, a norm's
statistics, ...) and right ones, on the nets of modelpress_runner.testing.cuts: every wrong one must be refuted and
every right one proven. Reported beside it: the time of a proof in forward passes of the model.

Usage: python benchmarks/proof.py [--cuts 300]
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from modelpress_runner.dependency.prove import prove_structure
from modelpress_runner.errors import RunnerError
from modelpress_runner.runtime.graph import call
from modelpress_runner.testing.cuts import HANGING, NETS, right_cut, wrong_cut

RESULTS = Path(__file__).resolve().parent / "results" / "proof.json"


def timed(work: Any, times: int) -> float:
    """The median of `times` calls, in milliseconds."""
    samples = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        samples.append((time.perf_counter() - start) * 1e3)
    return statistics.median(samples)


def main() -> None:
    """Tries as many cuts of each sort as asked for, in turn on all nets."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cuts", type=int, default=300)
    cuts = parser.parse_args().cuts
    torch.set_num_threads(1)
    rng = random.Random(0)
    right_nets = [(name, net) for name, net in NETS.items() if any(group.axes for group in net.groups)]
    wrong_nets = [*NETS.items(), *HANGING.items()]
    refused: list[str] = []
    for number in range(cuts):
        name, net = right_nets[number % len(right_nets)]
        torch.manual_seed(number)
        try:
            prove_structure(net.build(), right_cut(net, rng), net.inputs())
        except RunnerError as error:
            refused.append(f"{name}: {error}")
    missed: list[str] = []
    kinds: Counter[str] = Counter()
    for number in range(cuts):
        name, net = wrong_nets[number % len(wrong_nets)]
        torch.manual_seed(number)
        kind, cut = wrong_cut(net, rng)
        kinds[kind] += 1
        try:
            prove_structure(net.build(), cut, net.inputs())
        except RunnerError:
            continue
        missed.append(f"{name}: {kind}")
    costs = {}
    for name, net in right_nets:
        torch.manual_seed(0)
        model, inputs, cut = net.build().eval(), net.inputs(), right_cut(net, rng)
        with torch.no_grad():
            forward = timed(lambda model=model, inputs=inputs: call(model, inputs), 20)
        proof = timed(lambda model=model, cut=cut, inputs=inputs: prove_structure(model, cut, inputs), 3)
        costs[name] = {"forwardMs": round(forward, 3), "proofMs": round(proof, 1)}
    result = {
        "machine": {"cpu": platform.processor() or platform.machine(), "torch": torch.__version__, "threads": 1},
        "nets": len(NETS) + len(HANGING),
        "right": {"cuts": cuts, "proven": cuts - len(refused), "refused": refused},
        "wrong": {"cuts": cuts, "refuted": cuts - len(missed), "missed": missed, "kinds": dict(kinds.most_common())},
        "cost": costs,
    }
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))
    if refused or missed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
