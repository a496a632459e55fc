"""Terms in the loss that prepare pruning, and weights that are put back: numbers by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import modelpress as mp
from modelpress.api.v1alpha1 import Prune, Stage
from modelpress_runner.engine.run import run_stages
from modelpress_runner.methods.context import StageContext, Transform
from modelpress_runner.methods.procedure import plain_state
from modelpress_runner.methods.prune.penalties import ADMM
from modelpress_runner.stages.prune import KIND
from modelpress_runner.subject.subject import Subject


def evaluator(slope: float = 0.0, steps_an_epoch: int = 1) -> mp.TorchEvaluator:
    """Steps of SGD at .1; the loss grows by `slope` with every parameter, so each loses a tenth of it a step."""

    def training_func(model: Any, optimizer: Any, step: Any, scheduler: Any, max_steps: Any, max_epochs: Any) -> None:
        for _ in range(max_steps or max_epochs * steps_an_epoch):
            optimizer.zero_grad()
            step(torch.ones(2, 2), model).backward()
            optimizer.step()

    def training_step(batch: Any, model: Any) -> Any:
        return slope * sum(parameter.sum() for parameter in model.parameters()) + 0 * model(batch).sum()

    return mp.TorchEvaluator(training_func, lambda params: torch.optim.SGD(params, lr=0.1), training_step)


def run(model: nn.Module, *stages: dict[str, Any], slope: float = 0.0) -> nn.Module:
    """The model after some stages."""
    recipe = [Stage.model_validate(stage) for stage in stages]
    return run_stages(Subject(model, evaluator(slope)), recipe, seed=0, scores=False).model


def linear(rows: list[list[float]]) -> nn.Linear:
    """Without a bias."""
    made = nn.Linear(len(rows[0]), len(rows), bias=False)
    with torch.no_grad():
        made.weight.copy_(torch.tensor(rows))
    return made


def test_slim_drives_factors_towards_zero() -> None:
    """1 and 2 lose .1 * .5 in each of three steps; the smaller goes."""
    norm = nn.BatchNorm1d(2)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([2.0, 1.0]))
    block = {"algorithm": "slim", "shrink": False, "sparsify": {"strength": 0.5, "maxSteps": 3}}
    model: Any = run(nn.Sequential(norm), {"prune": {**block, "configList": [{"sparsity": 0.5}]}})
    assert model[0].weight.tolist() == pytest.approx([1.85, 0.0])


def test_a_group_lasso_shortens_channels() -> None:
    """(3, 4) by .1 of its direction a step, (0, 2) alike; excluded modules keep what they have."""
    model = nn.Sequential(linear([[3.0, 4.0], [0.0, 2.0]]), linear([[1.0, 1.0]]))
    block = {"shrink": False, "sparsify": {"penalty": "group_lasso", "strength": 1.0, "epochs": 1}}
    entries = [{"opNames": ["0"], "sparsity": 0.0}]
    made: Any = run(model, {"prune": {**block, "configList": entries}})
    assert [made[0].weight[row].tolist() for row in (0, 1)] == [pytest.approx([2.94, 3.92]), pytest.approx([0.0, 1.9])]
    assert made[1].weight.tolist() == [[1.0, 1.0]]


def test_admm_by_hand() -> None:
    """W = (1, 3) at .5: Z = (0, 3), U = 0. One step of .1 towards Z - U: .9; Z = (0, 3), U = (.9, 0); then .9 - .18."""
    block = {"algorithm": "level", "shrink": False}
    sparsify = {"penalty": "admm", "strength": 1.0, "frequency": 1}
    for steps, wanted in ((1, 0.9), (2, 0.72)):
        layer = linear([[1.0, 3.0]])
        seen: list[list[float]] = []
        update = ADMM._update

        def look(self: Any, seen: Any = seen, layer: Any = layer, update: Any = update) -> None:
            update(self)
            seen.append(layer.weight[0].tolist())

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(ADMM, "_update", look)
            entry = {"sparsity": 0.5}
            stage = {"prune": {**block, "sparsify": {**sparsify, "maxSteps": steps}, "configList": [entry]}}
            made: Any = run(nn.Sequential(layer), stage)
        assert seen[steps] == pytest.approx([wanted, 3.0])
        assert made[0].weight.tolist() == [[0.0, 3.0]]


def test_along_with_a_training_the_term_ends_with_the_schedule() -> None:
    """Factors lose .05 in the first two of four steps; pruned after the second."""
    norm = nn.BatchNorm1d(2)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([2.0, 1.0]))
    block = {"algorithm": "slim", "shrink": False, "sparsify": {"strength": 0.5}, "schedule": {"startStep": 2}}
    part = {"prune": {**block, "configList": [{"sparsity": 0.5}]}}
    model: Any = run(nn.Sequential(norm), {"together": {"maxSteps": 4, "of": [part]}})
    assert model[0].weight.tolist() == pytest.approx([1.9, 0.0])


TICKET = {
    "algorithm": "level",
    "shrink": False,
    "configList": [{"sparsity": 0.75}],
    "schedule": {"type": "exp", "rounds": 2, "rewindTo": 0, "train": {"maxSteps": 3}},
}


@pytest.mark.parametrize(("rewind_to", "before"), [(0, 0.0), (2, 0.2)])
def test_a_lottery_ticket_trains_what_is_left_from_where_it_began(rewind_to: int, before: float) -> None:
    """Each step takes .1: the weight that is left has gone from its kept value through the last three steps only.

    exp to .75 by two rounds removes half, then half of what is left.
    """
    layer = linear([[1.0, 2.0, 4.0, 3.0]])
    layer.register_buffer("count", torch.tensor(7.0))
    block = {**TICKET, "schedule": {**TICKET["schedule"], "rewindTo": rewind_to}}  # type: ignore[dict-item]

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.layer(torch.cat([x, x], dim=1))
            return out

    model: Any = run(Net(), {"prune": block}, slope=1.0)
    assert model.layer.weight.tolist() == [pytest.approx([0.0, 0.0, 4.0 - before - 0.3, 0.0])]


def test_kept_weights_are_in_the_state() -> None:
    """A procedure that goes on from its state puts back what was kept before."""
    procedure = KIND.procedure(Prune.model_validate(TICKET), 0)
    context = StageContext(nn.Sequential(linear([[1.0, 2.0, 4.0, 3.0]])), None, None, 0)
    step = procedure.next(None)
    assert isinstance(step, Transform)
    step.apply(context)
    state = plain_state(procedure)
    again = KIND.procedure(Prune.model_validate(TICKET), 0)
    again.load_state_dict(state)
    with torch.no_grad():
        context.model[0].weight.add_(10.0)  # type: ignore[index]
    labels = []
    while (following := again.next(None)) is not None:
        labels.append(following.label)
        if isinstance(following, Transform):
            following.apply(context)
    assert labels[:4] == [
        "train before round 1",
        "prune round 1 of 2",
        "rewind after prune round 1 of 2",
        "train after prune round 1 of 2",
    ]
    assert context.model[0].weight.tolist() == [[0.0, 0.0, 4.0, 0.0]]  # type: ignore[index]
