"""Masks: what is pruned but still there."""

from __future__ import annotations

import torch
from torch import nn

# {"conv1": {"weight": mask, "bias": mask}}: 1 = kept, shaped like the parameter, same dtype.
Masks = dict[str, dict[str, torch.Tensor]]


def placed(masks: Masks, model: nn.Module) -> Masks:
    """The masks where the parameters of `model` are."""
    return {
        module: {name: mask.to(getattr(model.get_submodule(module), name).device) for name, mask in tensors.items()}
        for module, tensors in masks.items()
    }
