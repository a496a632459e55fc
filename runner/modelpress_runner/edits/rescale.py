"""Norms by the root of a mean of squares that keep what they gave when channels that are zero leave them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import nn

from modelpress_runner.edits.base import Edit, register
from modelpress_runner.edits.masks import Masks
from modelpress_runner.errors import InvalidModelError


@register
@dataclass(frozen=True)
class Rescale(Edit):
    """The norm `module` (RMSNorm, Zhang and Sennrich 2019, arXiv 1910.07467) has lost channels that are zero.

    w x / sqrt(S / d + eps), S being the sum of the squares of x, is the same with d' for d if w becomes w sqrt(d / d')
    and eps becomes eps d / d'.

    Attributes:
        parameter: w is `offset` plus this; Gemma's offset is 1.
        epsilon: the attribute that is eps; None: there is none to speak of.
        before: d.
        after: d'.
    """

    kind: ClassVar[str] = "rescale"

    module: str
    parameter: str
    epsilon: str | None
    offset: int
    before: int
    after: int

    def apply(self, model: nn.Module, masks: Masks | None = None) -> None:
        """As Edit.apply; masks are none of its business."""
        try:
            norm = model.get_submodule(self.module)
        except AttributeError:
            norm = None
        weight = norm._parameters.get(self.parameter) if norm is not None else None
        if norm is None or weight is None or weight.numel() != self.after:
            raise InvalidModelError(
                f"'{self.module}' has no parameter '{self.parameter}' of {self.after} channels; the model is not the "
                "one that was shrunk"
            )
        self.apply_epsilon(norm)
        scaled = self.scaled(weight.detach())
        setattr(norm, self.parameter, nn.Parameter(scaled, requires_grad=weight.requires_grad))

    def apply_epsilon(self, norm: nn.Module) -> None:
        """Changes the number alone.

        Raises:
            InvalidModelError: the module has no such number.
        """
        if self.epsilon is None:
            return
        known = vars(norm).get(self.epsilon)
        if type(known) is not float:
            raise InvalidModelError(
                f"'{self.module}' has no number '{self.epsilon}'; the model is not the one that was shrunk"
            )
        vars(norm)[self.epsilon] = known * self.before / self.after

    def scaled(self, weight: torch.Tensor) -> torch.Tensor:
        """What becomes of a weight; a new tensor."""
        factor = (self.before / self.after) ** 0.5
        scaled: torch.Tensor = (weight + self.offset) * factor - self.offset
        return scaled

    def to_plain(self) -> dict[str, Any]:
        """{"module", "parameter", "epsilon", "offset", "before", "after"}"""
        return {
            "module": self.module,
            "parameter": self.parameter,
            "epsilon": self.epsilon,
            "offset": self.offset,
            "before": self.before,
            "after": self.after,
        }

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Self:
        """As Edit.from_plain."""
        module, parameter, epsilon = plain.get("module"), plain.get("parameter"), plain.get("epsilon")
        offset, before, after = plain.get("offset"), plain.get("before"), plain.get("after")
        if (
            not isinstance(module, str)
            or not isinstance(parameter, str)
            or not (epsilon is None or isinstance(epsilon, str))
            or type(offset) is not int
            or type(before) is not int
            or type(after) is not int
            or offset not in (0, 1)
            or not 0 < after < before
        ):
            raise ValueError(
                "it needs module, parameter, epsilon (a name or null), offset (0 or 1), before and after (fewer)"
            )
        return cls(module, parameter, epsilon, offset, before, after)
