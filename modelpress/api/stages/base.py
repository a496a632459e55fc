"""What is to be known of a kind of stage without torch: its block in YAML, and what can be wrong with it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Generic, TypeVar

from modelpress.api.errors import Problem
from modelpress.api.v1alpha1 import ApiModel, FolderSource, Source

B = TypeVar("B", bound=ApiModel)


class StageRules(Generic[B]):
    """One kind of stage, seen by validation, documents and reports. Paths are those below the spec.

    Attributes:
        name: the key of its block in YAML.
        block: the type of the block.
        runner: module and attribute of what runs it, a `modelpress_runner.stages.base.StageKind`; loaded by a runner
            only.
        goes_along: it may be part of a `together`: what runs it has participants.
        freezes: behind it weights have few bits, and nothing can train them or take them away.
    """

    name: ClassVar[str]
    block: type[B]
    runner: ClassVar[str]
    goes_along: ClassVar[bool] = False
    freezes: ClassVar[bool] = False

    def problems(self, block: B, path: str) -> Iterator[Problem]:
        """What is wrong with the block wherever it runs."""
        yield from ()

    def problems_along(self, block: B, path: str) -> Iterator[Problem]:
        """What is wrong with it where it goes along with a training that others run."""
        yield from ()

    def problems_in_loop(self, block: B, path: str) -> Iterator[Problem]:
        """What is wrong with it where a script trains in a loop of its own (model.script)."""
        yield from self.problems_along(block, path)

    def problems_outside(self, block: B, path: str) -> Iterator[Problem]:
        """What is wrong with it as a stage of a recipe whose training modelpress runs."""
        yield from ()

    def training(self, block: B) -> Iterator[str]:
        """Places below the block that ask for training; "" is the block itself."""
        yield from ()

    def shrinking(self, block: B) -> Iterator[str]:
        """Places below the block that ask for a smaller model; a loop of the user's own does that once, at its end."""
        yield from ()

    def sources(self, block: B, path: str) -> Iterator[tuple[str, Source | FolderSource]]:
        """Files and folders that it reads beside the job's own, each with its field; all are fetched beforehand."""
        yield from ()

    def sentence(self, block: Mapping[str, Any]) -> str:
        """What it did, for the model card: a clause in the past tense, from the block as plain data."""
        return self.name
