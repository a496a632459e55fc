"""What a budget costs and whether it is met: a second budget beside the first, and a latency in another process.

Counted: the encoder of examples/minilm, its feed-forward layers scored by mean_activation over 128 docstrings of
Python's standard library; timed is solving `macs` at .8 with nothing known, then at .75 with the tables of the first
(analysis, scores, table of costs, models measured on the way), and what both are above their bound.

Timed: a convolutional network, compiled, asked for .6 of its dense latency on one thread. The artefact's model and the
dense one are timed again in turn in another process, several times; reported is the median ratio with its extremes.
Rounded: the same network asked for half of its MACs with `roundTo: auto`, timed alike; reported is besides the share of
the latency that is left, divided by that of the MACs.

Usage: python benchmarks/budget.py [--again 5] [--parts counted timed rounded]
Parts that are not run keep the figures that the file has.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from reconstruct import EXAMPLE, HERE, docstrings
from torch import nn

import modelpress as mp
from modelpress.api.load import load_dict
from modelpress.api.v1alpha1 import CompressionJob, Prune
from modelpress.store import open_store
from modelpress_runner.huggingface.entry import PretrainedModel
from modelpress_runner.inputs.gather import gathered
from modelpress_runner.measure.measuring import Measuring
from modelpress_runner.methods.context import StageContext
from modelpress_runner.runs.tables import StoreTables
from modelpress_runner.stages.prune import PruneStage
from modelpress_runner.subject.subject import Subject

RATIO = 0.6


def network() -> tuple[nn.Module, torch.Tensor]:
    """Five convolutions of 96 channels with norms, and an image of 32 x 32 for it: they fit into a core's own cache."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for width in (3, 96, 96, 96, 96):
        layers += [nn.Conv2d(width, 96, 3, padding=1), nn.BatchNorm2d(96), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(96, 10)).eval()
    return model, torch.randn(1, 3, 32, 32)


def counted(folder: Path, again: int) -> dict[str, Any]:
    """Seconds of a first and of a second budget, and the ratios that came of them."""
    job = yaml.safe_load((EXAMPLE / "job.yaml").read_text())
    job["spec"]["data"]["calibration"] = {"uri": "calibration.jsonl"}
    subprocess.run([sys.executable, EXAMPLE / "prepare.py"], check=True, capture_output=True)
    shutil.copytree(EXAMPLE, folder, dirs_exist_ok=True)
    lines = [json.dumps({"text": text}) + "\n" for text in docstrings(128)]
    (folder / "calibration.jsonl").write_text("".join(lines))
    loaded = load_dict(job)
    assert isinstance(loaded, CompressionJob)
    spec = loaded.spec
    out: dict[str, Any] = {}
    with gathered(spec, str(folder)) as inputs:
        assert spec.model.hugging_face is not None
        subject = PretrainedModel(spec.model.hugging_face, inputs).subject(spec.model, seed=0, train=False)
        measures = Measuring(spec, subject, timed=False).measures(StoreTables(open_store(str(folder)), "dense/tables"))
        for name, ratio in (("first", 0.8), ("second", 0.75), ("again", 0.8)):
            context = StageContext(subject.model, subject.evaluator, subject.dummy_input, 0)
            context.calibration_data, context.measures = subject.calibration_data, measures
            lines = []
            context.report = lines.append
            entry = {"opNamesRe": [r"encoder\.layer\.\d+\.intermediate\.dense"]}
            budget = {"metric": "macs", "maxRatio": ratio}
            block = {"algorithm": "mean_activation", "budget": budget, "configList": [entry]}
            stage = PruneStage(Prune.model_validate(block), 0, "prune")
            cpu, wall = time.process_time(), time.perf_counter()
            stage.solve(context)
            out[name] = {"seconds": time.perf_counter() - wall, "cpu": time.process_time() - cpu, "said": lines[-1]}
    out["share"] = out["second"]["cpu"] / out["first"]["cpu"]
    return out


def target(model: nn.Module, x: torch.Tensor) -> Measuring:
    """Compiled, one thread."""
    spec = {"target": {"format": "compiled"}, "benchmark": {"warmup": 5, "iterations": 200}}
    plain = {"model": {"entrypoint": "a:b"}, "stages": [{"finetune": {"epochs": 1}}], **spec}
    meta = {"apiVersion": "modelpress.dev/v1alpha1", "kind": "CompressionJob", "metadata": {"name": "timing"}}
    job = load_dict({**meta, "spec": plain})
    assert isinstance(job, CompressionJob)
    return Measuring(job.spec, Subject(model, None, x), timed=True)


def timed(folder: Path, again: int) -> dict[str, Any]:
    """The ratio that the job found, and those of other processes."""
    return {"asked": RATIO, **compressed(folder, again, {"metric": "latencyMs", "maxRatio": RATIO}, "8")}


def rounded(folder: Path, again: int) -> dict[str, Any]:
    """Shares of latency and of MACs, and one to the other."""
    found = compressed(folder, again, {"metric": "macs", "maxRatio": 0.5}, "auto")
    return {"asked": 0.5, **found, "latencyToMacs": found["median"] / found["macs"]}


def compressed(folder: Path, again: int, budget: dict[str, Any], multiple: str) -> dict[str, Any]:
    """A job with this budget: the ratios that it found, and those of other processes."""
    model, x = network()
    stage = {"budget": budget, "configList": [{"opTypes": ["Conv2d"]}]}
    begin = time.perf_counter()
    result = mp.compress(
        copy.deepcopy(model),
        [{"prune": {**stage, "roundTo": multiple}}],
        None,
        x,
        target={"format": "compiled"},
        benchmark={"warmup": 5, "iterations": 200},
    )
    seconds = time.perf_counter() - begin
    uri = result.save(folder / "small")
    command = [sys.executable, __file__, "--time", uri]
    ratios = [
        json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        for _ in range(again)
    ]
    before, after = result.metrics["baseline"], result.metrics["compressed"]
    return {
        "solved": [note for note in result.notes if note.startswith("budget")],
        "inTheJob": after["latencyMs"] / before["latencyMs"],
        "macs": after["macs"] / before["macs"],
        "again": sorted(ratios),
        "median": statistics.median(ratios),
        "seconds": seconds,
    }


def time_again(uri: str) -> None:
    """Prints the ratio of latencies of the artefact's model and the dense one."""
    model, x = network()
    small = mp.load(uri, into=network()[0])
    before, after = target(model, x).measures().of("latencyMs", [model, small.eval()])
    print(after / before)


PARTS = {"counted": counted, "timed": timed, "rounded": rounded}


def main() -> None:
    """Runs them and writes benchmarks/results/budget.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--again", type=int, default=5)
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--time", metavar="URI", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.time:
        time_again(arguments.time)
        return
    file = HERE / "results" / "budget.json"
    result: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    result["machine"] = {"cores": os.cpu_count(), "python": platform.python_version(), "load": os.getloadavg()[0]}
    for name in arguments.parts:
        with tempfile.TemporaryDirectory() as folder:
            result[name] = PARTS[name](Path(folder), arguments.again)
        print(json.dumps({name: result[name]}, indent=2), flush=True)
        file.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
