"""What is wrong with a recipe beyond its schema, found without the model."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any

from .errors import Problem
from .semantic_data import data_problems
from .semantic_loop import loop_problems
from .semantic_places import not_on_cluster, place_problems, uri_problems
from .semantic_runner import runner_problems
from .v1alpha1 import DATA_DRIVEN, MEASURED, CompressionJobSpec, ConfigEntry, Constraint, Prune

WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt")

_OPTION = re.compile(r"[A-Za-z][A-Za-z0-9_.-]*")  # of a script: --batch-size

# Measured in comparison with the dense model: it has no value of its own that a result could be compared with.
COMPARISONS = ("compressionRatio", "speedup")

# Algorithms that remove whole channels, which a speed-up can cut out.
STRUCTURED = ("l1", "l2", "random", "taylor")


def job_problems(spec: CompressionJobSpec, *, cluster: bool = False) -> list[Problem]:
    """Semantic problems of a job's spec; paths begin with `spec`.

    Args:
        cluster: also what no pod can honour, with reason NotOnCluster.
    """
    problems = [
        *_model_problems(spec),
        *_stage_problems(spec),
        *loop_problems(spec),
        *data_problems(spec),
        *_metric_problems(spec),
        *constraint_problems(spec.constraints or [], "constraints"),
        *place_problems(spec),
        *runner_problems(spec.runner),
    ]
    if cluster:
        problems += not_on_cluster(spec)
    return [problem.under("spec") for problem in problems]


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
    if weights := spec.model.weights:
        yield from uri_problems(weights.uri, "model.weights.uri")
        suffix = PurePosixPath(weights.uri).suffix
        if suffix not in WEIGHT_SUFFIXES:
            listed = ", ".join(WEIGHT_SUFFIXES)
            found = f"'{suffix}'" if suffix else "none"
            message = f"weights need one of the suffixes {listed}; found {found}"
            yield Problem("model.weights.uri", message, "save the state_dict as .safetensors")


def _fits_a_command_line(value: Any) -> bool:
    """Whether an argument can be passed to a script: text, a number, a flag, or a list of texts and numbers."""
    if isinstance(value, list):
        return bool(value) and all(isinstance(item, str | int | float) and not isinstance(item, bool) for item in value)
    return isinstance(value, str | int | float)


def _stage_problems(spec: CompressionJobSpec) -> Iterator[Problem]:
    names: dict[str, int] = {}
    for index, stage in enumerate(spec.stages):
        if stage.name is not None:
            if stage.name in names:
                message = f"'{stage.name}' is also the name of stages[{names[stage.name]}]"
                yield Problem(f"stages[{index}].name", message, "rename one of them")
            names.setdefault(stage.name, index)
        if stage.prune is not None:
            yield from _prune_problems(stage.prune, f"stages[{index}].prune")


def _prune_problems(prune: Prune, path: str) -> Iterator[Problem]:
    entries = [(index, entry) for index, entry in enumerate(prune.config_list) if not entry.exclude]
    for index, entry in enumerate(prune.config_list):
        yield from _selector_problems(entry, f"{path}.configList[{index}]")
    if not entries:
        yield Problem(
            f"{path}.configList", "every entry excludes, so nothing is pruned", "add an entry with a sparsity"
        )
        return
    for index, entry in entries:
        where = f"{path}.configList[{index}]"
        if not any(other.sparsity is not None for _, other in entries if _may_overlap(entry, other)) and (
            prune.sparsity is None
        ):
            yield Problem(f"{where}.sparsity", "nothing says how much to prune", "add sparsity here or to prune")
        yield from _schedule_problems(prune, entry, where, path)
    algorithms = {entry.algorithm or prune.algorithm for _, entry in entries}
    if prune.scores is not None and not algorithms & DATA_DRIVEN:
        listed = ", ".join(sorted(algorithms))
        message = f"{listed} needs no data, so there are no scores to collect"
        yield Problem(f"{path}.scores", message, f"remove it, or use {' or '.join(sorted(DATA_DRIVEN))}")
    if prune.speedup and not algorithms & set(STRUCTURED):
        listed = ", ".join(sorted(algorithms))
        message = f"{listed} removes single weights, which leaves nothing to shrink"
        yield Problem(f"{path}.speedup", message, "write 'speedup: false', or use l1 or l2")


def _schedule_problems(prune: Prune, entry: ConfigEntry, where: str, path: str) -> Iterator[Problem]:
    schedule, at = (entry.schedule, f"{where}.schedule") if entry.schedule else (prune.schedule, f"{path}.schedule")
    if entry.schedule and entry.schedule.rounds > prune.schedule.rounds:
        message = f"takes {entry.schedule.rounds} rounds, but the stage has {prune.schedule.rounds}"
        fix = f"set prune.schedule.rounds to {entry.schedule.rounds}"
        if prune.schedule.type == "one_shot":
            fix += " and its type to linear or agp"
        yield Problem(f"{at}.rounds", message, fix)
    sparsity = entry.sparsity if entry.sparsity is not None else prune.sparsity
    if schedule.type == "one_shot":
        if schedule.initial_sparsity > 0:
            message = "one_shot prunes at once, so there is no initial sparsity"
            yield Problem(f"{at}.initialSparsity", message, "set type to linear or agp, or remove it")
    elif sparsity is not None and schedule.initial_sparsity > sparsity:
        message = f"{schedule.initial_sparsity:g} is above the sparsity to reach, {sparsity:g}"
        yield Problem(f"{at}.initialSparsity", message, f"give at most {sparsity:g}")


def _selector_problems(entry: ConfigEntry, where: str) -> Iterator[Problem]:
    for index, name in enumerate(entry.op_types or []):
        if "." in name:
            last = name.rpartition(".")[2]
            message = f"'{name}' is no class name: it has a dot"
            yield Problem(f"{where}.opTypes[{index}]", message, f"write {last}" if last else "write the class name")
    for index, pattern in enumerate(entry.op_names_re or []):
        error = _regex_error(pattern)
        if error:
            message = f"'{pattern}' is no regular expression: {error}"
            yield Problem(f"{where}.opNamesRe[{index}]", message, _regex_fix(pattern))


def _regex_error(pattern: str) -> str | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            re.compile(pattern)
        except (re.error, OverflowError, RecursionError) as error:
            return str(error)
    return None


def _regex_fix(pattern: str) -> str:
    if pattern.startswith("*"):
        return f"write '.{pattern}'"
    return "correct it, or use opNames for exact names"


def _may_overlap(one: ConfigEntry, other: ConfigEntry) -> bool:
    """Whether a module could be selected by both, as far as can be said without the model."""
    if one is other:
        return True
    types, other_types = set(one.op_types or ()), set(other.op_types or ())
    if types and other_types and "default" not in types | other_types and not types & other_types:
        return False
    if one.op_names is None or other.op_names is None:
        return True
    return (
        any(_selects(other, name) for name in one.op_names)
        or any(_selects(one, name) for name in other.op_names)
        or (one.op_names_re is not None and other.op_names_re is not None)
    )


def _selects(entry: ConfigEntry, name: str) -> bool:
    patterns = [pattern for pattern in entry.op_names_re or () if not _regex_error(pattern)]
    return name in (entry.op_names or ()) or any(re.fullmatch(pattern, name) for pattern in patterns)
