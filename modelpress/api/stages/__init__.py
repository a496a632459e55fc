"""The kinds of stages that a recipe may hold, by the name of their block.

A further kind is one object: `register(MyRules())`, in a module that an entry point of the group `modelpress.plugins`
names, so that every process of modelpress loads it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from modelpress.api.v1alpha1 import ApiModel, FolderSource, Source, Stage, Together, TogetherPart

from .base import StageRules
from .distill import DistillRules
from .distill_blocks import DistillBlocksRules
from .drop import DropExpertsRules, DropLayersRules
from .finetune import FinetuneRules
from .mixed_precision import MixedPrecisionRules
from .prune import PruneRules
from .quantize import QuantizeRules
from .together import TogetherRules

_SHIPPED = (
    PruneRules(),
    DropLayersRules(),
    DropExpertsRules(),
    FinetuneRules(),
    DistillRules(),
    DistillBlocksRules(),
    QuantizeRules(),
    MixedPrecisionRules(),
    TogetherRules(),
)
_KINDS: dict[str, StageRules[Any]] = {rules.name: rules for rules in _SHIPPED}


def rules(name: str) -> StageRules[Any]:
    """What is known of the kind of stage whose block is called `name`; KeyError if there is none."""
    return _KINDS[name]


def freezes(known: StageRules[Any], block: ApiModel) -> bool:
    """Whether weights have few bits behind a stage: it makes them so, or a part of it."""
    parts = block.of if isinstance(block, Together) else []
    return known.freezes or any(rules(part.method).freezes for part in parts)


def sources(stages: Sequence[Stage], path: str) -> Iterator[tuple[str, Source | FolderSource]]:
    """Files and folders that a recipe's stages read beside the job's own, each with its field below `path`."""
    for index, stage in enumerate(stages):
        yield from rules(stage.method).sources(stage.block, f"{path}[{index}].{stage.method}")


def kinds() -> tuple[str, ...]:
    """The names of all kinds, shipped ones first."""
    return tuple(_KINDS)


def register(kind: StageRules[Any]) -> None:
    """Makes a further kind of stage known: recipes may hold its block from now on, as a stage and, where it goes along
    with a training, as a part of a together.

    Raises:
        ValueError: there is another kind of this name.
    """
    if kind.name in _KINDS:
        if type(_KINDS[kind.name]) is type(kind):
            return
        raise ValueError(f"there is a kind of stage called {kind.name!r} already")
    if kind.goes_along:
        TogetherPart.add_method(kind.name, kind.block)
    Stage.add_method(kind.name, kind.block)
    _KINDS[kind.name] = kind


__all__ = ["StageRules", "freezes", "kinds", "register", "rules", "sources"]
