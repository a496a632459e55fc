"""Edits of any kind: a run that makes one is resumed, its artifact has it, and it loads into the dense model."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import pytest
import torch
from small_task import Task
from torch import nn

import modelpress as mp
from modelpress.api import stages as kinds
from modelpress.api.v1alpha1 import Stage
from modelpress.store import open_store
from modelpress_runner.artifact import files as artifact
from modelpress_runner.edits import base
from modelpress_runner.edits.masks import Masks
from modelpress_runner.engine.checkpoint import Checkpointer
from modelpress_runner.engine.run import run_stages
from modelpress_runner.methods.context import StageContext, Step, Transform
from modelpress_runner.process.stopping import Stopped
from modelpress_runner.stages.base import StageKind
from modelpress_runner.subject.subject import Subject


@dataclass(frozen=True)
class Slope(base.Edit):
    """Lets an activation leak."""

    kind: ClassVar[str] = "slope"

    module: str
    slope: float

    def apply(self, model: nn.Module, masks: Masks | None = None) -> None:
        model.set_submodule(self.module, nn.LeakyReLU(self.slope))

    def to_plain(self) -> dict[str, Any]:
        return {"module": self.module, "slope": self.slope}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Self:
        return cls(plain["module"], plain["slope"])


class Leak(StageKind[Any]):
    """A stage of one such edit."""

    name = "leak"

    def steps(self, block: Any, index: int) -> list[Step]:
        def leak(context: StageContext) -> None:
            edit = Slope("2", 0.25)
            edit.apply(context.model)
            context.edits.append(edit)

        return [Transform("leak", leak)]


KIND = Leak()


class LeakRules(kinds.StageRules[Any]):
    name = "leak"
    block = dict
    runner = f"{__name__}:KIND"


@dataclass
class Written:
    """A stage as a recipe would have it, whose block no type knows."""

    method: str = "leak"
    block: Any = None
    name: str | None = None


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The stage, and training behind it."""
    monkeypatch.setitem(kinds._KINDS, "leak", LeakRules())
    monkeypatch.setitem(base._KINDS, "slope", Slope)
    return [Written(), Stage.model_validate({"finetune": {"maxSteps": 5}})]


def test_a_run_with_an_edit_goes_on_in_its_training(recipe, task, tmp_path):
    """Stopped behind three of five steps: the checkpoint makes the edit again, and the end is the same, bit for bit."""
    dense = copy.deepcopy(task.model)
    whole = run_stages(Subject(task.model, task.evaluator()), recipe, seed=3)
    assert whole.edits == [Slope("2", 0.25)]
    store, steps = open_store(str(tmp_path)), []

    def training_step(batch, model):
        steps.append(None)
        return Task.training_step(task, batch, model)

    def stop() -> None:
        if len(steps) >= 3:
            raise Stopped

    task.model = copy.deepcopy(dense)
    subject = Subject(task.model, task.evaluator(training_step=training_step))
    with pytest.raises(Stopped):
        run_stages(subject, recipe, seed=3, checkpointer=Checkpointer(store, "", "same", 1), stop=stop)
    task.model = copy.deepcopy(dense)
    subject = Subject(task.model, task.evaluator())
    resumed = run_stages(subject, recipe, seed=3, checkpointer=Checkpointer(store, "", "same", 2))
    assert resumed.resumed
    assert resumed.training["executed"] == 5
    assert resumed.edits == whole.edits
    assert isinstance(resumed.model[2], nn.LeakyReLU)
    expected, got = whole.model.state_dict(), resumed.model.state_dict()
    assert all(torch.equal(expected[name], got[name]) for name in expected)


def test_an_artifact_with_an_edit_loads_into_the_dense_model(recipe, task, tmp_path):
    """shrink.json has it in plain data; the loaded model has the edit and the weights."""
    dense = copy.deepcopy(task.model)
    outcome = run_stages(Subject(task.model, task.evaluator()), recipe, seed=3)
    artifact.save(
        str(tmp_path / "out"),
        model=outcome.model,
        dummy_input=task.x[:1],
        edits=outcome.edits,
        masks=None,
        metrics={},
        spec={"stages": [{"finetune": {"maxSteps": 5}}]},
        run_uid="abcd1234",
    )
    loaded = mp.load(tmp_path / "out", into=dense).eval()
    assert isinstance(loaded[2], nn.LeakyReLU)
    assert torch.equal(loaded(task.x), outcome.model.eval()(task.x))
    written = json.loads((tmp_path / "out" / "1-abcd1234" / "shrink.json").read_text())
    assert written["edits"] == [{"edit": "slope", "module": "2", "slope": 0.25}]
