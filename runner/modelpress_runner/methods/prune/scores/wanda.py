"""Single weights by magnitude and the norm of what they are multiplied with (Sun et al. 2023, arXiv 2306.11695)."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional

from modelpress_runner.edits.axes import CONV
from modelpress_runner.methods.prune.activations import ActivationMethod
from modelpress_runner.methods.prune.channels import weight_of


class Wanda(ActivationMethod):
    """Score of a weight: |w| times the root of the mean of x^2 over the inputs x that it is multiplied with.

    Weights are compared with those of the same output, so that each output loses the same share.
    """

    name = "wanda"
    by_output = True

    def room(self, module: nn.Module) -> torch.Size:
        """As ActivationMethod.room: of a linear layer (inputs,), of a convolution (inputs, 1, *kernel)."""
        layer = cast(Any, module)
        if isinstance(module, CONV):
            return torch.Size([layer.in_channels, 1, *layer.kernel_size])
        return torch.Size([layer.in_features])

    def seen(self, module: nn.Module, taken: torch.Tensor, given: torch.Tensor) -> tuple[torch.Tensor, int]:
        """As ActivationMethod.seen."""
        if not isinstance(module, CONV):
            rows = taken.flatten(0, -2)
            return rows.float().square().sum(dim=0), len(rows)
        inputs = taken if taken.dim() == weight_of(module).dim() else taken[None]
        sums = _met_by_each_tap(cast(Any, module), inputs.float().square())
        return sums, given.numel() // cast(Any, module).out_channels

    def scored(self, mean: torch.Tensor, module: nn.Module) -> torch.Tensor:
        """As ActivationMethod.scored."""
        weight = weight_of(module).detach()
        norms = mean.sqrt().to(weight.device, torch.float32)
        if isinstance(module, CONV) and not module.transposed:
            each = module.out_channels // module.groups
            norms = norms.view(module.groups, -1, *module.kernel_size).repeat_interleave(each, 0)
        return weight.float().abs().mul_(norms)


def _met_by_each_tap(module: Any, squares: torch.Tensor) -> torch.Tensor:
    """Sums of `squares` over the positions at which each tap of the kernel meets them, (inputs, 1, *kernel).

    That is the gradient by a depthwise kernel of the sum of what it gives.
    """
    kernel = torch.ones(module.in_channels, 1, *module.kernel_size, device=squares.device, requires_grad=True)
    more = {"output_padding": module.output_padding} if module.transposed else {}
    conv = getattr(functional, f"conv{'_transpose' * module.transposed}{len(module.kernel_size)}d")
    padding = module.padding
    if module.padding_mode != "zeros":
        squares = functional.pad(squares, module._reversed_padding_repeated_twice, module.padding_mode)
        padding = 0
    with torch.enable_grad():
        out = conv(
            squares,
            kernel,
            stride=module.stride,
            padding=padding,
            dilation=module.dilation,
            groups=module.in_channels,
            **more,
        )
        total = out.sum()
    return torch.autograd.grad(total, kernel)[0]


METHOD = Wanda()
