"""Which values of a search space give valid recipes: the outermost values are put into the template and validated."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from . import json_pointer
from .errors import Location, Problem, format_location, located_problems
from .search_space import Dimension, Space, same
from .semantic_job import job_problems
from .v1alpha1 import CompressionJobSpec, Parameter
from .v1alpha1.base import Scalar

# Combinations that are tried for a value that alone gives no valid recipe, and for all values of a sweep together.
TRIES_PER_VALUE = 64
TRIES = 2048

# Values of a sweep that are tried; a larger space is tried in part, and its other values when their trials are created.
MAX_PROBES = 4096


@dataclass(frozen=True)
class Probe:
    """A value that a parameter can take, and where in the parameter it comes from."""

    value: Scalar
    where: str


@dataclass(frozen=True)
class Rejection:
    """What is wrong with one combination of values. `own`: the value does not suit the field that it is put into."""

    problem: Problem
    own: bool


def probes(parameter: Parameter) -> list[Probe]:
    """Every value of a set or a choice; the least and the greatest value of a range that a trial can get."""
    if parameter.categorical is not None:
        return [Probe(value, f"categorical.values[{i}]") for i, value in enumerate(parameter.categorical.values)]
    if parameter.choice is not None:
        return [Probe(item.name, f"choice.values[{i}].value") for i, item in enumerate(parameter.choice.values)]
    kind, domain = ("int", parameter.int) if parameter.int is not None else ("float", parameter.float)
    assert domain is not None  # exactly one, by the type
    least, greatest = Probe(domain.min, f"{kind}.min"), Probe(Dimension.of(parameter).greatest, f"{kind}.max")
    return [least] if same(least.value, greatest.value) else [least, greatest]


class Prober:
    """Puts values into a template.

    Args:
        template: the template's spec.
        parameters: the search space; every pointer resolves, names differ, `when` names earlier parameters only.
    """

    def __init__(self, template: CompressionJobSpec, parameters: Sequence[Parameter]) -> None:
        self._document = template.to_dict()
        self._space = Space(parameters, self._document)
        self._parameters = list(parameters)
        self._by_name = {parameter.name: parameter for parameter in parameters}
        share = max(2, MAX_PROBES // len(self._parameters))
        self._probes = {parameter.name: probes(parameter)[:share] for parameter in parameters}
        self._conditions = {name for parameter in parameters for name in parameter.when or ()}
        self._verdicts: dict[str, list[tuple[Probe, Rejection | None]]] = {}
        self._tries = TRIES

    def base(self) -> dict[str, Scalar]:
        """Values that together give a valid recipe, as far as some were found; else each parameter's first."""
        first = {name: found[0].value for name, found in self._probes.items()}
        if self.judge(first, None) is None:
            return first
        return next(
            (values for values in self._variations(first, frozenset()) if self.judge(values, None) is None), first
        )

    def unsuitable(self, parameter: Parameter, base: Mapping[str, Scalar]) -> list[tuple[Probe, Problem]]:
        """The values of a parameter that do not suit the field that they are put into."""
        verdicts = self._first_verdicts(parameter, base)
        return [(probe, verdict.problem) for probe, verdict in verdicts if verdict is not None and verdict.own]

    def impossible(self, parameter: Parameter, base: Mapping[str, Scalar]) -> list[tuple[Probe, Problem]]:
        """The values of a parameter that give no valid recipe, whatever the other parameters are (as far as tried)."""
        return [
            (probe, verdict.problem)
            for probe, verdict in self._first_verdicts(parameter, base)
            if verdict is not None and not self._finds_a_way(parameter, probe.value, base)
        ]

    def judge(self, values: Mapping[str, Scalar], parameter: Parameter | None) -> Rejection | None:
        """The first thing that is wrong with the recipe that these values give; None: it is valid."""
        return self.judge_document(self.resolve(values), parameter)

    def judge_document(self, document: Any, parameter: Parameter | None) -> Rejection | None:
        """As `judge`, of a template's spec with all values put in."""
        try:
            spec = CompressionJobSpec.model_validate(document)
        except ValidationError as error:
            found = located_problems(error, CompressionJobSpec)
            targets = [_location(self._document, path) for path in parameter.paths] if parameter else []
            for problem, location in found:
                if any(location[: len(target)] == target for target in targets):
                    return Rejection(problem.under("spec.template.spec"), True)
            return Rejection(found[0][0].under("spec.template.spec"), False)
        problems = job_problems(spec)
        return Rejection(problems[0].under("spec.template"), False) if problems else None

    def resolve(self, values: Mapping[str, Scalar]) -> Any:
        """The template's spec with the values of the active parameters put in."""
        each = {
            dimension.name: values[parameter.name]
            for parameter in self._parameters
            if parameter.name in values
            for dimension in self._space.of_parameter(parameter)
        }
        return self._space.place(self._space.restricted(each))

    def _first_verdicts(self, parameter: Parameter, base: Mapping[str, Scalar]) -> list[tuple[Probe, Rejection | None]]:
        """Each value judged beside the base values, with the parameter made active."""
        if parameter.name not in self._verdicts:
            found = self._probes[parameter.name]
            if all(path.startswith("/model/args/") for path in parameter.paths):
                found = found[:1]  # an argument takes any value, so only its name can be wrong
            self._verdicts[parameter.name] = list(zip(found, self._first_tries(parameter, found, base), strict=True))
        return self._verdicts[parameter.name]

    def _first_tries(
        self, parameter: Parameter, found: Sequence[Probe], base: Mapping[str, Scalar]
    ) -> Iterator[Rejection | None]:
        if parameter.when or parameter.expand or parameter.choice or parameter.name in self._conditions:
            enabled = next(self._enabling(parameter), {})
            for probe in found:
                yield self.judge({**base, **enabled, parameter.name: probe.value}, parameter)
            return
        # Nothing else changes with this parameter, so the rest is put in once.
        rest = self.resolve(base)
        for probe in found:
            document = rest
            for path in parameter.paths:
                document = json_pointer.set(document, path, probe.value)
            yield self.judge_document(document, parameter)

    def _finds_a_way(self, parameter: Parameter, value: Scalar, base: Mapping[str, Scalar]) -> bool:
        for enabled in self._enabling(parameter):
            start = {**base, **enabled, parameter.name: value}
            for values in itertools.chain([start], self._variations(start, frozenset({parameter.name, *enabled}))):
                if self._tries <= 0:
                    return True  # not proven wrong
                self._tries -= 1
                if self.judge(values, parameter) is None:
                    return True
        return False

    def _enabling(self, parameter: Parameter) -> Iterator[dict[str, Scalar]]:
        """Values of earlier parameters that make this one active."""
        needed: dict[str, list[Scalar]] = {}
        queue = [parameter]
        while queue:
            for name, allowed in (queue.pop().when or {}).items():
                earlier = self._by_name[name]
                possible = [value for value in needed.get(name, allowed) if any(same(value, item) for item in allowed)]
                needed[name] = [value for value in possible if Dimension.of(earlier).contains(value)]
                queue.append(earlier)
        combinations = itertools.product(*needed.values())
        for combination in itertools.islice(combinations, TRIES_PER_VALUE):
            yield dict(zip(needed, combination, strict=True))

    def _variations(self, start: Mapping[str, Scalar], fixed: frozenset[str]) -> Iterator[dict[str, Scalar]]:
        """`start` with one other parameter changed, then with two."""
        free = [name for name in self._by_name if name not in fixed]
        ones = ({**start, name: probe.value} for name in free for probe in self._probes[name])
        twos = (
            {**start, a: first.value, b: second.value}
            for a, b in itertools.combinations(free, 2)
            for first in self._probes[a]
            for second in self._probes[b]
        )
        return itertools.islice(itertools.chain(ones, twos), TRIES_PER_VALUE)


def _location(document: Any, path: str) -> Location:
    """A JSON Pointer as keys and indices. Below what the document has (a choice may put more there), digits count."""
    out: list[str | int] = []
    for token in json_pointer.parse(path):
        indexed = isinstance(document, list) or (document is None and token.isdigit())
        out.append(int(token) if indexed else token)
        if isinstance(document, dict):
            document = document.get(token)
        else:
            document = document[int(token)] if isinstance(document, list) and int(token) < len(document) else None
    return tuple(out)


def path_of(document: Any, path: str) -> str:
    """A JSON Pointer in the spelling of problems: /stages/0/prune -> stages[0].prune."""
    return format_location(_location(document, path))
