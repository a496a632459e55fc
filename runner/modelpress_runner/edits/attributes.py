"""Numbers that a module keeps of its widths: a cut changes them along with the weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from torch import nn

from modelpress_runner.edits.base import Edit, register
from modelpress_runner.edits.masks import Masks
from modelpress_runner.errors import InvalidModelError


@register
@dataclass(frozen=True)
class Attribute(Edit):
    """A whole number that a module has as an attribute, `num_heads` for one, becomes a smaller one.

    In "config.num_heads" it is one of an object that the module holds; the module gets a copy of that, because others
    may hold the same.
    """

    kind: ClassVar[str] = "attribute"

    module: str
    name: str
    value: int

    def apply(self, model: nn.Module, masks: Masks | None = None) -> None:
        """As Edit.apply."""
        try:
            own = vars(model.get_submodule(self.module))
        except AttributeError:
            own = {}
        holder, _, name = self.name.rpartition(".")
        if holder:
            held = copy.copy(own.get(holder))
            inside = vars(held) if hasattr(held, "__dict__") else {}
        else:
            inside = own
        known = inside.get(name)
        if type(known) is not int or known < self.value:
            raise InvalidModelError(
                f"'{self.module}' has no number '{self.name}' of {self.value} or more; the model is not the one that "
                "was shrunk"
            )
        inside[name] = self.value
        if holder:
            own[holder] = held

    def to_plain(self) -> dict[str, Any]:
        """{"module", "name", "value"}"""
        return {"module": self.module, "name": self.name, "value": self.value}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Self:
        """As Edit.from_plain."""
        module, name, value = plain.get("module"), plain.get("name"), plain.get("value")
        if not isinstance(module, str) or not isinstance(name, str) or type(value) is not int or value < 1:
            raise ValueError("it needs module, name and value (a number from 1 on)")
        return cls(module, name, value)
