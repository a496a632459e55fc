"""Gives a method the pass over data that it needs, from whatever there is: the one way to activations and gradients."""

from __future__ import annotations

import enum
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import nn

from modelpress.api.v1alpha1 import Scores
from modelpress.api.v1alpha1.algorithms import Need
from modelpress_runner.evaluators.base import Evaluator
from modelpress_runner.passes.collectors import Collector, Pass, TrainingPass
from modelpress_runner.passes.forward import ForwardPass, check_calibration, over_calibration, over_evaluation
from modelpress_runner.passes.frozen import scoring_passes
from modelpress_runner.runtime import rng

DEFAULT_STEPS = Scores().steps  # of training: nobody knows how many there are
_CALIBRATION = "calibration_data (data.calibration in a recipe, mp.Subject(calibration_data=...) from an entrypoint)"

C = TypeVar("C", bound=Collector)


class Kind(enum.StrEnum):
    """What a pass goes over. Only training has gradients."""

    CALIBRATION = "batches of the calibration data"
    EVALUATION = "batches of the evaluation"
    TRAINING = "training steps"


@dataclass(frozen=True)
class Sources:
    """What passes can go over.

    Attributes:
        evaluator: its training and its evaluation, as far as it can.
        calibration_data: batches as the model takes them, that can be gone through again.
    """

    evaluator: Evaluator | None = None
    calibration_data: Iterable[Any] | None = None

    def kind(self, needs: Collection[Need]) -> Kind | None:
        """The kind of pass that gives what is needed; None: there is nothing that does.

        Gradients come from training. Activations come from the calibration data, else from the evaluation, else from
        training.
        """
        trains = self.evaluator is not None and self.evaluator.can_train
        if "gradients" not in needs:
            if self.calibration_data is not None:
                return Kind.CALIBRATION
            if self.evaluator is not None and self.evaluator.can_evaluate:
                return Kind.EVALUATION
        return Kind.TRAINING if trains else None

    def missing(self, needs: Collection[Need]) -> str | None:
        """What is missing for a pass that gives what is needed, and what to do, as a clause; None: nothing is.

        Raises:
            InvalidModelError: there are calibration data, and they are of no use.
        """
        if self.calibration_data is not None and "gradients" not in needs:
            check_calibration(self.calibration_data)
        if self.kind(needs) is not None:
            return None
        if "gradients" in needs:
            if self.evaluator is None:
                return "there is no evaluator; give one that can train"
            return f"the evaluator cannot train; give it {self.evaluator.train_needs}"
        if self.evaluator is None:
            return f"there is neither calibration data nor an evaluator; give {_CALIBRATION}, or an evaluator"
        return (
            "there is no calibration data, and the evaluator can neither evaluate nor train; give "
            f"{_CALIBRATION}, or give the evaluator {self.evaluator.evaluate_needs}"
        )


def run_pass(
    model: nn.Module,
    sources: Sources,
    kind: Kind,
    make: Callable[[Pass], Mapping[str, C]],
    *,
    batches: int | None,
    seed: int,
    stop: Callable[[], None] = lambda: None,
) -> tuple[Mapping[str, C], int]:
    """Lets collectors look at a pass over `model`, which keeps every bit of its state, as do the generators.

    Args:
        model: the evaluator must not be bound.
        kind: what the pass goes over; the sources have it.
        make: makes the collectors for the pass, by any name.
        batches: how many batches, or training steps on every rank, it goes over at most; None: all of them, of
            training DEFAULT_STEPS.
        seed: equal seeds see the same random numbers.
        stop: called before each batch; raises Stopped to end the run.

    Returns:
        The collectors, synced: with what all ranks have gathered together; and how many batches there were.

    Raises:
        InvalidModelError: `make` raised it, or the calibration data is of no use.
        CompressionError: training makes too few steps, or evaluation does not call the model.
        UserCodeError: the user's code raised.
        Stopped: the run should end.
    """
    evaluator = sources.evaluator
    with rng.fork_rng(seed):
        if kind is Kind.TRAINING:
            assert evaluator is not None
            collectors, count = _over_training(model, evaluator, make, batches or DEFAULT_STEPS, stop)
        else:
            collectors, count = _over_calls(model, sources, kind, make, batches, stop)
        for each in collectors.values():
            each.sync()
    return collectors, count


def _over_training(
    model: nn.Module,
    evaluator: Evaluator,
    make: Callable[[Pass], Mapping[str, C]],
    steps: int,
    stop: Callable[[], None],
) -> tuple[Mapping[str, C], int]:
    collectors = make(TrainingPass(evaluator))

    def start() -> None:
        for each in collectors.values():
            each.attach()

    def step() -> None:
        with evaluator.gathered_parameters():
            for each in collectors.values():
                each.update()

    scoring_passes(model, evaluator, steps, before_step=step, bound=start, stop=stop)
    return collectors, steps


def _over_calls(
    model: nn.Module,
    sources: Sources,
    kind: Kind,
    make: Callable[[Pass], Mapping[str, C]],
    batches: int | None,
    stop: Callable[[], None],
) -> tuple[Mapping[str, C], int]:
    data = ForwardPass(model)
    collectors = make(data)

    def update() -> None:
        for each in collectors.values():
            each.update()

    try:
        for each in collectors.values():
            each.attach()
        if kind is Kind.CALIBRATION:
            assert sources.calibration_data is not None
            count = over_calibration(model, sources.calibration_data, batches, update, sources.evaluator, stop)
        else:
            assert sources.evaluator is not None
            count = over_evaluation(model, sources.evaluator, batches, update, data.close, stop)
    finally:
        data.close()
    return collectors, count
