"""Weights that a module works out in each forward pass: weight and spectral norm, what torch.nn.utils.prune left."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm


@dataclass(frozen=True)
class Computed:
    """A tensor of a module that is no parameter of its own: what computes it, and the call that ends this."""

    module: str
    tensor: str
    by: str
    remedy: str

    def __str__(self) -> str:
        name = f"{self.module}.{self.tensor}" if self.module else self.tensor
        return f"'{name}' is computed by {self.by}; end that before compressing: {self.remedy}"


def computed(module: nn.Module, name: str) -> Iterator[Computed]:
    """The tensors of one module that something computes; the model knows the module by `name`."""
    here = f"model.get_submodule('{name}')" if name else "model"
    if parametrize.is_parametrized(module):
        for tensor, steps in module.parametrizations.items():  # type: ignore[union-attr, operator]
            by = " and ".join(type(step).__name__.removeprefix("_") for step in steps)
            call = f"torch.nn.utils.parametrize.remove_parametrizations({here}, '{tensor}')"
            yield Computed(name, tensor, by, call)
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, WeightNorm):
            yield Computed(name, hook.name, "weight norm", f"torch.nn.utils.remove_weight_norm({here})")
        elif isinstance(hook, SpectralNorm):
            yield Computed(name, hook.name, "spectral norm", f"torch.nn.utils.remove_spectral_norm({here})")
        elif isinstance(hook, BasePruningMethod):
            tensor = hook._tensor_name
            yield Computed(name, tensor, "torch.nn.utils.prune", f"torch.nn.utils.prune.remove({here}, '{tensor}')")


def all_computed(model: nn.Module) -> list[Computed]:
    """Those of all modules."""
    return [each for name, module in model.named_modules() for each in computed(module, name)]
