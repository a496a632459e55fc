"""Masks of a round: what they cover already, and how they come to cover what goes."""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import nn

from modelpress_runner.dependency.groups import ChannelDependencies
from modelpress_runner.edits.axes import AxisView, axis_of, module_at
from modelpress_runner.edits.masks import Masks


def weight_gone(view: AxisView, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """Bool (channels,): those whose weights are all masked already."""
    mask = tensors.get(view.main)
    if mask is None:
        return torch.zeros(view.size, dtype=torch.bool)
    return (view.rows(view.main, mask) == 0).all(dim=1).cpu()


def masks_of(masks: Masks, name: str) -> dict[str, torch.Tensor]:
    """Those of a module, or of the module that holds the parameter of this name."""
    return masks.get(name) or masks.get(name.rpartition(".")[0], {})


def open_masks(masks: Masks, model: nn.Module, name: str) -> None:
    """Sees to it that there is a mask of every parameter that a selected module may lose parts of."""
    module = model.get_submodule(name)
    for parameter in ("weight", "bias"):
        value = getattr(module, parameter, None)
        if value is not None and parameter not in masks.setdefault(name, {}):
            masks[name][parameter] = _own(None, value)


def multiply_mask(masks: Masks, name: str, module: nn.Module, parameter: str, kept: torch.Tensor) -> None:
    """Masks what is not `kept`, bool (as the parameter), besides."""
    tensors = masks.setdefault(name, {})
    mask = _own(tensors.get(parameter), getattr(module, parameter))
    tensors[parameter] = mask.masked_fill_(~kept.to(mask.device), 0.0)


def cover_axis(
    masks: Masks, model: nn.Module, name: str, view: AxisView, kept: torch.Tensor, made: set[tuple[str, str]]
) -> None:
    """Masks the parameters of all channels that are not kept; `made` are masks that nobody else has yet."""
    owner = _owner(model, name)
    for parameter in view.parameters:
        if (owner, parameter) not in made:
            made.add((owner, parameter))
            tensors = masks.setdefault(owner, {})
            tensors[parameter] = _own(tensors.get(parameter), getattr(view.owner, parameter))
        view.clear(parameter, masks[owner][parameter], kept)


def cover(masks: Masks, model: nn.Module, dependencies: ChannelDependencies, units: torch.Tensor) -> None:
    """Masks everything that a shrink of the units, bool (units,), would take away of `model`."""
    made: set[tuple[str, str]] = set()
    for axis, kept in dependencies.kept(units):
        cover_axis(masks, model, axis.module, axis_of(model, axis.module, axis.axis), kept, made)


def without_covered(masks: Masks, model: nn.Module, dependencies: ChannelDependencies, units: torch.Tensor) -> Masks:
    """The masks without those of modules that `cover` with these units alone would make alike."""
    axes: dict[str, list[tuple[AxisView, torch.Tensor]]] = defaultdict(list)
    for axis, kept in dependencies.kept(units):
        axes[_owner(model, axis.module)].append((axis_of(model, axis.module, axis.axis), kept))
    left: Masks = {}
    for name, tensors in masks.items():
        for parameter, mask in tensors.items():
            again = torch.ones_like(mask)
            for view, kept in axes[name]:
                if parameter in view.parameters:
                    view.clear(parameter, again, kept)
            if not torch.equal(again, mask):
                left[name] = dict(tensors)
                break
    return left


def _own(mask: torch.Tensor | None, parameter: torch.Tensor) -> torch.Tensor:
    """A copy of a mask, or one that covers nothing of the parameter."""
    return torch.ones_like(parameter, requires_grad=False) if mask is None else mask.clone()


def _owner(model: nn.Module, name: str) -> str:
    """The module that an axis is of: it itself, or that which holds the parameter of this name."""
    return name if module_at(model, name) is not None else name.rpartition(".")[0]
