"""What is wrong with a recipe beyond its schema, found without the model."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from .errors import Problem
from .semantic_data import data_problems
from .semantic_locations import location_problems, not_on_cluster
from .semantic_quantize import quantize_problems
from .semantic_runner import runner_problems
from .semantic_sources import source_problems
from .stages import freezes, rules
from .v1alpha1 import MEASURED, CompressionJobSpec, Constraint
from .v1alpha1.metrics import MAX_KEPT_BYTES, kept_bytes

_OPTION = re.compile(r"[A-Za-z][A-Za-z0-9_.-]*")  # of a script: --batch-size

# Measured in comparison with the dense model: it has no value of its own that a result could be compared with.
COMPARISONS = ("compressionRatio", "speedup")


def job_problems(spec: CompressionJobSpec, *, cluster: bool = False) -> list[Problem]:
    """Semantic problems of a job's spec; paths begin with `spec`.

    Args:
        cluster: also what no pod can honour, with reason NotOnCluster.
    """
    problems = [
        *_model_problems(spec),
        *_stage_problems(spec),
        *quantize_problems(spec),
        *data_problems(spec),
        *_metric_problems(spec),
        *constraint_problems(spec.constraints or [], "constraints"),
        *result_problems([item.metric for item in spec.constraints or ()], "constraints"),
        *_target_problems(spec),
        *location_problems(spec),
        *runner_problems(spec.runner),
    ]
    if cluster:
        problems += not_on_cluster(spec)
    return [problem.under("spec") for problem in problems]


def result_problems(metrics: Sequence[str], path: str) -> Iterator[Problem]:
    """More metrics that a result must hold than the 4 KiB of a pod's last message have room for."""
    size = kept_bytes(metrics)
    if size > MAX_KEPT_BYTES:
        message = (
            f"a result with these {len(set(metrics))} metrics may take {size} bytes, and a pod reports {MAX_KEPT_BYTES}"
        )
        yield Problem(path, message, "name fewer metrics, or give them shorter names")


def constraint_problems(
    constraints: Sequence[Constraint], path: str, earlier: Sequence[Constraint] = ()
) -> Iterator[Problem]:
    """Bounds given twice, bounds that exclude each other, and bounds that cannot be judged.

    Args:
        earlier: constraints of the template, which those at `path` are added to; one of them may be repeated.
    """
    known: dict[tuple[str, str], float] = {}
    for index, constraint in enumerate([*earlier, *constraints]):
        bound = constraint.bound
        key, value = _alias(constraint, bound), getattr(constraint, bound)
        where = f"{path}[{index - len(earlier)}]"
        if index >= len(earlier) and constraint not in earlier:
            yield from _judgeable(constraint, bound, value, where)
            name = key
            if (constraint.metric, name) in known:
                yield Problem(where, f"{constraint.metric} has two bounds {name}", "keep the stricter one")
            low, high = _OPPOSITES.get(name, (name, name))
            other = known.get((constraint.metric, high if name == low else low))
            if low != high and other is not None:
                least, most = (value, other) if name == low else (other, value)
                if least > most:
                    what = f"{constraint.metric} cannot be at least {least:g} and at most {most:g} ({low}, {high})"
                    yield Problem(where, what, "change one of the two bounds")
        known.setdefault((constraint.metric, key), value)


_OPPOSITES = {
    "min": ("min", "max"),
    "max": ("min", "max"),
    "minRatio": ("minRatio", "maxRatio"),
    "maxRatio": ("minRatio", "maxRatio"),
}


def _alias(constraint: Constraint, bound: str) -> str:
    return type(constraint).model_fields[bound].alias or bound


def _judgeable(constraint: Constraint, bound: str, value: float, where: str) -> Iterator[Problem]:
    metric, name = constraint.metric, _alias(constraint, bound)
    if metric in COMPARISONS and bound not in ("min", "max"):
        message = f"{metric} already compares with the dense model, so {name} has nothing to refer to"
        yield Problem(f"{where}.{name}", message, "use min or max")
    elif metric in MEASURED and bound == "max" and value < 0:
        yield Problem(f"{where}.max", f"{metric} is never negative, so at most {value:g} cannot be met", "raise max")
    elif metric == "sparsity" and bound == "min" and value >= 1:
        yield Problem(f"{where}.min", f"sparsity is always below 1, so at least {value:g} cannot be met", "lower min")


def _target_problems(spec: CompressionJobSpec) -> Iterator[Problem]:
    if spec.target.device == "cuda" and spec.target.format in ("pt2", "onnxruntime", "openvino"):
        message = f"a model in {spec.target.format} is exported on the CPU, and runs there"
        yield Problem("target.device", message, "write cpu, or measure eager or compiled")


def _metric_problems(spec: CompressionJobSpec) -> Iterator[Problem]:
    for name in spec.metrics or {}:
        if name in MEASURED:
            message = f"{name} is measured by modelpress, and its goal is always to {MEASURED[name]} it"
            yield Problem(f"metrics.{name}", message, "remove it, and rename it if your evaluator returns it")


def _model_problems(spec: CompressionJobSpec) -> Iterator[Problem]:
    for name, value in (spec.model.args or {}).items():
        if spec.model.script is not None and not _OPTION.fullmatch(name):
            message = f"'{name}' cannot be the name of an option on a command line"
            fix = "write the option without the dashes before it: letters, digits, '_', '-' and '.', first a letter"
            yield Problem(f"model.args.{name}", message, fix)
        elif spec.model.script is None and not name.isidentifier():
            message = f"'{name}' cannot be the name of a keyword argument"
            yield Problem(f"model.args.{name}", message, "use letters, digits and '_', first a letter or '_'")
        elif spec.model.script is not None and not _fits_a_command_line(value):
            message = f"{name} has no form on the command line of a script"
            yield Problem(
                f"model.args.{name}", message, "give text, a number, true, false or a list of texts and numbers"
            )
    if spec.model.script is not None and not spec.model.script.endswith(".py"):
        message = f"'{spec.model.script}' is no Python file"
        yield Problem("model.script", message, "name the file that trains, as in train.py")
    if spec.model.weights is not None:
        yield from source_problems(spec.model.weights, "model.weights")


def _fits_a_command_line(value: Any) -> bool:
    """Whether an argument can be passed to a script: text, a number, a flag, or a list of texts and numbers."""
    if isinstance(value, list):
        return bool(value) and all(isinstance(item, str | int | float) and not isinstance(item, bool) for item in value)
    return isinstance(value, str | int | float)


def _stage_problems(spec: CompressionJobSpec) -> Iterator[Problem]:
    names: dict[str, int] = {}
    in_loop = spec.model.script is not None
    shrinking: list[tuple[int, str]] = []
    frozen: int | None = None
    sized: int | None = None
    for index, stage in enumerate(spec.stages):
        if stage.name is not None:
            if stage.name in names:
                message = f"'{stage.name}' is also the name of stages[{names[stage.name]}]"
                yield Problem(f"stages[{index}].name", message, "rename one of them")
            names.setdefault(stage.name, index)
        known, block, path = rules(stage.method), stage.block, f"stages[{index}].{stage.method}"
        yield from known.problems(block, path)
        yield from known.problems_in_loop(block, path) if in_loop else known.problems_outside(block, path)
        for where, source in known.sources(block, path):
            yield from source_problems(source, where)
        shrinking += [(index, f"{path}{place}") for place in known.shrinking(block)]
        if getattr(block, "budgets", None) is not None:
            if sized is not None:
                message = f"stages[{sized}] has several sizes already"
                yield Problem(f"{path}.budgets", message, "give one budget here")
            sized = index
        if spec.target.uniform and getattr(block, "search", None) is not None:
            message = "it finds a sparsity for each layer, and target.uniform keeps layers alike"
            yield Problem(f"{path}.search", message, "remove it, or target.uniform")
        if frozen is not None and not in_loop and not freezes(known, block):
            message = f"behind stages[{frozen}] weights have few bits, which this stage cannot change"
            yield Problem(path, message, f"put it before stages[{frozen}], or into one together with it")
        frozen = index if frozen is None and freezes(known, block) else frozen
    if in_loop and frozen is not None and shrinking:
        message = f"stages[{frozen}] makes integers of the weights at the end of the loop, so nothing can be cut there"
        yield Problem(shrinking[0][1], message, "write 'shrink: false'")
    if in_loop and len(shrinking) > 1:
        message = f"stages[{shrinking[0][0]}] shrinks the model at the end of the loop, and that happens once"
        yield Problem(shrinking[1][1], message, "write 'shrink: false', or put both into one stage")
