"""The together stage: one training that several stages go along with."""

from __future__ import annotations

from typing import Any

from modelpress.api.v1alpha1 import Together
from modelpress_runner import stages
from modelpress_runner.methods.context import Step, TrainingContext, Transform
from modelpress_runner.stages.base import Accompanied, StageKind
from modelpress_runner.subject.subject import Subject
from modelpress_runner.training.participants import Participant
from modelpress_runner.training.step import Training

_APART = 1 << 16  # of the parts' indices: each draws lots of its own


class TogetherKind(StageKind[Together]):
    """Trains once, with the participants of its parts in their order; then come the parts' own last steps."""

    name = "together"
    recovers = True

    def algorithm(self, block: Together) -> str | None:
        """That of the last part that has one."""
        found = [stages.kind(part.method).algorithm(part.block) for part in block.of]
        return next((each for each in reversed(found) if each is not None), None)

    def check(self, block: Together, path: str, subject: Subject) -> None:
        """As StageKind.check, of every part."""
        for number, part in enumerate(block.of):
            stages.kind(part.method).check(part.block, f"{path}.of[{number}].{part.method}", subject)

    def needs_dense(self, block: Together, subject: Subject) -> bool:
        """As StageKind.needs_dense, of any part."""
        return any(stages.kind(part.method).needs_dense(part.block, subject) for part in block.of)

    def steps(self, block: Together, index: int) -> list[Step]:
        """The training, and what the parts do before and behind it."""
        along = self.participants(block, f"spec.stages[{index}].together", index, "")
        training = Training("together", block.epochs, block.max_steps, along.participants)
        return [*along.before, training, *along.steps]

    def participants(self, block: Together, path: str, index: int, name: str) -> Accompanied:
        """Those of all parts."""
        parts = []
        for number, part in enumerate(block.of):
            label = f"{name} of[{number}].{part.method}".lstrip()
            where = f"{path}.of[{number}].{part.method}"
            parts.append(stages.kind(part.method).participants(part.block, where, index + number * _APART, label))

        def made(training: TrainingContext) -> list[Participant]:
            out: list[Participant] = []
            for part in parts:
                earlier = (*training.earlier, *out)
                out += part.participants(
                    TrainingContext(training.context, training.evaluator, training.report, earlier)
                )
            return out

        behind: list[Transform] = [step for part in parts for step in part.steps]
        before = tuple(step for part in parts for step in part.before)
        return Accompanied(made, tuple(behind), before)

    def record(self, block: Together) -> dict[str, Any]:
        """The records of the parts."""
        return {"of": [{"method": part.method, **stages.kind(part.method).record(part.block)} for part in block.of]}


KIND = TogetherKind()
