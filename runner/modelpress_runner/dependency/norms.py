"""Which modules are norms by the root of a mean of squares, whatever their code is: found out by trying.

Such a norm goes on to give the same when channels that are zero leave it and its weight and its epsilon are rescaled. A
module for which that holds to rounding in float64, with weights drawn anew, is one.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import nn

from modelpress_runner.dependency.exact import Seen, Weights, exactly
from modelpress_runner.edits.axes import module_axis, parameter_axis, shrink
from modelpress_runner.edits.rescale import Rescale

_EPSILON = 0.3  # for the trial: large beside the squares, so that it matters
_LARGEST = 0.1  # that an attribute may be to be taken for one
_ROUNDING = 1e-9  # relative to the largest value


@dataclass(frozen=True)
class RootMeanSquare:
    """What of a module a `Rescale` changes."""

    parameter: str
    epsilon: str | None
    offset: int


def root_mean_square(module: nn.Module) -> RootMeanSquare | None:
    """What the module scales by and adds under its root, if it is such a norm over its last dimension."""
    weights = [(name, p) for name, p in module._parameters.items() if p is not None]
    torchs = type(module).__module__.startswith("torch.nn.") and not isinstance(module, nn.RMSNorm)
    if torchs or len(weights) != 1 or weights[0][1].dim() != 1 or module._modules or module._buffers:
        return None
    name, weight = weights[0]
    if weight.numel() < 2 or not weight.is_floating_point():
        return None
    numbers = [key for key, value in vars(module).items() if type(value) is float and 0 < value <= _LARGEST]
    for offset in (0, 1):
        for epsilon in (*numbers, None):
            form = RootMeanSquare(name, epsilon, offset)
            if _holds(module, form, weight.numel()):
                return form
    return None


def _holds(module: nn.Module, form: RootMeanSquare, channels: int) -> bool:
    dice = torch.Generator().manual_seed(0)
    for left in {max(1, channels // 2), channels - 1}:
        kept = torch.zeros(channels, dtype=torch.bool)
        kept[torch.randperm(channels, generator=dice)[:left]] = True
        x = torch.randn((2, 3, channels), generator=dice, dtype=torch.float64) * kept
        drawn = 0.5 + torch.rand(channels, generator=dice, dtype=torch.float64)
        try:
            whole = copy.deepcopy(module, {id(p): nn.Parameter(drawn) for p in module.parameters()}).eval()
            if form.epsilon is not None:
                vars(whole)[form.epsilon] = _EPSILON
            small = copy.deepcopy(whole)
            known = isinstance(small, nn.RMSNorm)
            shrink(module_axis(small, "", "out") if known else parameter_axis(small, form.parameter, 0), kept)
            Rescale("", form.parameter, form.epsilon, form.offset, channels, left).apply(small)
            with exactly(Weights({}, 0), torch.float64, Seen()):
                want, got = whole(x), small(x[..., kept])
        except Exception:  # whatever it is, it is no such norm
            return False
        if not isinstance(want, torch.Tensor) or want.shape != x.shape or got.shape[-1] != left:
            return False
        if want[..., ~kept].any() or (want[..., kept] - got).abs().max() > _ROUNDING * want.abs().max():
            return False
    return True
