"""What is wrong with a sweep beyond its schema: pointers, conditions, values that no recipe takes, objectives."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from . import json_pointer
from .errors import Problem, near
from .messages import describe, in_words, keys_in_words
from .search_space_values import Prober, can_take, path_of, same
from .semantic_data import lacks_goal, unsaid_goals
from .semantic_job import constraint_problems, job_problems, result_problems
from .v1alpha1 import MEASURED, CompressionSweepSpec, Parameter, reasons
from .v1alpha1.base import Scalar

# What a search may vary. Everything else is the same for all trials: they must be measured and judged alike (metrics,
# constraints, target, benchmark, code), written to one place (store), and run under the same rules (backoffLimit, ...).
SEARCHABLE = ("model", "stages", "seed")


def sweep_problems(spec: CompressionSweepSpec, *, cluster: bool = False) -> list[Problem]:
    """Semantic problems of a sweep's spec; paths begin with `spec`.

    A search space may set /model, /stages and /seed and what is below them.

    Args:
        cluster: also what no pod can honour, with reason NotOnCluster.
    """
    space = spec.search_space
    document = spec.template.spec.to_dict()
    structure = [
        *_name_problems(space),
        *_pointer_problems(space, document),
        *_when_problems(space),
        *_overlap_problems(space),
    ]
    template = [problem.under("spec.template") for problem in job_problems(spec.template.spec, cluster=cluster)]
    problems = list(structure)
    if structure:
        problems += template
    else:
        problems += _value_problems(spec, template)
    problems += _algorithm_problems(spec)
    problems += _objective_problems(spec)
    earlier = spec.template.spec.constraints or []
    problems += constraint_problems(spec.constraints or [], "spec.constraints", earlier)
    problems += unsaid_goals(spec.template.spec, spec.constraints or [], "spec.constraints", "template.spec.metrics")
    constraints = [*earlier, *(spec.constraints or ())]
    named = [*(item.metric for item in spec.objectives), *(item.metric for item in constraints)]
    problems += result_problems(named, "spec.objectives")
    problems += _budget_problems(spec)
    if spec.template.spec.suspend:
        message = "a suspended template would suspend every trial for good"
        problems.append(Problem("spec.template.spec.suspend", message, "suspend the sweep itself with spec.suspend"))
    return problems


def _at(index: int, below: str) -> str:
    return f"spec.searchSpace[{index}].{below}"


def _name_problems(space: Sequence[Parameter]) -> Iterator[Problem]:
    first: dict[str, int] = {}
    for index, parameter in enumerate(space):
        if parameter.name in first:
            message = f"'{parameter.name}' is also the name of searchSpace[{first[parameter.name]}]"
            yield Problem(_at(index, "name"), message, "rename one of them")
        first.setdefault(parameter.name, index)


def _pointer_problems(space: Sequence[Parameter], document: dict[str, Any]) -> Iterator[Problem]:
    for index, parameter in enumerate(space):
        for number, path in enumerate(parameter.paths):
            where = _at(index, f"paths[{number}]")
            top = json_pointer.parse(path)[0]
            if top in document and top not in SEARCHABLE:
                message = f"/{top} must be the same for all trials"
                yield Problem(where, message, f"search in {in_words('/' + name for name in SEARCHABLE)}")
                continue
            try:
                json_pointer.set(document, path, None)
            except json_pointer.PointerError as error:
                yield Problem(where, f"does not resolve in template.spec: {error}", _pointer_fix(error))


def _pointer_fix(error: json_pointer.PointerError) -> str:
    nearest = near(error.token, error.known)
    if nearest and not error.token.isdigit():
        return f"did you mean {error.parent}/{nearest}?"
    if not error.known:
        return "end the pointer before it"
    listed = keys_in_words(error.known)
    if all(known.isdigit() for known in error.known):
        return f"give an index; there are {listed}"
    return f"add '{error.token}' to the template, or use one of {listed}"


def _when_problems(space: Sequence[Parameter]) -> Iterator[Problem]:
    names = [parameter.name for parameter in space]
    for index, parameter in enumerate(space):
        earlier = {item.name: item for item in space[:index]}
        sound = True
        for name, allowed in (parameter.when or {}).items():
            where = _at(index, f"when.{name}")
            if name not in earlier:
                sound = False
                yield _no_earlier(where, name, index, names)
                continue
            other = earlier[name]
            if other.float is not None and other.float.step is None and other.float.min < other.float.max:
                sound = False
                message = f"{name} is continuous, so it practically never equals a value"
                yield Problem(where, message, f"give {name} a step, or make it int or categorical")
                continue
            for number, value in enumerate(allowed):
                if not can_take(other, value):
                    sound = False
                    message = f"{name} is never {describe(value).removeprefix('the text ')}"
                    yield Problem(f"{where}[{number}]", message, _values_of(other))
        if sound and parameter.when and _never_active(parameter, earlier):
            message = "these conditions exclude each other, so the parameter is never sampled"
            yield Problem(_at(index, "when"), message, "change one of the conditions, or remove the parameter")


def _no_earlier(where: str, name: str, index: int, names: Sequence[str]) -> Problem:
    if name == names[index]:
        return Problem(where, "a parameter cannot depend on itself", "name an earlier parameter")
    if name in names:
        return Problem(where, f"'{name}' stands later than this parameter", f"move {name} before {names[index]}")
    nearest = near(name, names[:index])
    if nearest:
        fix = f"did you mean {nearest}?"
    else:
        fix = f"use one of {keys_in_words(names[:index])}" if index else "remove 'when' from the first parameter"
    return Problem(where, f"there is no parameter '{name}'", fix)


def _values_of(parameter: Parameter) -> str:
    if parameter.categorical is not None:
        return f"use one of {keys_in_words(str(value) for value in parameter.categorical.values)}"
    domain = parameter.int or parameter.float
    assert domain is not None  # exactly one, by the type
    step = f" in steps of {domain.step:g}" if domain.step is not None else ""
    return f"use values from {domain.min:g} to {domain.max:g}{step}"


def _conditions(parameter: Parameter, earlier: dict[str, Parameter]) -> dict[str, list[Scalar]]:
    """What must hold for a parameter to be active, conditions of the parameters that it depends on included."""
    needed: dict[str, list[Scalar]] = {}
    queue, visited = [parameter], set[str]()
    while queue:
        dependent = queue.pop()
        if dependent.name in visited:
            continue
        visited.add(dependent.name)
        for name, allowed in (dependent.when or {}).items():
            known = needed.get(name)
            needed[name] = (
                list(allowed) if known is None else [v for v in known if any(same(v, item) for item in allowed)]
            )
            if name in earlier:
                queue.append(earlier[name])
    return needed


def _never_active(parameter: Parameter, earlier: dict[str, Parameter]) -> bool:
    return any(not allowed for allowed in _conditions(parameter, earlier).values())


def _overlap_problems(space: Sequence[Parameter]) -> Iterator[Problem]:
    """Two parameters may share a field only if they are never active together."""
    by_name = {parameter.name: parameter for parameter in space}
    seen: list[tuple[list[str], int, int]] = []
    for index, parameter in enumerate(space):
        for number, path in enumerate(parameter.paths):
            tokens = json_pointer.parse(path)
            for other_tokens, other_index, other_number in seen:
                length = min(len(tokens), len(other_tokens))
                if tokens[:length] != other_tokens[:length]:
                    continue
                if other_index != index and _exclusive(parameter, space[other_index], by_name):
                    continue
                same_field = len(tokens) == len(other_tokens)
                what = "sets the same field as" if same_field else "sets a part of what is set by, or contains it:"
                other = f"searchSpace[{other_index}].paths[{other_number}]"
                fix = "keep one of them, or give them conditions ('when') that exclude each other"
                yield Problem(_at(index, f"paths[{number}]"), f"{what} {other}", fix)
                break
            seen.append((tokens, index, number))


def _exclusive(one: Parameter, other: Parameter, by_name: dict[str, Parameter]) -> bool:
    conditions, others = _conditions(one, by_name), _conditions(other, by_name)
    return any(
        not any(same(value, item) for value in conditions[name] for item in others[name])
        for name in conditions.keys() & others.keys()
    )


def _value_problems(spec: CompressionSweepSpec, template: list[Problem]) -> Iterator[Problem]:
    """Problems of the template that stay whatever is put in, and values that no recipe takes."""
    prober = Prober(spec.template.spec, spec.search_space)
    base = prober.base()
    # A problem of the template itself that parameters repair is none: every trial sets them.
    repaired = prober.judge(base, None) is None
    yield from (problem for problem in template if not repaired or problem.reason != reasons.INVALID_SPEC)
    document = spec.template.spec.to_dict()
    unsuitable = [
        (index, parameter, probe, problem)
        for index, parameter in enumerate(spec.search_space)
        for probe, problem in prober.unsuitable(parameter, base)
    ]
    for index, parameter, probe, problem in unsuitable:
        targets = [f"spec.template.spec.{path_of(document, path)}" for path in parameter.paths]
        target = next((target for target in targets if problem.path == target), targets[0])
        below = "" if problem.path == target else f"{problem.path} "
        message = f"{describe(probe.value)} does not suit {target}: {below}{problem.message}"
        yield Problem(_at(index, probe.where), message, problem.fix)
    if unsuitable or (template and not repaired):
        return
    for index, parameter in enumerate(spec.search_space):
        for probe, problem in prober.impossible(parameter, base):
            message = f"{describe(probe.value)} gives an invalid recipe: {problem.path}: {problem.message}"
            yield Problem(_at(index, probe.where), message, problem.fix)


def _algorithm_problems(spec: CompressionSweepSpec) -> Iterator[Problem]:
    if spec.algorithm.name == "cmaes" and len(spec.objectives) > 1:
        message = f"cmaes follows one objective, and there are {len(spec.objectives)}"
        yield Problem("spec.algorithm.name", message, "use tpe or nsga2")
    if spec.algorithm.name != "grid":
        return
    for index, parameter in enumerate(spec.search_space):
        domain = parameter.float
        if domain is not None and domain.step is None and domain.min < domain.max:
            yield Problem(
                _at(index, "float"), "grid cannot list a continuous range", "add a step, or use another algorithm"
            )


def _budget_problems(spec: CompressionSweepSpec) -> Iterator[Problem]:
    runner = spec.template.spec.runner
    if spec.budget is not None and spec.budget.gpu_seconds is not None and not (runner is not None and runner.gpus):
        message = "template.spec.runner.gpus is 0, so nothing is counted"
        yield Problem("spec.budget.gpuSeconds", message, "set runner.gpus, or use wallClockSeconds")


def _objective_problems(spec: CompressionSweepSpec) -> Iterator[Problem]:
    first: dict[str, int] = {}
    for index, objective in enumerate(spec.objectives):
        where, metric = f"spec.objectives[{index}]", objective.metric
        if metric in first:
            message = f"{metric} is already objectives[{first[metric]}]"
            yield Problem(f"{where}.metric", message, "keep one of them")
        first.setdefault(metric, index)
        if objective.goal != "minimize" and lacks_goal(spec.template.spec, metric):
            yield Problem(f"{where}.goal", f"less {metric} is better, and nothing says so", "write minimize")
        if objective.goal is None:
            continue
        known = spec.template.spec.metrics or {}
        if metric in MEASURED and objective.goal != MEASURED[metric]:
            message = f"the goal of {metric} is always to {MEASURED[metric]} it"
            yield Problem(f"{where}.goal", message, f"write {MEASURED[metric]}, or leave goal out")
        elif metric in known and objective.goal != known[metric].goal:
            message = f"template.spec.metrics says to {known[metric].goal} {metric}"
            yield Problem(f"{where}.goal", message, "make the two goals equal, or leave this one out")
