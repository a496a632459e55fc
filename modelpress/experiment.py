"""Sweeps written in Python: a search space with nested choices, and the experiment around it, which is a YAML file.

space = mp.SearchSpace()
recipe = space.add_choice("recipe", "/stages", {"pruned": stages_a, "quantized": stages_b})
recipe["pruned"].add_float("sparsity", "/stages/0/prune/configList/0/sparsity", 0.2, 0.8)
sweep = mp.Experiment("digits", template, space, objectives=["default", "macs"], max_trials=20)
print(sweep.dumps())
result = mp.run(sweep)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

import yaml
from pydantic import ValidationError

from modelpress.api.load import load_dict
from modelpress.api.v1alpha1 import PYTHON_SPELLING, CompressionSweep, Stage


class Branch:
    """A part of a search space: its parameters are sampled only where `when` holds."""

    def __init__(self, parameters: list[dict[str, Any]], when: Mapping[str, Sequence[Any]]) -> None:
        self._parameters, self._when = parameters, dict(when)

    def add_float(
        self,
        name: str,
        paths: str | Sequence[str],
        low: float,
        high: float,
        *,
        step: float | None = None,
        log: bool = False,
        expand: bool = False,
    ) -> Self:
        """Adds a number from low to high, evenly, or with `log` by its logarithm; the branch itself, to go on.

        Args:
            name: of the parameter; once in the whole space.
            paths: JSON Pointers into the template's spec, all set to the value.
            low: least value.
            high: greatest value.
            step: only low, low + step, ...
            log: spread by logarithm; low above 0, and no step.
            expand: one parameter for each of the opNames of the entry that the pointers lead into.
        """
        return self._range("float", name, paths, low, high, step, log, expand)

    def add_int(
        self,
        name: str,
        paths: str | Sequence[str],
        low: int,
        high: int,
        *,
        step: int | None = None,
        log: bool = False,
        expand: bool = False,
    ) -> Self:
        """Adds a whole number from low to high, both included; as add_float."""
        return self._range("int", name, paths, low, high, step, log, expand)

    def add_categorical(
        self, name: str, paths: str | Sequence[str], values: Sequence[bool | float | str], *, expand: bool = False
    ) -> Self:
        """Adds one of a few values; as add_float."""
        self._put(name, paths, {"categorical": {"values": list(values)}, **({"expand": True} if expand else {})})
        return self

    def add_choice(self, name: str, paths: str | Sequence[str], parts: Mapping[str, Any]) -> dict[str, Branch]:
        """Adds a choice between parts of a recipe; a branch for each, by name, for parameters that only it has.

        Args:
            name: of the parameter.
            paths: where the part is put in: a stage, a list of stages, an entry.
            parts: what is put in, by the name that stands for it in tables.
        """
        values = [{"name": part, "value": _in_yaml(value)} for part, value in parts.items()]
        self._put(name, paths, {"choice": {"values": values}})
        return {part: Branch(self._parameters, {**self._when, name: [part]}) for part in parts}

    def where(self, name: str, *values: bool | float | str) -> Branch:
        """The part of the branch in which an earlier parameter has one of these values."""
        return Branch(self._parameters, {**self._when, name: list(values)})

    def _range(
        self,
        kind: str,
        name: str,
        paths: str | Sequence[str],
        low: float,
        high: float,
        step: float | None,
        log: bool,
        expand: bool,
    ) -> Self:
        domain = {"min": low, "max": high, **({} if step is None else {"step": step}), **({"log": True} if log else {})}
        self._put(name, paths, {kind: domain, **({"expand": True} if expand else {})})
        return self

    def _put(self, name: str, paths: str | Sequence[str], rest: Mapping[str, Any]) -> None:
        found: dict[str, Any] = {"name": name, "paths": [paths] if isinstance(paths, str) else list(paths), **rest}
        if self._when:
            found["when"] = {key: list(values) for key, values in self._when.items()}
        self._parameters.append(found)


def _in_yaml(part: Any) -> Any:
    """A part of a recipe as YAML spells it, if it is a stage or a list of stages; others are taken as they are."""
    if isinstance(part, list):
        return [_in_yaml(item) for item in part]
    try:
        return Stage.model_validate(part, context=PYTHON_SPELLING).to_dict()
    except ValidationError:  # what is wrong with a stage is said of the whole sweep
        return part


class SearchSpace(Branch):
    """What trials vary, as `spec.searchSpace` of a sweep has it. Conditions come from where a parameter is added."""

    def __init__(self) -> None:
        super().__init__([], {})

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        return iter(self._parameters)

    def to_list(self) -> list[dict[str, Any]]:
        """The space as plain data."""
        return [dict(parameter) for parameter in self._parameters]


class Experiment:
    """A CompressionSweep in the making; `mp.run(experiment)` runs it, `dumps()` writes it.

    Args:
        name: of the sweep.
        template: spec of its trials, in YAML or in Python spelling.
        space: what they vary.
        objectives: metrics, `default` being the evaluator's score; or mappings with metric and goal.
        max_trials: at most.
        concurrency: trials at a time.
        tuner: tpe, nsga2, cmaes, qmc, random or grid.
        seed: of the search.
        spec: other fields of a sweep's spec, as `constraints`, `screening`, `earlyStopping` or `budget`.

    Raises:
        SpecError: something in it is not valid; every problem with its field and fix. Also raised by `dumps`.
    """

    def __init__(
        self,
        name: str,
        template: Mapping[str, Any],
        space: SearchSpace | Sequence[Mapping[str, Any]],
        *,
        objectives: Sequence[str | Mapping[str, Any]] = ("default",),
        max_trials: int = 10,
        concurrency: int = 1,
        tuner: str = "tpe",
        seed: int = 0,
        **spec: Any,
    ) -> None:
        self._document: dict[str, Any] = {
            "apiVersion": "modelpress.dev/v1alpha1",
            "kind": "CompressionSweep",
            "metadata": {"name": name},
            "spec": {
                "template": {"spec": dict(template)},
                "searchSpace": list(space),
                "objectives": [{"metric": item} if isinstance(item, str) else dict(item) for item in objectives],
                "algorithm": {"name": tuner, "seed": seed},
                "parallelism": concurrency,
                "maxTrials": max_trials,
                **spec,
            },
        }
        self.to_dict()

    def to_dict(self) -> dict[str, Any]:
        """The sweep as YAML spells it, without what is at its default nowhere asked for."""
        sweep = load_dict(self._document, python_spelling=True)
        assert isinstance(sweep, CompressionSweep)
        return {key: value for key, value in sweep.to_dict().items() if key != "status"}

    def dumps(self) -> str:
        """The sweep as a YAML file, for `modelpress run` and kubectl."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False, width=120)
