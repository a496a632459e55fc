"""The training steps of a recipe: a session with the participants that every training needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from modelpress_runner.edits.masks import Masks
from modelpress_runner.evaluators.base import Evaluator
from modelpress_runner.training.participants import FiniteCheck, MaskKeeper, MovementCheck, Participant
from modelpress_runner.training.session import Keeper, Session


def training_session(
    model: nn.Module,
    evaluator: Evaluator,
    masks: Masks | Callable[[], Masks],
    stop: Callable[[], None] = lambda: None,
    keeper: Keeper | None = None,
    participants: Sequence[Participant] = (),
) -> Session:
    """A session in which masks stay in force, and in which what trains nothing, or to infinity, is an error.

    Args:
        model: what trains.
        evaluator: how it trains.
        masks: kept in force from the begin, after every optimizer step and at the end; or what gives them, where they
            change on the way.
        stop: raises Stopped if the run should end.
        keeper: takes checkpoints and scores.
        participants: what goes along besides, behind the masks and the checks of each step.
    """
    in_force = masks if callable(masks) else lambda: masks
    kept = MaskKeeper(model, in_force)
    rates = HighestRate(evaluator)
    moved = MovementCheck(
        lambda check: f"training changed no weight: {why_nothing_moves(check, rates, model, evaluator)}",
        in_force,
        masks_grow=bool(participants),
    )
    return Session(model, evaluator, [kept, rates, moved, *participants, FiniteCheck()], stop, keeper)


class HighestRate(Participant):
    """The highest learning rate of a training's first steps, to explain why nothing moves."""

    MOST = 1000

    def __init__(self, evaluator: Evaluator) -> None:
        self._evaluator, self.rate, self._left = evaluator, 0.0, self.MOST

    def before_step(self, step: int) -> None:
        if self.rate > 0 or not self._left:
            return
        self._left -= 1
        for optimizer in self._evaluator.optimizers():
            for group in optimizer.param_groups:
                self.rate = max(self.rate, float(group.get("lr", 1.0)))


def why_nothing_moves(check: MovementCheck, rates: HighestRate, model: nn.Module, evaluator: Evaluator) -> str:
    """The likely reason why a training changed no weight, with what to do."""
    if not check.trainable:
        return "no parameter of the model requires gradients"
    own = {id(parameter) for parameter in model.parameters()}
    held = {
        id(parameter)
        for optimizer in evaluator.optimizers()
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    if held and not held & own and not evaluator.sharded:  # which holds parts of parameters
        return (
            "the optimizer holds parameters of another model; make it with mp.trace(...) from this model's "
            "parameters, or give a function (params) -> Optimizer that uses the params it is given"
        )
    if not check.steps:
        return "it made no optimizer step; check that it uses the model, the optimizer and the limits it is given"
    if rates.rate == 0:
        return "the learning rate was zero throughout"
    return (
        "the optimizer stepped but no weight has a gradient; check that the training trains the model it is given "
        "and calls backward() on its loss"
    )
