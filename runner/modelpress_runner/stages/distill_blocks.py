"""The distillBlocks stage: one transform, in which blocks learn one after another."""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from modelpress.api.v1alpha1 import DistillBlocks
from modelpress_runner.errors import InvalidSpecError
from modelpress_runner.methods.context import StageContext, Step, Transform
from modelpress_runner.methods.distill.blocks import BlockDistillation, layers_of, told
from modelpress_runner.methods.distill.layers import check_name
from modelpress_runner.passes.run import Sources
from modelpress_runner.stages.base import StageKind
from modelpress_runner.subject.subject import Subject


class DistillBlocksKind(StageKind[DistillBlocks]):
    """Blocks learn from their twins in the dense model."""

    name = "distillBlocks"
    recovers = True

    def check(self, block: DistillBlocks, path: str, subject: Subject) -> None:
        """Its blocks are there, and calibration data."""
        _names(block, subject.model, path)
        if subject.calibration_data is None:
            raise InvalidSpecError(
                "blocks learn on calibration data, and there is none; give calibration_data (data.calibration in a "
                "recipe, mp.Subject(calibration_data=...) from an entrypoint)",
                path,
            )
        Sources(subject.evaluator, subject.calibration_data).missing(frozenset({"activations"}))

    def needs_dense(self, block: DistillBlocks, subject: Subject) -> bool:
        """For the twins."""
        return True

    def steps(self, block: DistillBlocks, index: int) -> list[Step]:
        """All of it in one."""
        path = f"spec.stages[{index}].distillBlocks"

        def learn(context: StageContext) -> None:
            names = _names(block, context.model, path)
            work = BlockDistillation(context, names, block.steps, block.learning_rate, path)
            results = work.run()
            context.note(told(results, work.notes))

        return [Transform("distillBlocks", learn)]

    def record(self, block: DistillBlocks) -> dict[str, Any]:
        """How much each of them learns."""
        return {"stepsOfEachBlock": block.steps, "learningRate": block.learning_rate}


def _names(block: DistillBlocks, model: nn.Module, path: str) -> list[str]:
    """Names of the blocks.

    Raises:
        InvalidSpecError: the model has none of a name, one lies in another, or nothing says which they are.
    """
    known = [name for name, _ in model.named_modules() if name]
    names: list[str] = []
    for number, name in enumerate(block.op_names or ()):
        check_name(name, known, f"{path}.opNames[{number}]", "the model")
        names.append(name)
    for number, text in enumerate(block.op_names_re or ()):
        matched = [name for name in known if re.fullmatch(text, name)]
        if not matched:
            message = f"no module of the model has a name that {text!r} matches as a whole"
            raise InvalidSpecError(message, f"{path}.opNamesRe[{number}]")
        names += matched
    if block.op_names is None and block.op_names_re is None:
        names = layers_of(model)
        if not names:
            raise InvalidSpecError("the model has no list of alike modules; name its blocks in opNames", path)
    names = list(dict.fromkeys(names))
    for name in names:
        inner = next((each for each in names if each.startswith(f"{name}.")), None)
        if inner is not None:
            raise InvalidSpecError(f"{inner} lies in {name}, which learns as a whole; name one of them", path)
    return names


KIND = DistillBlocksKind()
