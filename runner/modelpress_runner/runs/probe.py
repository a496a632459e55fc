"""A trial in short, for `modelpress preflight` and `modelpress validate --smoke`: run for real, and measured.

`main` takes REQUEST and RESULT, two JSON files. The request: spec, codePath, basePath, quick. The recipe runs in this
process and below a folder that goes when it ends: trainings have one epoch, or STEPS optimizer steps, and never more
than the recipe says. If its stages take no longer than `quick` seconds it runs again, with twice that. The result:
`runs`, for each {seconds, stages: [{name, steps, seconds}], baseline, compressed}; lengths, for each stage how many
epochs or optimizer steps its trainings have: {probe: one list for each run, recipe}; memoryBytes, the most that the
process had in main memory; processors; gpuMemoryBytes where there is a GPU; or error and exitCode.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

from modelpress.api.v1alpha1 import CompressionJobSpec
from modelpress.plainjson import json_of
from modelpress.request import RunRequest
from modelpress.store import layout, open_store
from modelpress_runner.process.progress import silent
from modelpress_runner.process.stopping import StopFlag
from modelpress_runner.runs.answering import answer

STEPS = 8  # optimizer steps that stand for one epoch where a recipe counts steps
_EPOCHS, _MAX_STEPS = "epochs", "maxSteps"
# A prune block in a training counts the training's own steps, so that one keeps its length.
_COUNTING = ("startStep", "endStep")


def main(arguments: Sequence[str]) -> int:
    """Runs; the exit code."""
    return answer(arguments, _probe)


def shortened(stages: Sequence[Mapping[str, Any]], length: int) -> list[dict[str, Any]]:
    """Stages as plain data whose trainings have `length` epochs, or STEPS times as many steps, at most."""
    return [dict(_shortened(stage, length)) for stage in stages]


def training_lengths(stages: Sequence[Mapping[str, Any]]) -> list[int]:
    """For each stage, the sum of the epochs or of the optimizer steps that its blocks name; 0: it does not train."""
    return [_length(stage) for stage in stages]


def _shortened(block: Any, length: int) -> Any:
    if isinstance(block, Mapping):
        if _counts(block):
            return block
        cut = {_EPOCHS: length, _MAX_STEPS: length * STEPS}
        return {
            key: min(value, cut[key]) if key in cut and isinstance(value, int) else _shortened(value, length)
            for key, value in block.items()
        }
    if isinstance(block, Sequence) and not isinstance(block, str):
        return [_shortened(item, length) for item in block]
    return block


def _counts(block: Mapping[str, Any]) -> bool:
    """Whether parts of a training go by its optimizer steps."""
    parts = block.get("of")
    return isinstance(parts, list) and any(name in json.dumps(parts) for name in _COUNTING)


def _length(block: Any) -> int:
    if isinstance(block, Mapping):
        own = sum(value for key, value in block.items() if key in (_EPOCHS, _MAX_STEPS) and isinstance(value, int))
        return own + sum(_length(value) for value in block.values())
    if isinstance(block, Sequence) and not isinstance(block, str):
        return sum(map(_length, block))
    return 0


def _probe(request: Mapping[str, Any]) -> dict[str, Any]:
    from modelpress_runner.runs import trial

    spec: dict[str, Any] = request["spec"]
    runs: list[dict[str, Any]] = []
    probed: list[list[int]] = []
    with tempfile.TemporaryDirectory(prefix="modelpress-probe-") as folder:
        store = open_store(folder)
        for attempt in (1, 2):
            if attempt == 2 and not _again(runs[0], probed[0], spec, float(request["quick"])):
                break
            stages = shortened(spec.get("stages") or [], attempt)
            probed.append(training_lengths(stages))
            document = {**spec, "stages": stages, "store": {"uri": folder}}
            short = RunRequest(
                purpose="trial",
                namespace="default",
                name="probe",
                uid="probe",
                run_uid=f"probe{attempt}",
                root="probe",
                prefix=f"probe/trials/{attempt:05d}",
                spec=CompressionJobSpec.model_validate(document),
                code_path=request.get("codePath"),
                base_path=request.get("basePath"),
            )
            began = time.perf_counter()
            result = trial.run(short, store, silent, StopFlag())
            runs.append(
                {
                    "seconds": time.perf_counter() - began,
                    "stages": _stages(store.get_bytes(_metrics(store, short.prefix))),
                    "baseline": result.baseline,
                    "compressed": result.compressed,
                }
            )
    lengths = {"probe": probed, "recipe": training_lengths(spec.get("stages") or [])}
    return {"runs": runs, "lengths": lengths, **_memory()}


def _again(run: Mapping[str, Any], probed: Sequence[int], spec: Mapping[str, Any], quick: float) -> bool:
    """Whether longer trainings are there to be tried, and short enough for it."""
    more = training_lengths(spec.get("stages") or []) != list(probed)
    return more and sum(float(stage["seconds"]) for stage in run["stages"]) <= quick


def _metrics(store: Any, prefix: str) -> str:
    return next(str(info.path) for info in store.list(prefix) if info.path.endswith(f"/{layout.METRICS}"))


def _stages(data: bytes) -> list[dict[str, Any]]:
    kept = ("name", "steps", "seconds")
    return [{key: stage.get(key) for key in kept} for stage in json_of(data)["stages"]]


def _memory() -> dict[str, int]:
    import torch

    unit = 1 if sys.platform == "darwin" else 1024
    found = {
        "memoryBytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit,
        "processors": os.cpu_count() or 1,
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        found["gpuMemoryBytes"] = torch.cuda.max_memory_reserved()
    return found
