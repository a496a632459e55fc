"""What is wrong with a recipe beyond its schema, found without the model."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import Literal

from .errors import Problem, near
from .v1alpha1 import MEASURED, CompressionJobSpec, ConfigEntry, Constraint, Prune, reasons

WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt")
SCHEMES = ("s3", "gs", "az", "file", "memory")

# Measured in comparison with the dense model: it has no value of its own that a result could be compared with.
COMPARISONS = ("compressionRatio", "speedup")

# Algorithms that remove whole channels, which a speed-up can cut out.
STRUCTURED = ("l1", "l2", "random")

UriKind = Literal["scheme", "path", "unknown"]


def job_problems(spec: CompressionJobSpec, *, cluster: bool = False) -> list[Problem]:
    """Semantic problems of a job's spec; paths begin with `spec`.

    Args:
        cluster: also what no pod can honour, with reason NotOnCluster.
    """
    problems = [
        *_model_problems(spec),
        *_stage_problems(spec),
        *_metric_problems(spec),
        *constraint_problems(spec.constraints or [], "constraints"),
        *_store_problems(spec),
    ]
    if cluster:
        problems += _not_on_cluster(spec)
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
    for name in spec.model.args or {}:
        if not name.isidentifier():
            message = f"'{name}' cannot be the name of a keyword argument"
            yield Problem(f"model.args.{name}", message, "use letters, digits and '_', first a letter or '_'")
    if weights := spec.model.weights:
        yield from _uri_problems(weights.uri, "model.weights.uri")
        suffix = PurePosixPath(weights.uri).suffix
        if suffix not in WEIGHT_SUFFIXES:
            listed = ", ".join(WEIGHT_SUFFIXES)
            found = f"'{suffix}'" if suffix else "none"
            message = f"weights need one of the suffixes {listed}; found {found}"
            yield Problem("model.weights.uri", message, "save the state_dict as .safetensors")


def _store_problems(spec: CompressionJobSpec) -> Iterator[Problem]:
    if not (store := spec.store):
        return
    yield from _uri_problems(store.uri, "store.uri")
    if store.endpoint is not None:
        if not store.uri.startswith("s3://"):
            yield Problem("store.endpoint", "only an s3:// store has an endpoint", "remove it")
        elif not re.match(r"https?://[^/]", store.endpoint):
            message = f"must be the URL of a server, found '{store.endpoint}'"
            yield Problem("store.endpoint", message, "write it as https://host:port")
    if store.region is not None and not store.uri.startswith("s3://"):
        yield Problem("store.region", "only an s3:// store has a region", "remove it")


def _uri_problems(uri: str, path: str) -> Iterator[Problem]:
    scheme, mark, rest = uri.partition("://")
    if not mark:
        return
    if scheme not in SCHEMES:
        nearest = near(scheme, SCHEMES)
        fix = f"did you mean {nearest}://?" if nearest else "use s3://, gs://, az://, file:// or a path"
        yield Problem(path, f"'{scheme}://' is no scheme that modelpress can read or write", fix)
    elif scheme in ("s3", "gs", "az") and not rest.partition("/")[0]:
        yield Problem(path, f"'{uri}' names no bucket", f"write {scheme}://bucket/prefix")
    elif scheme == "file" and not rest.startswith("/"):
        yield Problem(path, f"'{uri}' takes '{rest.partition('/')[0]}' for a host", f"write file:///{rest}")


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


def _not_on_cluster(spec: CompressionJobSpec) -> Iterator[Problem]:
    def problem(path: str, message: str, fix: str) -> Problem:
        return Problem(path, message, fix, reason=reasons.NOT_ON_CLUSTER)

    if spec.code is not None:
        yield problem("code.path", "a pod has no access to a folder of this machine", "put the code into the image")
    if spec.store is None:
        yield problem("store", "a pod needs a store that outlives it", "add store: {uri: s3://bucket/prefix}")
    elif (kind := _local_kind(spec.store.uri)) is not None:
        message = f"{kind} vanishes with the pod"
        yield problem("store.uri", message, "use s3://, gs:// or az://")
    if spec.model.weights and (kind := _local_kind(spec.model.weights.uri)) is not None:
        uri = spec.model.weights.uri
        if not uri.startswith(("/", "file://")):  # an absolute path may be in the image
            message = f"{kind} is not in a pod"
            yield problem("model.weights.uri", message, "use s3://, gs:// or az://, or an absolute path in the image")


def _local_kind(uri: str) -> str | None:
    scheme, mark, _ = uri.partition("://")
    if not mark:
        return f"the folder '{uri}'"
    return {"file": f"the folder '{uri}'", "memory": "a store in memory"}.get(scheme)
