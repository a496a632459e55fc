"""The stages of a recipe as procedures, checked against what there is before anything runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from modelpress.api.v1alpha1 import ApiModel, Stage
from modelpress_runner.errors import InvalidSpecError
from modelpress_runner.evaluators.base import Evaluator
from modelpress_runner.methods.procedure import Procedure
from modelpress_runner.stages import kind
from modelpress_runner.subject.compression_module import ModuleEvaluator
from modelpress_runner.subject.subject import Subject
from modelpress_runner.training.step import Training


@dataclass(frozen=True)
class PlannedStage:
    """One stage of a recipe, ready to run.

    Attributes:
        algorithm: of this stage, or of the last one before that has one.
        record: what the kind of stage adds to its record.
        path: of its block.
        block: what the recipe says of it.
    """

    name: str
    method: str
    algorithm: str | None
    record: dict[str, Any]
    path: str
    procedure: Procedure
    block: ApiModel


def plan_stages(subject: Subject, stages: Sequence[Stage]) -> list[PlannedStage]:
    """The recipe as procedures, checked against what the evaluator can do.

    Raises:
        InvalidSpecError: a stage needs something that the evaluator or the subject does not have.
    """
    planned: list[PlannedStage] = []
    algorithm = None
    for number, stage in enumerate(_with_module_finetuning(subject.evaluator, stages)):
        path = f"spec.stages[{number}].{stage.method}"
        known, block = kind(stage.method), stage.block
        algorithm = known.algorithm(block) or algorithm
        known.check(block, path, subject)
        procedure = known.procedure(block, number)
        for step in procedure.trainings():
            check_can_train(subject.evaluator, step, stage.method, algorithm, path)
        if procedure.evaluates:
            check_can_evaluate(subject.evaluator, path)
        name = stage.name or f"{number}-{stage.method}"
        planned.append(PlannedStage(name, stage.method, algorithm, known.record(block), path, procedure, block))
    return planned


def needs_dense(subject: Subject, stages: Sequence[Stage]) -> bool:
    """Whether a stage looks at the dense model while the recipe runs."""
    return any(kind(stage.method).needs_dense(stage.block, subject) for stage in stages)


def _with_module_finetuning(evaluator: Evaluator | None, stages: Sequence[Stage]) -> list[Stage]:
    """The stages, and the finetuning that a CompressionModule asks for where the recipe has none of its own.

    It stands behind the last stage that takes weights away: what follows, a conversion for one, may not be trainable.
    """
    out = list(stages)
    if not isinstance(evaluator, ModuleEvaluator) or any(kind(stage.method).recovers for stage in out):
        return out
    removing = [number for number, stage in enumerate(out) if kind(stage.method).removes]
    algorithms = [kind(out[number].method).algorithm(out[number].block) for number in removing]
    epochs = evaluator.finetune_epochs(algorithms[-1] if algorithms else None)
    if epochs:
        place = removing[-1] + 1 if removing else len(out)
        finetuning = Stage.model_validate({"name": "post-compress-finetuning", "finetune": {"epochs": epochs}})
        out.insert(place, finetuning)
    return out


def check_can_train(evaluator: Evaluator | None, step: Training, method: str, algorithm: str | None, path: str) -> None:
    """Raises InvalidSpecError if the evaluator cannot carry out a training of the stage at `path`."""
    if evaluator is None:
        raise InvalidSpecError("this stage trains, but there is no evaluator; give one that can train", path)
    evaluator.on_stage_begin(method, algorithm)
    if not evaluator.can_train:
        raise InvalidSpecError(
            f"this stage trains, but the evaluator cannot; give it {evaluator.train_needs}, or remove the training",
            path,
        )
    if step.max_steps is not None and not evaluator.supports_max_steps:
        raise InvalidSpecError("this evaluator trains by epochs; give epochs instead of maxSteps", path)


def check_can_evaluate(evaluator: Evaluator | None, path: str) -> None:
    """Raises InvalidSpecError if nothing evaluates for the stage at `path`."""
    if evaluator is None or not evaluator.can_evaluate:
        missing = "an evaluator that can evaluate" if evaluator is None else evaluator.evaluate_needs
        raise InvalidSpecError(f"this stage goes by scores, but nothing here evaluates; give {missing}", path)
