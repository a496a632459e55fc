"""Finetuning through modelpress is the user's own script, bit for bit: tests for any evaluator (needs pytest).

    class TestMyEvaluator(TrainingParity):
        @pytest.fixture
        def make(self):
            def make():                        # each call the same weights and data, nothing shared
                script = ...
                return script, script.evaluator()
            return make

A script is the user's: it has `model`, `trace` (its own list, to which its training appends what each micro batch had:
samples and learning rate) and `plain(steps, epochs)`, which trains `model` without modelpress. Where framework and
script draw random numbers before the training begins, the script calls its `begin`, which is set here, at that point.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from modelpress.api.v1alpha1 import Stage
from modelpress.store import open_store
from modelpress_runner.engine.checkpoint import Checkpointer
from modelpress_runner.engine.outcome import RecipeOutcome
from modelpress_runner.engine.run import run_stages
from modelpress_runner.process.stopping import Stopped
from modelpress_runner.runtime import rng
from modelpress_runner.subject.subject import Subject

Make = Callable[[], tuple[Any, Any]]

SEED = 11
UNITS = [("epochs", 3), ("maxSteps", 7)]


class TrainingParity:
    """What everybody who trains through modelpress can rely on."""

    supports_max_steps: ClassVar[bool] = True

    @pytest.fixture
    def make(self) -> Make:
        """Makes a script and its evaluator."""
        raise NotImplementedError("the fixture `make` returns a function that gives a script and its evaluator")

    @pytest.fixture(params=UNITS, ids=[unit for unit, _ in UNITS])
    def unit(self, request: pytest.FixtureRequest) -> tuple[str, int]:
        """How long to train."""
        name, count = request.param
        if name == "maxSteps" and not self.supports_max_steps:
            pytest.skip("it trains by epochs")
        return name, count

    @pytest.fixture(autouse=True)
    def _seeded(self) -> Any:
        with rng.fork_rng(0):
            yield

    def plain(self, make: Make, unit: tuple[str, int]) -> tuple[Any, dict[str, torch.Tensor]]:
        """The script as it stands, and its weights; seeded as a recipe seeds its first step."""
        script, _ = make()
        name, count = unit
        script.begin = lambda: rng.seed_all(rng.derive(SEED, 0))
        script.begin()
        script.plain(count if name == "maxSteps" else None, count if name == "epochs" else None)
        return script, getattr(script, "trained", None) or script.model.state_dict()

    def finetuned(self, script: Any, evaluator: Any, unit: tuple[str, int], **options: Any) -> RecipeOutcome:
        """The same by modelpress, whatever random numbers there were before."""
        stages = [Stage.model_validate({"finetune": dict([unit])})]
        subject = Subject(script.model, evaluator)
        with rng.fork_rng(99):
            return run_stages(subject, stages, seed=SEED, **{"scores": False, **options})

    def test_finetuning_is_the_users_own_script(self, make: Make, unit: tuple[str, int]) -> None:
        """Weights, statistics, the learning rate of each step and the order of the samples."""
        script, weights = self.plain(make, unit)
        ours, evaluator = make()
        outcome = self.finetuned(ours, evaluator, unit)
        assert ours.trace == script.trace
        assert different(outcome.model.state_dict(), weights) == []
        assert outcome.notes == []

    @pytest.mark.parametrize("draw", range(3))
    def test_a_training_that_was_stopped_is_that_too(
        self, make: Make, unit: tuple[str, int], draw: int, tmp_path: Path
    ) -> None:
        """Stopped at a random micro batch, and gone on with by new objects: both attempts together saw what it saw."""
        script, weights = self.plain(make, unit)
        at = random.Random(f"{type(self).__name__} {unit} {draw}").randrange(1, 2 * len(script.trace) // 3)
        one, evaluator = make()

        def stop() -> None:
            if len(one.trace) >= at:
                raise Stopped

        store = open_store(str(tmp_path))
        with pytest.raises(Stopped):
            self.finetuned(one, evaluator, unit, checkpointer=Checkpointer(store, "", "same", 1), stop=stop)
        two, evaluator = make()
        outcome = self.finetuned(two, evaluator, unit, checkpointer=Checkpointer(store, "", "same", 2))
        assert one.trace
        assert one.trace + two.trace == script.trace
        assert different(outcome.model.state_dict(), weights) == []
        assert outcome.notes == []
        assert outcome.training["executed"] == outcome.training["steps"] == outcome.stages[0]["steps"]

    def test_scores_and_checkpoints_inside_change_nothing(
        self, make: Make, unit: tuple[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """One of each at every place where there may be one: modes, buffers and generators are the training's again."""
        monkeypatch.setattr("modelpress_runner.training.pace.Pace.is_due", lambda pace, step: True)
        monkeypatch.setattr("modelpress_runner.training.session.LOOK_SECONDS", 0.0)
        script, weights = self.plain(make, unit)
        ours, evaluator = make()
        events: list[Any] = []
        checkpointer = Checkpointer(open_store(str(tmp_path)), "", "same", 1)
        outcome = self.finetuned(ours, evaluator, unit, scores=True, checkpointer=checkpointer, report=events.append)
        steps = [event.step for event in events if ": step " in event.message]
        assert len(steps) >= 2
        assert steps == sorted(set(steps))
        assert all(event.value is not None for event in events if ": step " in event.message)
        assert outcome.checkpoints >= len(steps)
        assert ours.trace == script.trace
        assert different(outcome.model.state_dict(), weights) == []


def different(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> list[str]:
    """The names of tensors that are not the same bit for bit."""
    names = sorted(one.keys() | two.keys())
    return [name for name in names if name not in one or name not in two or not torch.equal(one[name], two[name])]
