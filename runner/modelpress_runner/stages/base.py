"""What a kind of stage is to the runner."""

from __future__ import annotations

from typing import Any, ClassVar, Generic, TypeVar

from modelpress.api.v1alpha1 import ApiModel
from modelpress_runner.methods.context import Step
from modelpress_runner.subject.subject import Subject

B = TypeVar("B", bound=ApiModel)


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

    def steps(self, block: B, index: int) -> list[Step]:
        """The steps of stage number `index`, in order.

        Raises:
            InvalidSpecError: the block asks for what no step can do.
        """
        raise NotImplementedError

    def record(self, block: B) -> dict[str, Any]:
        """What the stage's record in metrics.json holds beside its name, counts, score and times; JSON-ready."""
        return {}
