"""In which order tuning tries what is quantized: pure generators, told what came of each trial.

A trial is a Choice; basic, mse, bayesian, random and exhaustive are what Neural Compressor calls so, and `by_types` its
conservative level.
"""

from __future__ import annotations

import itertools
import random as lots
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass

from modelpress.api.search_space import Space
from modelpress.api.v1alpha1 import Categorical, Parameter
from modelpress.search.samplers.base import Observation
from modelpress.search.samplers.tpe import TpeSampler

_NOWHERE = "/seed"  # a parameter has a place in a recipe; these are put nowhere


@dataclass(frozen=True)
class Choice:
    """One trial.

    Attributes:
        floats: layers that stay as they are.
        setting: number of the settings of observers, 0 being those asked for.
    """

    floats: frozenset[str] = frozenset()
    setting: int = 0


@dataclass(frozen=True)
class Outcome:
    """What came of a trial.

    Attributes:
        miss: 0: all criteria hold; else by how much the worst is missed.
        loss: of the first criterion's score, relative; less is better.
        saved: bytes of weights.
    """

    miss: float
    loss: float
    saved: int

    @property
    def rank(self) -> tuple[bool, float, int, float]:
        """Less is better: within bounds, then near them, then small, then by score."""
        return self.miss > 0, self.miss, -self.saved, self.loss


@dataclass(frozen=True)
class Field:
    """What can be chosen.

    Attributes:
        types: layers in the model's order, by the class that they are of.
        settings: how many settings of observers there are.
        effects: what each layer alone does to the outputs, when asked.
        seed: of what draws lots.
        most: trials at most.
    """

    types: Mapping[str, tuple[str, ...]]
    settings: int
    effects: Callable[[], Mapping[str, float]]
    seed: int
    most: int

    @property
    def layers(self) -> tuple[str, ...]:
        """All of them."""
        return tuple(name for names in self.types.values() for name in names)


Trials = Generator[Choice, Outcome, None]


def by_types(field: Field) -> Trials:
    """Quantizes one type of layers after another, those with most layers first; a type that misses stays as it is."""
    left = set(field.layers)
    for names in sorted(field.types.values(), key=len, reverse=True):
        outcome = yield Choice(frozenset(left - set(names)))
        if not outcome.miss:
            left -= set(names)


def basic(field: Field) -> Trials:
    """Settings for all layers; each type left alone; then layers one more at a time, by what they gain alone."""
    found: list[tuple[float, int]] = []
    for setting in range(field.settings):
        outcome = yield Choice(setting=setting)
        found.append((outcome.loss, setting))
    setting = min(found)[1]
    if len(field.types) > 1:
        for names in sorted(field.types.values(), key=len):
            yield Choice(frozenset(names), setting)
    alone: list[tuple[float, int, str]] = []
    for number, name in enumerate(field.layers):
        outcome = yield Choice(frozenset({name}), setting)
        alone.append((outcome.loss, number, name))
    yield from _more_and_more([name for _, _, name in sorted(alone)], setting)


def mse(field: Field) -> Trials:
    """Everything, then layers one more at a time, by what they do to the outputs, most first."""
    yield Choice()
    effects = field.effects()
    yield from _more_and_more(sorted(field.layers, key=lambda name: -effects[name]), 0)


def _more_and_more(order: list[str], setting: int) -> Trials:
    for count in range(1, len(order)):
        yield Choice(frozenset(order[:count]), setting)


def random(field: Field) -> Trials:
    """Everything, then so many layers as a lot says, drawn by lot."""
    yield Choice()
    drawn = lots.Random(field.seed)
    for _ in range(20 * field.most):
        count = drawn.randrange(0, len(field.layers))
        floats = frozenset(drawn.sample(field.layers, count))
        yield Choice(floats, drawn.randrange(field.settings))


def exhaustive(field: Field) -> Trials:
    """Every combination, those that leave the fewest layers first."""
    for count in range(len(field.layers)):
        for floats in itertools.combinations(field.layers, count):
            for setting in range(field.settings):
                yield Choice(frozenset(floats), setting)


def bayesian(field: Field) -> Trials:
    """Everything, then what TPE proposes for the least miss, and within bounds for the most bytes saved."""
    names = [f"layer{number}" for number in range(len(field.layers))]
    parameters = [Parameter(name=name, paths=[_NOWHERE], categorical=Categorical(values=[0, 1])) for name in names]
    settings = Categorical(values=list(range(field.settings)))
    parameters.append(Parameter(name="setting", paths=[_NOWHERE], categorical=settings))
    sampler = TpeSampler(Space(parameters), ["minimize"], field.seed)
    seen: list[Observation] = []
    point: dict[str, int] = dict.fromkeys([*names, "setting"], 0)
    most = 1
    for number in range(20 * field.most):
        floats = frozenset(name for name, key in zip(field.layers, names, strict=True) if point[key])
        if len(floats) < len(field.layers):
            outcome = yield Choice(floats, point["setting"])
            most = max(most, outcome.saved)
            value = 1 + outcome.miss if outcome.miss else -outcome.saved / most
            seen.append(Observation(len(seen), dict(point), "complete", (value,)))
        given = sampler.sample(len(seen), seen, number)
        assert given is not None
        point = {key: int(each) for key, each in given.items()}


STRATEGIES: Mapping[str, Callable[[Field], Trials]] = {
    each.__name__: each for each in (basic, mse, bayesian, random, exhaustive)
}


def rounds(field: Field, strategy: str, level: int | None) -> Iterator[tuple[str, Trials]]:
    """The strategies of a level, one after another, by name."""
    if level != 1:
        yield "types", by_types(field)
    if level != 0:
        yield strategy, STRATEGIES[strategy](field)
