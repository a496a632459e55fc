"""Masks of a round: what they cover already, how they come to cover what goes, and zeros in its place."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import torch
from torch import nn

from modelpress_runner.dependency.groups import ChannelDependencies
from modelpress_runner.edits.axes import AxisView, axis_of, module_at
from modelpress_runner.edits.masks import Masks
from modelpress_runner.methods.prune.channels import CACHED

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes


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


def removed_channels(view: AxisView, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """Bool (channels,): those whose every parameter is masked in `tensors`, the masks of one module."""
    gone = torch.ones(view.size, dtype=torch.bool)
    for name in view.parameters:
        mask = tensors.get(name)
        if mask is None:
            return torch.zeros(view.size, dtype=torch.bool)
        gone &= (view.rows(name, mask) == 0).all(dim=1).cpu()
    return gone


def removed_units(model: nn.Module, dependencies: ChannelDependencies, masks: Masks) -> torch.Tensor:
    """Bool, one for each unit: those that the masks cover wholly and that may be removed."""
    covered = ~dependencies.stays
    for axis in dependencies.axes:
        if not covered[axis.vector].any():
            continue  # perhaps of a kind that has no channels to cut
        view = axis_of(model, axis.module, axis.axis)
        if view.parameters:
            covered[axis.vector[~removed_channels(view, masks_of(masks, axis.module))]] = False
    return covered


def apply_masks(model: nn.Module, masks: Masks) -> None:
    """Sets what the masks remove to zero, in place."""
    modules = dict(model.named_modules())
    with torch.no_grad():
        for name, tensors in masks.items():
            for tensor, mask in tensors.items():
                value = getattr(modules[name], tensor)
                kind = _INTEGERS[value.element_size()]
                for some, kept in _in_parts(value, mask):
                    # Not a product of floats, which would keep NaN and write -0.0; and comparing is slower.
                    some.view(kind).mul_(kept.to(kind))


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


def _in_parts(value: torch.Tensor, mask: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Views of both that a CPU's cache holds, or both as they are where they do not lie alike in one piece."""
    if value.device.type != "cpu" or not (value.is_contiguous() and mask.is_contiguous()):
        return iter([(value, mask)])
    return zip(value.view(-1).split(CACHED), mask.view(-1).split(CACHED), strict=True)
