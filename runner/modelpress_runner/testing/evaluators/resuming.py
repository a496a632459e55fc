"""A training that was interrupted, beside one that was not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import nn

from modelpress.api.v1alpha1 import Stage
from modelpress.store import open_store
from modelpress_runner.engine.checkpoint import Checkpointer
from modelpress_runner.engine.outcome import RecipeOutcome
from modelpress_runner.engine.run import run_stages
from modelpress_runner.process.stopping import Stopped
from modelpress_runner.runtime import rng
from modelpress_runner.subject.subject import Subject
from modelpress_runner.testing.evaluators.basis import Basis, Make, is_same, values_of


class Resuming(Basis):
    """Stopped at any step it ends bit for bit as it would have."""

    @pytest.mark.parametrize("unit", ["epochs", "steps"])
    @pytest.mark.parametrize("after", [1, 3, 4])
    def test_a_resumed_run_equals_an_undisturbed_one(self, make: Make, unit: str, after: int, tmp_path: Path) -> None:
        """One call in one go, and one that is asked to stop after some steps and goes on: bit for bit alike."""
        if unit == "steps" and not make()[0].supports_max_steps:
            pytest.skip("it trains by epochs")
        stages = [Stage.model_validate({"finetune": {"epochs": 3} if unit == "epochs" else {"maxSteps": 5}})]
        self._resumed(make, stages, after, tmp_path)

    def _resumed(self, make: Make, stages: list[Any], after: int, folder: Path) -> RecipeOutcome:
        """What a run gives that was interrupted after some steps, compared with one that was not."""
        evaluator, model = make()
        whole = run_stages(Subject(model, evaluator), stages, seed=5, scores=False)
        store = open_store(str(folder))
        asked = False

        def stop() -> None:
            if asked:
                raise Stopped

        other, twin = make()
        steps: list[None] = []
        bind = other.bind

        def bound(model: nn.Module) -> None:
            nonlocal asked
            bind(model)

            def count() -> None:
                nonlocal asked
                steps.append(None)
                asked = len(steps) >= after

            other.before_optimizer_step(count)

        other.bind = bound  # type: ignore[method-assign]
        with rng.fork_rng(99), pytest.raises(Stopped):
            run_stages(
                Subject(twin, other),
                stages,
                seed=5,
                scores=False,
                checkpointer=Checkpointer(store, "", "same", 1),
                stop=stop,
            )
        again, last = make()
        with rng.fork_rng(98):
            outcome = run_stages(
                Subject(last, again),
                stages,
                seed=5,
                scores=False,
                checkpointer=Checkpointer(store, "", "same", 2),
            )
        assert outcome.steps == whole.steps
        assert not [note for note in outcome.notes if "anew" in note]
        expected, got = values_of(model), values_of(last)
        assert [name for name in expected if not is_same(expected[name], got[name])] == []
        assert is_same(outcome.masks, whole.masks)
        return outcome
