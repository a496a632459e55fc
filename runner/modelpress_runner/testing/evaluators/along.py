"""What goes along with a training: terms, parameters and pruning of its own."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from modelpress.api import stages as rules
from modelpress.api.stages import StageRules
from modelpress.api.v1alpha1 import Finetune, Stage
from modelpress.api.v1alpha1.algorithms import CHANNEL_TYPES
from modelpress_runner.edits.axes import axis_of
from modelpress_runner.engine.run import run_stages
from modelpress_runner.errors import InvalidModelError
from modelpress_runner.methods.context import Step, TrainingContext
from modelpress_runner.stages.base import StageKind
from modelpress_runner.subject.subject import Subject
from modelpress_runner.testing.evaluators.basis import EPOCH, Make, is_same, traces, values_of
from modelpress_runner.testing.evaluators.resuming import Resuming
from modelpress_runner.training.calls import Call
from modelpress_runner.training.participants import Participant
from modelpress_runner.training.run import training_session
from modelpress_runner.training.step import Training


class Along(Resuming):
    """Participants weigh once, and go on where they were."""

    def test_a_term_in_the_loss_weighs_once(self, make: Make) -> None:
        """Three times a parameter of its own, added to every loss, is a gradient of 3 in every step, of however many
        losses; the parameter trains, and nothing is left on the model."""
        evaluator, model = make()
        evaluator.record_parameter_names(model)
        before = traces(model)
        along = _Triple()
        session = training_session(model, evaluator, {}, participants=[along])
        if evaluator.sharded:
            with pytest.raises(InvalidModelError, match="parameters of its own, and DeepSpeed takes none"), session:
                pass
            return
        with session:
            session.train(*EPOCH)
        assert along.gradients
        assert set(along.gradients) == {3.0}
        assert along.losses >= len(along.gradients)
        assert float(along.own.detach()) != 0.0
        assert traces(model) == before

    def test_pruning_goes_along_with_a_training(self, make: Make) -> None:
        """together of one_shot pruning is pruning and then finetuning, bit for bit."""
        name = _prunable(make()[1])
        part = {"prune": _level(name, 0.5)}
        recipes = (
            [part, {"finetune": {"epochs": 1}}],
            [{"prune": _level(name, 0.0)}, {"together": {"epochs": 1, "of": [part]}}],
        )
        results = []
        for recipe in recipes:
            evaluator, model = make()
            stages = [Stage.model_validate(stage) for stage in recipe]
            outcome = run_stages(Subject(model, evaluator), stages, seed=5, scores=False)
            results.append((values_of(model), outcome.masks, outcome.steps))
        assert is_same(*results)
        mask = results[1][1][name]["weight"]
        assert int((mask == 0).sum()) == mask.numel() // 2

    @pytest.mark.parametrize("after", [1, 2, 4])
    def test_pruning_along_goes_on_where_it_was(self, make: Make, after: int, tmp_path: Path) -> None:
        """Channels go in the course of a training, by scores of its steps; interrupted, it ends bit for bit alike."""
        evaluator, model = make()
        name = _prunable(model)
        prune = {
            "algorithm": "taylor",
            "speedup": False,
            "scores": {"steps": 2},
            "configList": [{"opNames": [name], "sparsity": 0.5}],
            "schedule": {"type": "linear", "startStep": 1, "endStep": 5, "frequency": 2},
        }
        length = {"maxSteps": 6} if evaluator.supports_max_steps else {"epochs": 3}
        stages = [Stage.model_validate({"together": {**length, "of": [{"prune": prune}]}})]
        outcome = self._resumed(make, stages, after, tmp_path)
        rows = axis_of(model, name, "out").size
        mask = outcome.masks[name]["weight"]
        assert int((mask == 0).sum()) == rows // 2 * (mask.numel() // rows)

    @pytest.mark.parametrize("after", [1, 3, 4])
    def test_parameters_of_its_own_go_on_where_they_were(
        self, make: Make, after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Stopped after some steps and resumed, the model and the parameters that trained along end bit for bit alike;
        each of both depends on the other in every step."""
        evaluator, _ = make()
        if evaluator.sharded:
            pytest.skip("it takes none")
        made: list[Entangled] = []
        monkeypatch.setitem(rules._KINDS, AlongRules.name, AlongRules())
        monkeypatch.setattr(AlongKind, "made", made)
        length = {"max_steps": 5} if evaluator.supports_max_steps else {"epochs": 3}
        self._resumed(make, [along_stage(**length)], after, tmp_path)
        whole, last = made[0], made[-1]
        assert len(made) == 3
        assert not is_same(whole.own.detach(), torch.tensor(Entangled.BEGIN))
        assert is_same(whole.own.detach(), last.own.detach())


class Entangled(Participant):
    """Two parameters of its own; every loss hangs on them, and their gradients on the loss."""

    BEGIN = (0.5, -0.25)

    def __init__(self) -> None:
        self.own = nn.Parameter(torch.tensor(self.BEGIN))

    def parameter_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        return [{"params": [self.own]}]

    def loss(self, call: Call | None, loss: torch.Tensor) -> torch.Tensor:
        return loss * (1 + 0.1 * self.own[0]) + (self.own[1] * loss.detach() - 1).square()


class AlongRules(StageRules[Finetune]):
    """A stage that trains with an Entangled beside the model."""

    name = "along"
    block = Finetune
    runner = f"{__name__}:ALONG"


class AlongKind(StageKind[Finetune]):
    """What runs it. `made` has the participants of all trainings, in order."""

    name = "along"
    made: ClassVar[list[Entangled]] = []

    def steps(self, block: Finetune, index: int) -> list[Step]:
        def participants(training: TrainingContext) -> list[Participant]:
            self.made.append(Entangled())
            return [self.made[-1]]

        return [Training("along", block.epochs, block.max_steps, participants)]


ALONG = AlongKind()


def along_stage(**length: int) -> Any:
    """A stage of this kind, where it is known."""
    return types.SimpleNamespace(name=None, method=AlongRules.name, block=Finetune(**length))


class _Triple(Participant):
    """Adds three times a parameter of its own to each loss."""

    def __init__(self) -> None:
        self.own = nn.Parameter(torch.zeros(()))
        self.losses = 0
        self.gradients: list[float] = []  # of each step, before anything is clipped
        self._sum = 0.0
        self.own.register_hook(self._add)

    def parameter_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        return [{"params": [self.own]}]

    def loss(self, call: Call | None, loss: torch.Tensor) -> torch.Tensor:
        self.losses += 1
        return loss + 3 * self.own

    def before_step(self, step: int) -> None:
        assert self.own.grad is not None
        self.gradients.append(self._sum)
        self._sum = 0.0

    def _add(self, gradient: torch.Tensor) -> None:
        self._sum += float(gradient)


def _prunable(model: nn.Module) -> str:
    found = (str(name) for name, module in model.named_modules() if type(module).__name__ in CHANNEL_TYPES)
    return next(found)


def _level(name: str, sparsity: float) -> dict[str, Any]:
    return {"algorithm": "level", "speedup": False, "configList": [{"opNames": [name], "sparsity": sparsity}]}
