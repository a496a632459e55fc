"""Scores that need data: collected from training steps over the frozen model, alike on every rank."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch

from modelpress.api.v1alpha1 import Prune
from modelpress.api.v1alpha1 import Scores as ScoreSettings
from modelpress.api.v1alpha1.algorithms import algorithm
from modelpress_runner.errors import CompressionError, InvalidModelError, InvalidSpecError
from modelpress_runner.evaluators.base import Evaluator
from modelpress_runner.methods.context import StageContext
from modelpress_runner.methods.prune.protocol import Collector, DataDrivenMethod
from modelpress_runner.methods.prune.registry import method
from modelpress_runner.methods.prune.selection import Choice, Selection
from modelpress_runner.runtime import distributed as ranks
from modelpress_runner.runtime import rng
from modelpress_runner.training.frozen import scoring_passes

DEFAULT_STEPS = ScoreSettings().steps
NO_DUMMY_INPUT = (
    "shrinking needs a dummy_input to find out which channels depend on each other; give the evaluator one, or set "
    "shrink: false"
)
_COLLECTING = 2**30  # part of the seed: the streams of collecting are others than those of the recipe's steps

Scores = Mapping[str, torch.Tensor]  # of modules by name, as PruneMethod.score gives them


def check_needs(prune: Prune, path: str, evaluator: Evaluator | None, dummy_input: object) -> None:
    """Checks that what the stage's methods need is there; `path` is that of the stage (spec.stages[0].prune).

    Raises:
        InvalidSpecError: it is not.
    """
    for number, entry in enumerate(prune.config_list):
        if entry.exclude:
            continue
        where = f"{path}.algorithm" if entry.algorithm is None else f"{path}.configList[{number}].algorithm"
        pruner = method(entry.algorithm or prune.algorithm)
        needs = pruner.facts.needs
        if pruner.facts.data_driven:
            what = f"{pruner.name} scores by the {pruner.facts.data} of training steps"
            if evaluator is None:
                raise InvalidSpecError(f"{what}, but there is no evaluator; give one that can train", where)
            evaluator.on_stage_begin("prune", pruner.name)
            if not evaluator.can_train:
                raise InvalidSpecError(
                    f"{what}, but the evaluator cannot train; give it {evaluator.train_needs}, or take an algorithm "
                    "that looks at weights only, such as l1",
                    where,
                )
        if "evaluate" in needs and (evaluator is None or not evaluator.can_evaluate):
            missing = "an evaluator" if evaluator is None else evaluator.evaluate_needs
            raise InvalidSpecError(f"{pruner.name} evaluates the model; give {missing}", where)
        if prune.shrink and pruner.structured and dummy_input is None:
            raise InvalidSpecError(NO_DUMMY_INPUT, f"{path}.shrink")
        if "dummy_input" in needs and dummy_input is None:
            raise InvalidSpecError(f"{pruner.name} runs the model; give the evaluator a dummy_input", where)


def is_data_driven(choice: Choice) -> bool:
    """Whether the scores of a module are to be collected."""
    return algorithm("prune", choice.algorithm).data_driven


def collect(context: StageContext, selection: Selection, steps: int, part: tuple[int, int], path: str) -> Scores:
    """The scores of all selected modules whose method is data-driven; nothing runs if there is none.

    The model keeps every bit of its state. Equal seeds and `part` (stage and round) see the same random numbers, so a
    round that is repeated after a restart gives the same scores. The sums are taken in float64 and averaged over ranks,
    with the same bits on each.

    Args:
        steps: optimizer steps to go over, on every rank.
        path: of the stage, for messages.

    Raises:
        InvalidSpecError: a module cannot be scored, or nothing can train.
        CompressionError: a module gets no gradient, or one that is not finite, or training makes no steps.
        UserCodeError: the user's training raised.
        Stopped: the run should end.
    """
    choices = [choice for choice in selection.choices.values() if is_data_driven(choice)]
    if not choices:
        return {}
    evaluator = context.evaluator
    if evaluator is None:
        raise InvalidSpecError(
            f"{choices[0].algorithm} scores by training steps, but nothing here can train; give an evaluator that can",
            f"{path}.algorithm",
        )
    collectors: dict[str, Collector] = {}
    for choice in choices:
        pruner = cast(DataDrivenMethod, method(choice.algorithm))
        try:
            collectors[choice.module] = pruner.collector(
                choice.module, context.model.get_submodule(choice.module), evaluator
            )
        except InvalidModelError as error:
            raise InvalidSpecError(str(error), f"{path}.configList[{choice.entry}]") from error

    def start() -> None:
        for each in collectors.values():
            each.attach()

    def step() -> None:
        with evaluator.gathered_parameters():
            for each in collectors.values():
                each.update()

    evaluator.on_stage_begin("prune", choices[0].algorithm)
    stage, number = part
    try:
        with rng.fork_rng(rng.derive(rng.derive(context.seed, _COLLECTING + stage), number)):
            scoring_passes(context.model, evaluator, steps, before_step=step, bound=start, stop=context.stop)
        scores = {name: ranks.all_reduce_mean(each.compute()) for name, each in collectors.items()}
    except CompressionError as error:
        raise error if error.path else CompressionError(str(error), f"{path}.algorithm") from error
    context.report(f"scored {len(scores)} modules by {steps} training steps")
    return scores
