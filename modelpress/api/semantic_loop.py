"""What a training loop of the user's own rules out in a recipe, and what only such a loop can do."""

from __future__ import annotations

from collections.abc import Iterator

from .errors import Problem
from .v1alpha1 import DATA_DRIVEN, CompressionJobSpec, EntrySchedule, Prune


def loop_problems(spec: CompressionJobSpec) -> Iterator[Problem]:
    """Schedules by steps where modelpress runs the training, and what trains where a script does; paths below spec."""
    in_loop = spec.model.script is not None
    shrinking: list[int] = []
    for index, stage in enumerate(spec.stages):
        path = f"stages[{index}]"
        if in_loop and stage.finetune is not None:
            message = "the script trains in a loop of its own, so this stage has nothing to do"
            yield Problem(f"{path}.finetune", message, "remove it, and train as long in the script")
        if stage.prune is None:
            continue
        if stage.prune.speedup:
            shrinking.append(index)
        if in_loop:
            yield from _collecting(stage.prune, f"{path}.prune")
        for schedule, where in _schedules(stage.prune, f"{path}.prune"):
            yield from _in_loop(schedule, where) if in_loop else _outside(schedule, where)
        if in_loop and stage.prune.schedule.train is not None:
            message = "the script trains in a loop of its own, so there is nothing to train between rounds"
            yield Problem(f"{path}.prune.schedule.train", message, "remove it")
    if in_loop and len(shrinking) > 1:
        message = f"stages[{shrinking[0]}] shrinks the model at the end of the loop, and that happens once"
        fix = "write 'speedup: false', or put both into one stage"
        yield Problem(f"stages[{shrinking[1]}].prune.speedup", message, fix)


def _collecting(prune: Prune, path: str) -> Iterator[Problem]:
    """What scores by gradients cannot prune before the first step."""
    for index, entry in enumerate(prune.config_list):
        algorithm = entry.algorithm or prune.algorithm
        schedule, where = (
            (entry.schedule, f"{path}.configList[{index}].schedule")
            if entry.schedule is not None
            else (prune.schedule, f"{path}.schedule")
        )
        at_once = schedule.type == "one_shot" or schedule.initial_sparsity > 0
        if not entry.exclude and algorithm in DATA_DRIVEN and at_once and not schedule.start_step:
            message = f"{algorithm} scores by the gradients of training steps, and at step 0 there were none"
            yield Problem(f"{where}.startStep", message, "give the number of optimizer steps to wait for, such as 10")


def _schedules(prune: Prune, path: str) -> Iterator[tuple[EntrySchedule, str]]:
    yield prune.schedule, f"{path}.schedule"
    for index, entry in enumerate(prune.config_list):
        if entry.schedule is not None:
            yield entry.schedule, f"{path}.configList[{index}].schedule"


def _outside(schedule: EntrySchedule, path: str) -> Iterator[Problem]:
    for name, alias in (("start_step", "startStep"), ("end_step", "endStep"), ("frequency", "frequency")):
        if getattr(schedule, name) is not None:
            message = f"{alias} counts the steps of a training loop of your own, and here there is none"
            yield Problem(f"{path}.{alias}", message, "use rounds, or give the loop as model.script")


def _in_loop(schedule: EntrySchedule, path: str) -> Iterator[Problem]:
    start, end = schedule.start_step or 0, schedule.end_step
    if schedule.rounds != 1:
        message = "a training loop of your own has steps, not rounds"
        yield Problem(f"{path}.rounds", message, "remove it, and give startStep, endStep and frequency")
    if schedule.type == "one_shot":
        if end is not None and end != start:
            message = f"one_shot reaches its target at startStep ({start}), not at {end}"
            yield Problem(f"{path}.endStep", message, "remove it, or set type to linear or agp")
        if schedule.frequency is not None:
            yield Problem(f"{path}.frequency", "one_shot prunes once", "remove it, or set type to linear or agp")
    elif end is None:
        message = f"{schedule.type} needs the step at which the target is reached"
        yield Problem(f"{path}.endStep", message, "give the number of optimizer steps done by then")
    elif end <= start:
        message = f"{end} is not behind startStep ({start})"
        yield Problem(f"{path}.endStep", message, "raise it, or set type to one_shot")
