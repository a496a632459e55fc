"""Layers that keep their weights, and compute, in half precision, between others that do not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self, cast

import torch
from torch import nn

from modelpress_runner.edits.axes import CONV, is_conv1d
from modelpress_runner.edits.base import Edit, register
from modelpress_runner.edits.masks import Masks
from modelpress_runner.errors import InvalidModelError

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class HalfLayer(nn.Module):
    """A layer in half precision. Mixed into the layer's own class.

    Attributes:
        inner_dtype: of its weights, and of what it is given.
        outer_dtype: of what it gives.
    """

    inner_dtype: torch.dtype
    outer_dtype: torch.dtype

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the layer's own, on inputs in half precision."""
        given = [_cast(each, self.inner_dtype) for each in args]
        named = {name: _cast(each, self.inner_dtype) for name, each in kwargs.items()}
        return _cast(super().forward(*given, **named), self.outer_dtype)


_MADE: dict[type[nn.Module], Any] = {}


def _class(layer: type[nn.Module]) -> Any:
    """The class of a layer in half precision, the same each time."""
    if layer not in _MADE:
        _MADE[layer] = type(f"Half{layer.__name__}", (HalfLayer, layer), {"dense_class": layer})
    return _MADE[layer]


def why_not(module: nn.Module) -> str | None:
    """Why a layer cannot be brought into half precision, as a clause; None: it can."""
    if isinstance(module, HalfLayer):
        return "is in half precision already"
    if type(module).__name__ == "NonDynamicallyQuantizableLinear":
        return "is a part of nn.MultiheadAttention, which takes its weights without calling it"
    if not isinstance(module, CONV | nn.Linear | nn.Embedding) and not is_conv1d(module):
        return f"is a {type(module).__name__}, which this version leaves as it is"
    weight = module._parameters.get("weight")
    if weight is None or weight.dtype not in (torch.float32, torch.float64):
        return "has no weight in single precision"
    if isinstance(module, nn.Embedding) and module.max_norm is not None:
        return "changes its own weight (max_norm)"
    return None


@register
@dataclass(frozen=True)
class HalfPrecision(Edit):
    """Layers get their weights, inputs and computation in half precision, and give what they gave before.

    Attributes:
        modules: by name. A parameter that several of them share stays shared.
        dtype: bf16 or fp16.
    """

    kind: ClassVar[str] = "half_precision"

    modules: tuple[str, ...]
    dtype: str

    def apply(self, model: nn.Module, masks: Masks | None = None) -> None:
        """As Edit.apply."""
        inner = DTYPES[self.dtype]
        made: dict[nn.Parameter, nn.Parameter] = {}
        for name in self.modules:
            try:
                module = model.get_submodule(name)
            except AttributeError:
                raise InvalidModelError(
                    f"the model has no module '{name}'; it is not the one that was converted"
                ) from None
            if (reason := why_not(module)) is not None:
                raise InvalidModelError(f"'{name}' {reason}; the model is not the one that was converted")
            outer = module.get_parameter("weight").dtype
            for key, parameter in module._parameters.items():
                if parameter is None or not parameter.is_floating_point():
                    continue
                if parameter not in made:
                    half = parameter.detach().to(inner)
                    made[parameter] = nn.Parameter(half, requires_grad=parameter.requires_grad)
                module._parameters[key] = made[parameter]
            module.__class__ = _class(type(module))
            half_layer = cast(HalfLayer, module)
            half_layer.inner_dtype, half_layer.outer_dtype = inner, outer
            if masks is not None and name in masks:
                masks[name] = {key: mask.to(inner) for key, mask in masks[name].items()}

    def to_plain(self) -> dict[str, Any]:
        """{"modules", "dtype"}"""
        return {"modules": list(self.modules), "dtype": self.dtype}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Self:
        """As Edit.from_plain."""
        modules, dtype = plain.get("modules"), plain.get("dtype")
        if not isinstance(modules, list) or not all(isinstance(name, str) for name in modules) or dtype not in DTYPES:
            raise ValueError("it needs modules, a list of names, and dtype, bf16 or fp16")
        return cls(tuple(modules), dtype)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, torch.Tensor) and value.is_floating_point():
        return value.to(dtype)
    return value
