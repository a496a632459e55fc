"""What a kind of stage is to the runner."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

from modelpress.api.v1alpha1 import ApiModel
from modelpress_runner.errors import InvalidSpecError
from modelpress_runner.methods.context import Step, TrainingContext, Transform
from modelpress_runner.methods.procedure import Procedure, StepList
from modelpress_runner.subject.subject import Subject
from modelpress_runner.training.participants import Participant

B = TypeVar("B", bound=ApiModel)


@dataclass(frozen=True)
class Accompanied:
    """What a stage does where others run the training.

    Attributes:
        participants: makes what goes along with it, for each time that it is begun or resumed.
        steps: what comes behind it, trainings not among them.
        before: what comes before it, once.
    """

    participants: Callable[[TrainingContext], list[Participant]]
    steps: tuple[Transform, ...] = ()
    before: tuple[Transform, ...] = ()


class StageKind(Generic[B]):
    """Runs the stages of one kind; the torch-free half is a `modelpress.api.stages.StageRules` of the same name.

    Attributes:
        name: the key of its block in YAML.
        removes: it takes weights away, so that the finetuning that a CompressionModule asks for comes behind it.
        recovers: it is the recipe's own training of a compressed model, which takes the place of that finetuning.
    """

    name: ClassVar[str]
    removes: ClassVar[bool] = False
    recovers: ClassVar[bool] = False

    def algorithm(self, block: B) -> str | None:
        """The algorithm that evaluators are told of, where there are several."""
        return None

    def check(self, block: B, path: str, subject: Subject) -> None:
        """Checks, before anything runs, that the subject has what the stage needs.

        Args:
            path: of the block, as in spec.stages[0].prune.

        Raises:
            InvalidSpecError: it has not.
        """

    def sizes(self, block: B) -> list[B]:
        """The block for each size of the model that the job is to make, largest first; []: it makes one."""
        return []

    def needs_dense(self, block: B, subject: Subject) -> bool:
        """Whether it looks at the dense model (StageContext.dense) while it runs."""
        return False

    def steps(self, block: B, index: int) -> list[Step]:
        """The steps of stage number `index`, in order, where they are known beforehand.

        Raises:
            InvalidSpecError: the block asks for what no step can do.
        """
        raise NotImplementedError

    def procedure(self, block: B, index: int) -> Procedure:
        """What stage number `index` does: `steps`, or steps that depend on what came of those before.

        Raises:
            InvalidSpecError: the block asks for what no step can do.
        """
        return StepList(self.steps(block, index))

    def participants(self, block: B, path: str, index: int, name: str) -> Accompanied:
        """What the stage does in the course of a training that others run: a `together`, or a loop of the user's own.

        Args:
            path: of the block.
            index: of the stage, for what draws lots.
            name: for progress and messages.

        Raises:
            InvalidSpecError: it has no place there.
        """
        raise InvalidSpecError("this stage cannot go along with a training that others run; remove it", path)

    def record(self, block: B) -> dict[str, Any]:
        """What the stage's record in metrics.json holds beside its name, counts, score and times; JSON-ready."""
        return {}
