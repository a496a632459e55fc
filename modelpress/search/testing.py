"""What every sampler promises, as a test suite to inherit. Needs pytest.

A sampler of your own is checked by three lines in a test module:

    class TestMySampler(SamplerContract):
        sampler = "my_package.my_module:MySampler"
"""

from __future__ import annotations

import importlib
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, ClassVar, Literal

import pytest

from modelpress.api.search_space import Space, SpaceError
from modelpress.api.v1alpha1 import Goal, Parameter
from modelpress.api.v1alpha1.base import Scalar

from .samplers import Observation, Sampler

# Search spaces as users write them.
SPACES: dict[str, list[dict[str, Any]]] = {
    "steps": [
        {"name": "kind", "paths": ["/a"], "categorical": {"values": ["l1", 1, True, 2.5]}},
        {"name": "sparsity", "paths": ["/b"], "float": {"min": 0.1, "max": 0.95, "step": 0.1}},
        {"name": "rounds", "paths": ["/c"], "int": {"min": -3, "max": 9, "step": 4}},
    ],
    "conditions": [
        {"name": "kind", "paths": ["/a"], "categorical": {"values": ["agp", "linear", "once"]}},
        {"name": "rounds", "paths": ["/b"], "int": {"min": 1, "max": 5}, "when": {"kind": ["agp", "linear"]}},
        {
            "name": "start",
            "paths": ["/c"],
            "float": {"min": 0, "max": 0.5, "step": 0.25},
            "when": {"kind": ["agp"], "rounds": [2, 3]},
        },
        {"name": "train", "paths": ["/d"], "categorical": {"values": [False, True]}, "when": {"start": [0.5]}},
    ],
    "one point": [
        {"name": "kind", "paths": ["/a"], "categorical": {"values": ["l1"]}},
        {"name": "sparsity", "paths": ["/b"], "float": {"min": 0.5, "max": 0.5}},
        {"name": "rounds", "paths": ["/c"], "int": {"min": 4, "max": 4, "log": True}},
    ],
    "many integers": [
        {"name": "steps", "paths": ["/a"], "int": {"min": 1, "max": 100_000, "log": True}},
        {"name": "width", "paths": ["/b"], "int": {"min": -(2**53), "max": 2**53}},
    ],
    "continuous": [
        {"name": "rate", "paths": ["/a"], "float": {"min": 1e-5, "max": 0.1, "log": True}},
        {"name": "sparsity", "paths": ["/b"], "float": {"min": 0.1, "max": 0.9}},
        {"name": "kind", "paths": ["/c"], "categorical": {"values": ["l1", "l2"]}},
        {"name": "share", "paths": ["/d"], "float": {"min": -1, "max": 1}, "when": {"kind": ["l2"]}},
    ],
}
GOALS: dict[str, tuple[Goal, ...]] = {"one objective": ("maximize",), "two objectives": ("maximize", "minimize")}


class SamplerContract:
    """Tests that every sampler passes. Subclass it under a name that begins with Test."""

    # module:class
    sampler: ClassVar[str]
    # Whether float ranges without a step can be searched; if not, the constructor raises SpaceError.
    continuous: ClassVar[bool] = True
    # Whether it can search for several objectives; if not, the constructor raises SpaceError.
    several: ClassVar[bool] = True
    # Whether the seed changes the answers.
    seeded: ClassVar[bool] = True

    def make(self, space: str, goals: str = "one objective", seed: int = 0) -> Sampler:
        """The sampler on one of SPACES, with one of GOALS."""
        if space == "continuous" and not self.continuous:
            pytest.skip("searches no continuum")
        if len(GOALS[goals]) > 1 and not self.several:
            pytest.skip("searches for one objective")
        return load(self.sampler)(space_of(space), GOALS[goals], seed)

    @pytest.mark.parametrize("goals", GOALS)
    @pytest.mark.parametrize("space", SPACES)
    def test_answers_are_points_of_the_space(self, space: str, goals: str) -> None:
        """Exactly the active parameters come back, each with one of its values, equal after a trip through JSON."""
        sampler = self.make(space, goals)
        for observation in sweep(sampler, GOALS[goals], 30):
            assert space_of(space).holds(observation.parameters), observation
            assert exact(json.loads(json.dumps(observation.parameters))) == exact(observation.parameters)

    @pytest.mark.parametrize("goals", GOALS)
    @pytest.mark.parametrize("space", SPACES)
    def test_equal_arguments_give_equal_answers(self, space: str, goals: str) -> None:
        """Neither an instance's earlier calls nor the order of the observations change an answer."""
        used = self.make(space, goals, seed=5)
        history = sweep(used, GOALS[goals], 25)
        fresh = self.make(space, goals, seed=5)
        for number in (25, 26, 99):
            answer = exact(used.sample(number, history))
            assert exact(fresh.sample(number, history)) == answer
            assert exact(used.sample(number, [_shuffled(item) for item in reversed(history)])) == answer

    def test_another_process_gives_equal_answers(self) -> None:
        """A process with another hash seed, given all observations in another order, answers alike."""
        questions, answers = [], []
        for space, goals in itertools.product(SPACES, GOALS):
            if (space == "continuous" and not self.continuous) or (len(GOALS[goals]) > 1 and not self.several):
                continue
            sampler = self.make(space, goals, seed=7)
            history = sweep(sampler, GOALS[goals], 20)
            numbers = [20, 21, 22]
            answers.append([exact(sampler.sample(number, history)) for number in numbers])
            shuffled = [asdict(_shuffled(item)) for item in reversed(history)]
            questions.append({"space": space, "goals": goals, "seed": 7, "numbers": numbers, "history": shuffled})
        process = subprocess.run(
            [sys.executable, "-m", __name__, self.sampler],
            input=json.dumps(questions),
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": "4321"},
        )
        assert [[exact(item) for item in found] for found in json.loads(process.stdout)] == answers

    def test_the_seed_counts(self) -> None:
        """Two seeds give two sequences, if the sampler draws at random at all."""
        first, second = (sweep(self.make("steps", seed=seed), ("maximize",), 12) for seed in (1, 2))
        equal = [item.parameters for item in first] == [item.parameters for item in second]
        assert equal is not self.seeded

    @pytest.mark.parametrize("space", SPACES)
    def test_any_state_of_the_history_is_taken(self, space: str) -> None:
        """Failed, running, infeasible and foreign trials in the history are no obstacle."""
        sampler = self.make(space)
        points = [item.parameters for item in sweep(sampler, ("maximize",), 16)]
        states: list[Literal["running", "failed", "complete"]] = ["running", "failed", "complete"]
        history = [_observation(i, point, ("maximize",), states[i % 3]) for i, point in enumerate(points)]
        history.append(Observation(90, {"unknown": 1}, "complete", (1.0,), (0.0,)))
        history.append(Observation(91, points[0], "complete", (1.0,), (float("inf"),)))
        answer = sampler.sample(1, history)
        assert answer is None or space_of(space).holds(answer)

    def test_a_continuum_is_refused_where_it_cannot_be_searched(self) -> None:
        """A sampler that cannot search a float range without a step says so, and names it."""
        if self.continuous:
            assert self.make("continuous").sample(0, []) is not None
            return
        with pytest.raises(SpaceError, match=r"searchSpace\[0\]\.float.*'rate'"):
            load(self.sampler)(space_of("continuous"), ("maximize",), 0)

    def test_several_objectives_are_refused_where_they_cannot_be_searched_for(self) -> None:
        """A sampler that searches for one objective says so, and names the field."""
        if self.several:
            assert self.make("steps", "two objectives").sample(0, []) is not None
            return
        with pytest.raises(SpaceError, match=r"spec\.objectives"):
            load(self.sampler)(space_of("steps"), GOALS["two objectives"], 0)


def load(sampler: str) -> type[Sampler]:
    """The class that 'module:class' names."""
    module, _, name = sampler.partition(":")
    found: type[Sampler] = getattr(importlib.import_module(module), name)
    return found


def space_of(name: str) -> Space:
    """One of SPACES."""
    return Space([Parameter.model_validate(item) for item in SPACES[name]])


def sweep(sampler: Sampler, goals: Sequence[Goal], count: int) -> list[Observation]:
    """`count` trials one after the other, fewer if the space is exhausted, with results made up from the parameters."""
    history: list[Observation] = []
    for number in range(count):
        parameters = sampler.sample(number, history)
        if parameters is None:
            break
        history.append(_observation(number, parameters, goals))
    return history


def exact(parameters: dict[str, Scalar] | None) -> dict[str, tuple[str, Scalar]] | None:
    """Parameters with their types, for a comparison that keeps 1, 1.0 and true apart."""
    return None if parameters is None else {name: (type(value).__name__, value) for name, value in parameters.items()}


def _observation(
    number: int,
    parameters: dict[str, Scalar],
    goals: Sequence[Goal],
    state: Literal["running", "complete", "failed"] = "complete",
) -> Observation:
    if state != "complete":
        return Observation(number, parameters, state)
    score = sum(len(value) if isinstance(value, str) else float(value) for value in parameters.values())
    values = tuple(score / (position + 1) - position * len(parameters) for position in range(len(goals)))
    return Observation(number, parameters, "complete", values, (max(0.0, score - 5.0),))


def _shuffled(observation: Observation) -> Observation:
    backwards = dict(reversed(observation.parameters.items()))
    return Observation(observation.number, backwards, observation.state, observation.values, observation.violations)


def main() -> None:
    """Answers the questions on standard input with the sampler named as argument: the other process of the contract."""
    answers = []
    for question in json.load(sys.stdin):
        sampler = load(sys.argv[1])(space_of(question["space"]), GOALS[question["goals"]], question["seed"])
        history = [
            Observation(
                item["number"], item["parameters"], item["state"], tuple(item["values"]), tuple(item["violations"])
            )
            for item in question["history"]
        ]
        answers.append([sampler.sample(number, history) for number in question["numbers"]])
    json.dump(answers, sys.stdout)


if __name__ == "__main__":
    main()
