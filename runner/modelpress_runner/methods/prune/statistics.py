"""Scores that need data: collected from passes over the frozen model, alike on every rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch

from modelpress.api.v1alpha1 import Prune
from modelpress.api.v1alpha1.algorithms import Algorithm, algorithm
from modelpress_runner.errors import CompressionError, InvalidModelError, InvalidSpecError
from modelpress_runner.methods.context import StageContext
from modelpress_runner.methods.prune.patterns import CHANNEL
from modelpress_runner.methods.prune.protocol import CompensatingMethod, DataDrivenMethod
from modelpress_runner.methods.prune.registry import method
from modelpress_runner.methods.prune.selection import Choice, Selection
from modelpress_runner.passes.collectors import Collector, Pass
from modelpress_runner.passes.run import Kind, Sources, run_pass
from modelpress_runner.runtime import rng

NO_DUMMY_INPUT = (
    "shrinking needs a dummy_input to find out which channels depend on each other; give the evaluator one, or set "
    "shrink: false"
)
_BYTES = 1 << 30  # of what compensating methods collect at a time
_COLLECTING = 2**30  # part of the seed: the streams of collecting are others than those of the recipe's steps

Scores = Mapping[str, torch.Tensor]  # of modules by name, as PruneMethod.score gives them


def check_needs(prune: Prune, path: str, sources: Sources, dummy_input: object) -> None:
    """Checks that what the stage's methods need is there; `path` is that of the stage (spec.stages[0].prune).

    Raises:
        InvalidSpecError: it is not.
    """
    evaluator = sources.evaluator
    for number, entry in enumerate(prune.config_list):
        if entry.exclude:
            continue
        where = f"{path}.algorithm" if entry.algorithm is None else f"{path}.configList[{number}].algorithm"
        pruner = method(entry.algorithm or prune.algorithm)
        needs = pruner.facts.needs
        if pruner.facts.data_driven:
            if evaluator is not None:
                evaluator.on_stage_begin("prune", pruner.name)
            _check_data(pruner.facts, sources, where)
        if "evaluate" in needs and (evaluator is None or not evaluator.can_evaluate):
            missing = "an evaluator" if evaluator is None else evaluator.evaluate_needs
            raise InvalidSpecError(f"{pruner.name} evaluates the model; give {missing}", where)
        structured = pruner.structured or (entry.pattern or prune.pattern) == CHANNEL
        if prune.shrink and structured and dummy_input is None:
            raise InvalidSpecError(NO_DUMMY_INPUT, f"{path}.shrink")
        if "dummy_input" in needs and dummy_input is None:
            raise InvalidSpecError(f"{pruner.name} runs the model; give the evaluator a dummy_input", where)


def _check_data(row: Algorithm, sources: Sources, path: str) -> None:
    of = "training steps" if "gradients" in row.needs else "a pass over data"
    try:
        missing = sources.missing(row.needs)
    except InvalidModelError as error:
        raise InvalidModelError(f"{row.name} scores by the {row.data} of {of}, but {error}", path) from error
    if missing is not None:
        raise InvalidSpecError(
            f"{row.name} scores by the {row.data} of {of}, but {missing}, or take an algorithm that looks at weights "
            "only, such as l1",
            path,
        )


def is_data_driven(choice: Choice) -> bool:
    """Whether the scores of a module are to be collected."""
    return algorithm("prune", choice.algorithm).data_driven


def in_turn(model: torch.nn.Module, selection: Selection) -> list[frozenset[str]]:
    """The selected modules in sets that are pruned one behind the other; []: all at once.

    Those that compensate, of every block of the model (what has one number in a list) together, as many as _BYTES have
    room for; the others before them. A ranking across layers needs all of them at once.
    """
    alone = [
        choice
        for choice in selection.choices.values()
        if method(choice.algorithm).compensates and not choice.structured and choice.scope == "local"
    ]
    others = frozenset(selection.choices) - {choice.module for choice in alone}
    sets: list[list[str]] = []
    last, room = None, 0
    for choice in alone:
        pruner = cast(CompensatingMethod, method(choice.algorithm))
        block = _block(choice.module)
        try:
            size = pruner.bytes(model.get_submodule(choice.module))
        except InvalidModelError:
            size = 0  # which is said where its scores are collected
        if block != last or room + size > _BYTES:
            sets.append([])
            room = 0
        sets[-1].append(choice.module)
        last, room = block, room + size
    return [each for each in (others, *map(frozenset, sets)) if each] if alone else []


def _block(module: str) -> str:
    """`encoder.layer.3` of `encoder.layer.3.output.dense`; of a module in no list its own name."""
    parts = module.split(".")
    end = next((number for number, part in enumerate(parts) if part.isdigit()), len(parts))
    return ".".join(parts[: end + 1])


def collector(choice: Choice, model: torch.nn.Module, data: Pass, path: str) -> Collector:
    """What collects the scores of a module whose method is data-driven; `path` is that of the stage.

    Raises:
        InvalidSpecError: the module cannot be scored.
    """
    pruner = cast(DataDrivenMethod, method(choice.algorithm))
    try:
        return pruner.collector(choice.module, model.get_submodule(choice.module), data)
    except InvalidModelError as error:
        raise InvalidSpecError(str(error), f"{path}.configList[{choice.entry}]") from error


def collect(context: StageContext, selection: Selection, steps: int | None, part: tuple[int, int], path: str) -> Scores:
    """The scores of all selected modules whose method is data-driven; nothing runs if there is none.

    Methods that need the same kind of pass share one. The model keeps every bit of its state. Equal seeds and `part`
    (stage and round) see the same random numbers, so a round that is repeated after a restart gives the same scores.
    The sums are taken in float64 over all ranks, with the same bits on each.

    Args:
        steps: batches, or optimizer steps on every rank, to go over at most; None: as passes.run.run_pass says.
        path: of the stage, for messages.

    Raises:
        InvalidSpecError: a module cannot be scored, or there is nothing to score by.
        CompressionError: a module gets no gradient, or one that is not finite, or training makes no steps.
        UserCodeError: the user's code raised.
        Stopped: the run should end.
    """
    sources = Sources(context.evaluator, context.calibration_data)
    by_kind: dict[Kind, list[Choice]] = {}
    for choice in filter(is_data_driven, selection.choices.values()):
        row = algorithm("prune", choice.algorithm)
        if context.evaluator is not None:
            context.evaluator.on_stage_begin("prune", choice.algorithm)
        kind = sources.kind(row.needs)
        if kind is None:
            _check_data(row, sources, f"{path}.algorithm")
            raise AssertionError
        if kind is Kind.TRAINING and "gradients" not in row.needs:
            context.note(
                f"{row.name} scored by the {row.data} of training steps, as there is neither calibration data nor an "
                "evaluation"
            )
        by_kind.setdefault(kind, []).append(choice)
    scores: dict[str, torch.Tensor] = {}
    for kind, choices in by_kind.items():
        scores |= _pass(context, sources, kind, choices, steps, part, path)
    return scores


def _pass(
    context: StageContext,
    sources: Sources,
    kind: Kind,
    choices: Sequence[Choice],
    steps: int | None,
    part: tuple[int, int],
    path: str,
) -> dict[str, torch.Tensor]:
    if sources.evaluator is not None:
        sources.evaluator.on_stage_begin("prune", choices[0].algorithm)
    stage, number = part
    try:
        collectors, count = run_pass(
            context.model,
            sources,
            kind,
            lambda data: {choice.module: collector(choice, context.model, data, path) for choice in choices},
            batches=steps,
            seed=rng.derive(rng.derive(context.seed, _COLLECTING + stage), number),
            stop=context.stop,
        )
        scores = {name: each.compute() for name, each in collectors.items()}
    except (CompressionError, InvalidModelError) as error:
        raise error if error.path else type(error)(str(error), f"{path}.algorithm") from error
    context.report(f"scored {len(scores)} modules by {count} {kind}")
    return scores
