"""Modules of a list that go: the experts of a mixture that holds each as a module of its own."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from torch import nn

from modelpress_runner.edits.base import Edit, register
from modelpress_runner.edits.masks import Masks
from modelpress_runner.errors import InvalidModelError

_NUMBERS = "_modelpress_kept"  # of a list: the numbers that what is left had in the dense model


@register
@dataclass(frozen=True)
class Entries(Edit):
    """Of the nn.ModuleList `module` the entries with the numbers `kept`, ascending, stay and are counted from 0 on."""

    kind: ClassVar[str] = "entries"

    module: str
    kept: tuple[int, ...]

    def apply(self, model: nn.Module, masks: Masks | None = None) -> None:
        """As Edit.apply; masks of what is inside follow their modules."""
        try:
            held: Any = model.get_submodule(self.module)
        except AttributeError:
            held = None
        if not isinstance(held, nn.ModuleList) or not self.kept or self.kept[-1] >= len(held):
            has = f"{len(held)} modules" if isinstance(held, nn.ModuleList) else "no list of modules"
            raise InvalidModelError(
                f"'{self.module}' has {has}, of which numbers up to {self.kept[-1] if self.kept else 'none'} are kept; "
                "the model is not the one that was shrunk"
            )
        modules, numbers = list(held), numbers_of(held)
        held._modules.clear()
        held._modules.update({str(number): modules[old] for number, old in enumerate(self.kept)})
        setattr(held, _NUMBERS, tuple(numbers[old] for old in self.kept))
        if masks is not None:
            self._renumber(masks)

    def _renumber(self, masks: Masks) -> None:
        prefix = f"{self.module}." if self.module else ""
        places = {str(old): str(number) for number, old in enumerate(self.kept)}
        found = {name: masks.pop(name) for name in list(masks) if prefix and name.startswith(prefix)}
        for name, tensors in found.items():
            old, dot, rest = name.removeprefix(prefix).partition(".")
            if old in places:
                masks[f"{prefix}{places[old]}{dot}{rest}"] = tensors

    def to_plain(self) -> dict[str, Any]:
        """{"module", "kept"}"""
        return {"module": self.module, "kept": list(self.kept)}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Self:
        """As Edit.from_plain."""
        module, kept = plain.get("module"), plain.get("kept")
        if (
            not isinstance(module, str)
            or not module
            or not isinstance(kept, list)
            or not kept
            or not all(type(number) is int and number >= 0 for number in kept)
            or not all(a < b for a, b in itertools.pairwise(kept))
        ):
            raise ValueError("it needs module and kept (ascending numbers)")
        return cls(module, tuple(kept))


def numbers_of(held: nn.ModuleList) -> tuple[int, ...]:
    """The number of each entry before any of the list went."""
    known: tuple[int, ...] = getattr(held, _NUMBERS, tuple(range(len(held))))
    return known


def shortened(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """The lists of modules of which some went, by name, with `numbers_of` them."""
    return {
        name: numbers_of(module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and _NUMBERS in vars(module)
    }
