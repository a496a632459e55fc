"""What is wrong with a sweep beyond its schema: pointers, conditions, values that no recipe takes, objectives."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from . import json_pointer
from .errors import Problem, near
from .messages import describe, in_words, keys_in_words
from .search_space import Dimension, Space, entry_of, layers_of, placed, same
from .search_space_values import Prober, path_of
from .semantic_data import lacks_goal, unsaid_goals
from .semantic_job import constraint_problems, job_problems, result_problems
from .v1alpha1 import MEASURED, CompressionSweepSpec, Parameter, reasons
from .v1alpha1.base import Scalar

# What a search may vary. Everything else is the same for all trials: they must be measured and judged alike (metrics,
# constraints, target, benchmark, code), written to one place (store), and run under the same rules (backoffLimit, ...).
SEARCHABLE = ("model", "stages", "seed")

MAX_DIMENSIONS = 64  # of a search space, those of expanded parameters included
_ENTRY = re.compile(r"/stages/.*/configList/[0-9]+")
_NAME = re.compile(r"[A-Za-z0-9_.-]*[A-Za-z0-9_]")
_COMBINATIONS = 64  # of choices, that a pointer into what they put in is tried with


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
        *_expand_problems(space, document),
    ]
    template = [problem.under("spec.template") for problem in job_problems(spec.template.spec, cluster=cluster)]
    problems = list(structure)
    if structure:
        problems += template
    else:
        problems += _value_problems(spec, template)
        problems += _initial_problems(spec)
    problems += _algorithm_problems(spec, not structure)
    problems += _objective_problems(spec)
    problems += _stopping_problems(spec)
    problems += _screening_problems(spec, document)
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
            for chosen, below in _documents(space[:index], parameter, path, document):
                try:
                    json_pointer.set(below, path, None)
                except json_pointer.PointerError as error:
                    said = "".join(f", where {name} is {value}" for name, value in chosen.items())
                    fix = _pointer_fix(error)
                    if chosen:
                        fix += ", or sample it only under a condition ('when')"
                    yield Problem(where, f"does not resolve in template.spec{said}: {error}", fix)
                    break


def _documents(
    earlier: Sequence[Parameter], parameter: Parameter, path: str, document: Any
) -> Iterator[tuple[dict[str, str], Any]]:
    """What a pointer is put into: the template, with every combination of the choices that it leads into."""
    tokens = json_pointer.parse(path)
    choices = [item for item in earlier if item.choice and any(_leads_into(tokens, other) for other in item.paths)]
    needed = _conditions(parameter, {item.name: item for item in earlier})
    options: list[list[str | None]] = []
    for item in choices:
        names = [alternative.name for alternative in item.choice.values] if item.choice else []
        allowed = needed.get(item.name)
        options.append([name for name in names if allowed is None or any(same(name, value) for value in allowed)])
        if allowed is None and item.when:
            options[-1].append(None)  # it may not be sampled, and then the template stands
    for combination in itertools.islice(itertools.product(*options), _COMBINATIONS):
        below, chosen = document, dict[str, str]()
        for item, name in zip(choices, combination, strict=True):
            if name is None:
                continue
            chosen[item.name] = name
            for other in item.paths:
                try:
                    below = json_pointer.set(below, other, placed(item, name))
                except json_pointer.PointerError:
                    return  # said of the choice itself
        yield chosen, below


def _leads_into(tokens: Sequence[str], above: str) -> bool:
    """Whether a pointer leads to something below another one."""
    head = json_pointer.parse(above)
    return len(head) < len(tokens) and list(tokens[: len(head)]) == head


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
            if other.expand:
                sound = False
                message = f"{name} is one parameter for each layer, so it has no one value"
                yield Problem(where, message, "name a parameter without 'expand'")
                continue
            if Dimension.of(other).continuous:
                sound = False
                message = f"{name} is continuous, so it practically never equals a value"
                yield Problem(where, message, f"give {name} a step, or make it int or categorical")
                continue
            for number, value in enumerate(allowed):
                if not Dimension.of(other).contains(value):
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
    if parameter.categorical is not None or parameter.choice is not None:
        listed = Dimension.of(parameter)
        return f"use one of {keys_in_words(str(listed.at(index)) for index in range(listed.size or 0))}"
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
                if space[other_index].choice is not None and len(other_tokens) < len(tokens) and other_index != index:
                    continue  # it changes what the choice before it has put in
                same_field = len(tokens) == len(other_tokens)
                what = "sets the same field as" if same_field else "sets a part of what is set by, or contains it:"
                other = f"searchSpace[{other_index}].paths[{other_number}]"
                fix = "keep one of them, or give them conditions ('when') that exclude each other"
                yield Problem(_at(index, f"paths[{number}]"), f"{what} {other}", fix)
                break
            seen.append((tokens, index, number))


def _expand_problems(space: Sequence[Parameter], document: dict[str, Any]) -> Iterator[Problem]:
    count = len(space)
    for index, parameter in enumerate(space):
        if not parameter.expand:
            continue
        outside = next((number for number, path in enumerate(parameter.paths) if not _in_an_entry(path)), None)
        if outside is not None:
            message = "expand goes over the opNames of a configList entry, and this pointer leads into none"
            yield Problem(_at(index, f"paths[{outside}]"), message, "lead it to a key of an entry, or remove expand")
            continue
        layers = layers_of(document, parameter)
        if not layers:
            message = "the entries that the pointers lead into do not name the same layers one by one"
            yield Problem(_at(index, "expand"), message, "give them equal opNames in the template, or remove expand")
            continue
        count += len(layers) - 1
        for layer in layers:
            if len(parameter.name) + 1 + len(layer) > 63 or not _NAME.fullmatch(layer):
                message = f"'{parameter.name}.{layer}' is no name of a parameter: it has more than 63 characters, or "
                yield Problem(
                    _at(index, "name"), message + "others than letters, digits, '.', '_' and '-'", "shorten it"
                )
                break
        for other_index, number in _changes_layers(space, index):
            message = f"sets the opNames that {parameter.name} (searchSpace[{index}]) goes over"
            fix = f"write the opNames into the template, or remove expand from {parameter.name}"
            yield Problem(_at(other_index, f"paths[{number}]"), message, fix)
    if count > MAX_DIMENSIONS:
        message = f"with one parameter for each layer there are {count}; {MAX_DIMENSIONS} are possible"
        yield Problem("spec.searchSpace", message, "expand over fewer opNames")


def _in_an_entry(path: str) -> bool:
    entry, key = entry_of(path)
    return _ENTRY.fullmatch(entry) is not None and key not in ("opNames", "opNamesRe", "opTypes", "exclude")


def _changes_layers(space: Sequence[Parameter], expanded: int) -> Iterator[tuple[int, int]]:
    """Where other parameters set the opNames of an expanded one's entries, or what contains them."""
    entries = [json_pointer.parse(entry_of(path)[0] + "/opNames") for path in space[expanded].paths]
    for index, parameter in enumerate(space):
        for number, path in enumerate(parameter.paths if index != expanded else ()):
            tokens = json_pointer.parse(path)
            if any(entry[: len(tokens)] == tokens for entry in entries):
                yield index, number


def _initial_problems(spec: CompressionSweepSpec) -> Iterator[Problem]:
    """Values of first trials that the search space does not have, or that give no valid recipe."""
    if not spec.algorithm.initial:
        return
    space = Space.of(spec)
    known = {dimension.name: dimension for dimension in space.dimensions}
    owners = {item.name: parameter for parameter in spec.search_space for item in space.of_parameter(parameter)}
    prober = Prober(spec.template.spec, spec.search_space)
    for index, entry in enumerate(spec.algorithm.initial):
        sound = True
        for name, value in entry.items():
            where = f"spec.algorithm.initial[{index}].{name}"
            if name not in known:
                nearest = near(name, list(known))
                fix = f"did you mean {nearest}?" if nearest else f"use one of {keys_in_words(known)}"
                problem: Problem | None = Problem(where, f"there is no parameter '{name}'", fix)
            elif not known[name].contains(value):
                message = f"{name} is never {describe(value).removeprefix('the text ')}"
                problem = Problem(where, message, _values_of(owners[name]))
            else:
                problem = _unsampled(where, known[name], entry)
            if problem is not None:
                sound = False
                yield problem
        named: list[bool] = []
        point = space.walk(lambda item: _named(item, entry, named)) if sound else {}  # noqa: B023
        if sound and all(named) and (rejection := prober.judge_document(space.place(point), None)):
            message = f"gives an invalid recipe: {rejection.problem.path}: {rejection.problem.message}"
            yield Problem(f"spec.algorithm.initial[{index}]", message, rejection.problem.fix)


def _named(dimension: Dimension, entry: Mapping[str, Scalar], named: list[bool]) -> Scalar:
    named.append(dimension.name in entry)
    return entry.get(dimension.name, dimension.greatest)


def _unsampled(where: str, dimension: Dimension, entry: Mapping[str, Scalar]) -> Problem | None:
    for other, allowed in dimension.when:
        if other not in entry:
            return Problem(where, f"it is sampled only under a condition on {other}", f"give {other}, too")
        if not any(same(entry[other], value) for value in allowed):
            message = f"it is not sampled where {other} is {describe(entry[other]).removeprefix('the text ')}"
            return Problem(where, message, f"remove it, or change {other}")
    return None


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


MAX_FITTED = 500  # trials of gp: a fit takes time by their cube, and the question has to fit into a pod's annotation


def _algorithm_problems(spec: CompressionSweepSpec, sound: bool) -> Iterator[Problem]:
    earlier, name = spec.algorithm.warm_start, spec.algorithm.name
    if earlier is not None and name in ("random", "grid", "qmc"):
        message = f"{name} does not learn, so trials of earlier sweeps change nothing"
        yield Problem("spec.algorithm.warmStart", message, "remove it, or use tpe, nsga2, cmaes or gp")
    elif earlier is not None and sound:
        space = Space.of(spec)
        if not any(space.holds(trial.parameters) for trial in earlier.trials):
            message = f"none of its {len(earlier.trials)} trials is a point of this search space"
            fix = f"give each the parameters {keys_in_words(item.name for item in space.dimensions)}, or remove it"
            yield Problem("spec.algorithm.warmStart", message, fix)
    if spec.algorithm.name == "cmaes" and len(spec.objectives) > 1:
        message = f"cmaes follows one objective, and there are {len(spec.objectives)}"
        yield Problem("spec.algorithm.name", message, "use tpe or nsga2")
    if spec.algorithm.name == "gp" and spec.max_trials > MAX_FITTED:
        message = f"gp fits its processes to at most {MAX_FITTED} trials"
        yield Problem("spec.maxTrials", message, f"use at most {MAX_FITTED}, or algorithm tpe")
    if spec.algorithm.name != "grid":
        return
    for index, parameter in enumerate(spec.search_space):
        if Dimension.of(parameter).continuous:
            yield Problem(
                _at(index, "float"), "grid cannot list a continuous range", "add a step, or use another algorithm"
            )


# Measured when a trial is over, or known of some recipes only; counts and the evaluator's metrics come with the scores.
_KNOWN_LATE = frozenset(MEASURED) - {"parameters", "macs"}


def _stopping_problems(spec: CompressionSweepSpec) -> Iterator[Problem]:
    if spec.early_stopping is None:
        return
    for index, objective in enumerate(spec.objectives):
        if objective.metric in _KNOWN_LATE:
            message = f"nobody knows {objective.metric} (objectives[{index}]) before a trial has ended"
            fix = "use macs or parameters as the objective, or remove earlyStopping"
            yield Problem("spec.earlyStopping", message, fix)


def _screening_problems(spec: CompressionSweepSpec, document: dict[str, Any]) -> Iterator[Problem]:
    screening = spec.screening
    if screening is None:
        return
    if spec.template.spec.model.script is not None:
        message = "a script runs as a whole, so there are no first stages to rank it by"
        yield Problem("spec.screening", message, "use earlyStopping, or remove screening")
        return
    fewest = len(document.get("stages") or ())
    for parameter in spec.search_space:
        if parameter.choice is not None and "/stages" in parameter.paths:
            lists = [item.value for item in parameter.choice.values]
            fewest = min(len(value) for value in lists if isinstance(value, list))
    if screening.stages >= fewest:
        message = f"{screening.stages} first stages leave none to go on with: recipes have {fewest}"
        fix = f"use at most {fewest - 1}" if fewest > 1 else "add a stage behind them, or remove screening"
        yield Problem("spec.screening.stages", message, fix)
    if screening.top > spec.max_trials:
        message = f"{screening.top} of {spec.max_trials} trials cannot go on"
        yield Problem("spec.screening.top", message, "use at most maxTrials; a quarter of it is a good start")
    judged = [*(spec.constraints or ()), *(spec.template.spec.constraints or ())]
    others = dict.fromkeys(item.metric for item in judged if item.metric != spec.objectives[0].metric)
    if spec.algorithm.name == "cmaes" and len(spec.objectives) == 1 and others:
        message = f"cmaes follows one objective, and the first rung is ranked by {in_words(others)}, too"
        yield Problem("spec.algorithm.name", message, "use tpe or nsga2")


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
