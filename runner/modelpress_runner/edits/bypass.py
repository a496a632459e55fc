"""Whole layers that go: residual blocks without which a model still runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import nn

from modelpress_runner.edits.base import Edit, register
from modelpress_runner.edits.masks import Masks
from modelpress_runner.errors import InvalidModelError


class Bypassed(nn.Module):
    """In the place of a residual block: gives what it takes first, as the block would if what it adds were zero.

    Args:
        alone: whether the block gave a tensor; else the tensor is the first of `places` values, the others None.
        places: how many values the block gave.
    """

    def __init__(self, alone: bool = True, places: int = 1) -> None:
        super().__init__()
        self.alone, self.places = alone, places

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The first tensor among the arguments."""
        first = next(value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor))
        return first if self.alone else (first, *[None] * (self.places - 1))


@register
@dataclass(frozen=True)
class Bypass(Edit):
    """The residual block `module` goes. What is left in its place keeps the numbers of the blocks behind it.

    Attributes:
        alone, places: as of `Bypassed`.
    """

    kind: ClassVar[str] = "bypass"

    module: str
    alone: bool = True
    places: int = 1

    def apply(self, model: nn.Module, masks: Masks | None = None) -> None:
        """As Edit.apply; masks of what is inside go along."""
        path, _, name = self.module.rpartition(".")
        try:
            parent = model.get_submodule(path)
            block = model.get_submodule(self.module)
        except AttributeError:
            block = None
        if block is None or not self.module or isinstance(block, Bypassed):
            raise InvalidModelError(f"the model has no block '{self.module}'; it is not the one that was shrunk")
        gone = {f"{self.module}.{inner}" if inner else self.module for inner, _ in block.named_modules()}
        bypassed = Bypassed(self.alone, self.places)
        # Loops over layers read what kind each is (attention_type) off itself.
        for key, value in vars(block).items():
            if type(value) in (bool, int, float, str) and not key.startswith("_"):
                vars(bypassed).setdefault(key, value)
        bypassed.train(block.training)
        parent._modules[name] = bypassed
        for each in gone & (masks or {}).keys():
            assert masks is not None
            del masks[each]

    def to_plain(self) -> dict[str, Any]:
        """{"module", "alone", "places"}"""
        return {"module": self.module, "alone": self.alone, "places": self.places}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Self:
        """As Edit.from_plain."""
        module, alone, places = plain.get("module"), plain.get("alone"), plain.get("places")
        if (
            not isinstance(module, str)
            or not module
            or type(alone) is not bool
            or type(places) is not int
            or places < 1
        ):
            raise ValueError("it needs module, alone (true or false) and places (a number from 1 on)")
        return cls(module, alone, places)
