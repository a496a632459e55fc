"""What a trial will take, worked out from short runs of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

GIB = 2**30  # bytes


@dataclass(frozen=True)
class Estimate:
    """What a trial takes.

    Attributes:
        seconds: of a trial, from its process' start to its end; of a job with the building of its dense model.
        dense_seconds: what building the dense model takes of that, at most; a sweep does it once.
        memory: bytes of main memory at the peak.
        gpu_memory: bytes of one GPU at the peak; None: none was used.
        stages: (name, seconds) of each stage.
        baseline: metrics of the dense model.
        compressed: metrics of the model that comes out: exact where training does not change them.
        basis: what it was worked out from, as sentences.
    """

    seconds: float
    dense_seconds: float
    memory: int
    gpu_memory: int | None
    stages: tuple[tuple[str, float], ...]
    baseline: Mapping[str, float]
    compressed: Mapping[str, float]
    basis: tuple[str, ...]


def estimate(found: Mapping[str, Any], wall: float) -> Estimate:
    """The estimate from what modelpress_runner.runs.probe has measured.

    Where the recipe ran with two lengths, the time of a stage is a line through both; with one all of its time is taken
    to grow with its training.

    Args:
        found: its result.
        wall: seconds of the whole process.
    """
    runs: Sequence[Mapping[str, Any]] = found["runs"]
    last, wanted, probed = runs[-1], found["lengths"]["recipe"], found["lengths"]["probe"]
    stages: list[tuple[str, float]] = []
    more = 0.0
    for place, stage in enumerate(last["stages"]):
        seconds, length = float(stage["seconds"]), probed[-1][place] if place < len(wanted) else 0
        left = (wanted[place] if place < len(wanted) else 0) - length
        if left > 0:
            unit = seconds / length
            if len(runs) > 1 and length > probed[0][place]:
                grown = seconds - float(runs[0]["stages"][place]["seconds"])
                unit = min(max(grown / (length - probed[0][place]), 0.25 * unit), unit)
            more += unit * left
            seconds += unit * left
        stages.append((str(stage["name"]), seconds))
    # The first run builds the dense model; the others find it, as trials of a sweep do.
    starting = max(0.0, wall - sum(float(run["seconds"]) for run in runs))
    first = float(runs[0]["seconds"])
    trained = sum(float(stage["seconds"]) for stage in runs[0]["stages"])
    dense = first - trained
    if len(runs) > 1:
        dense -= float(last["seconds"]) - sum(float(stage["seconds"]) for stage in last["stages"])
    dense = max(0.0, dense)
    return Estimate(
        seconds=starting + (dense if len(runs) > 1 else 0.0) + float(last["seconds"]) + more,
        dense_seconds=dense,
        memory=int(found["memoryBytes"]),
        gpu_memory=found.get("gpuMemoryBytes"),
        stages=tuple(stages),
        baseline=last["baseline"],
        compressed=last["compressed"],
        basis=_basis(runs, probed, wanted, found),
    )


def _basis(
    runs: Sequence[Mapping[str, Any]], probed: Sequence[Sequence[int]], wanted: Sequence[int], found: Mapping[str, Any]
) -> tuple[str, ...]:
    times = "once" if len(runs) == 1 else "twice"
    said = [f"the recipe ran {times} in short, {sum(run['seconds'] for run in runs):.0f} s in all, on this machine"]
    names = [stage["name"] for stage in runs[-1]["stages"]]
    for place, length in enumerate(wanted):
        if length > probed[-1][place]:
            tried = " and ".join(str(lengths[place]) for lengths in probed)
            said.append(f"{names[place]} trained for {tried} of {length}; the rest is taken to go on at that pace")
    said.append(
        f"memory is the peak of these runs, with {found['processors']} processors; sizes are those of the model"
    )
    return tuple(said)
