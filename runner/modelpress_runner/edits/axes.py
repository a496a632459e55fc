"""The channel axes of modules: which entries of which tensors belong to one channel.

Everything that scores, masks or shrinks channels goes through `axis_of`, so that the entries a mask sets to zero are
exactly the entries that a shrink removes.

A module has an axis "out" (channels it gives) and, if they differ, "in" (channels it takes). Channel i of an axis with
g groups of p channels is slice [i // p, i % p] of a view of each tensor. Layouts of these views, for a tensor t:
  rows: channels are rows of t, (g*p, ...).           cols: columns, t being (g*r, p, ...) with r rows for each group.
  flat: t has one axis of more than one entry.        dimN: channels are dimension N of t.
  gatesN: rows, one after the other for each of N gates.    blocksN: columns, for each of N directions.
Recurrent layers have an axis "hidden" besides: what takes their hidden units. Plain parameters of modules that are not
known here have an axis "dimN" for each of their dimensions.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from modelpress_runner.edits.attention import PrunedMultiheadAttention, cut_heads
from modelpress_runner.edits.computed import computed
from modelpress_runner.edits.recurrent import RECURRENT, recurrent_axis
from modelpress_runner.errors import CompressionError

CONV = nn.modules.conv._ConvNd
BATCH_NORM = nn.modules.batchnorm._BatchNorm
INSTANCE_NORM = nn.modules.instancenorm._InstanceNorm
DIMENSION = re.compile(r"dim(\d)")
SIDES = ("out", "in", "hidden")
_STATISTICS = ("weight", "bias", "running_mean", "running_var")


@dataclass(frozen=True)
class AxisView:
    """One axis of one module. `tensors` names the parameters and buffers it runs through, with their layout."""

    owner: nn.Module
    axis: str
    size: int
    groups: int
    tensors: dict[str, str]

    def view(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """A view of `tensor`, which is shaped like tensor `name`, with leading dimensions (groups, size/groups)."""
        layout = self.tensors[name]
        if layout == "flat":
            return tensor.view(1, -1)
        if layout.startswith("dim"):
            return tensor.movedim(int(layout[3:]), 0).unsqueeze(0)
        if layout.startswith("gates"):
            gates: torch.Tensor = tensor.unflatten(0, (int(layout[5:]), -1))
            return gates.transpose(0, 1).unsqueeze(0)
        if layout.startswith("blocks"):
            blocks: torch.Tensor = tensor.unflatten(1, (int(layout[6:]), -1))
            return blocks.movedim(2, 0).unsqueeze(0)
        grouped: torch.Tensor = tensor.unflatten(0, (self.groups, -1))
        return grouped if layout == "rows" else grouped.transpose(1, 2)

    def rows(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """The entries of each channel in `tensor`, as a matrix (size, entries of a channel)."""
        return self.view(name, tensor).reshape(self.size, -1)

    def keep_mask(self, name: str, tensor: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
        """A bool mask like `tensor`: False on the entries of the channels where `kept`, bool (size,), is False."""
        mask = torch.ones(tensor.shape, dtype=torch.bool, device=tensor.device)
        self.view(name, mask)[~kept.to(tensor.device).view(self.groups, -1)] = False
        return mask

    def clear(self, name: str, mask: torch.Tensor, kept: torch.Tensor) -> None:
        """Sets a mask of tensor `name` to zero, in place, at the channels where `kept`, bool (size,), is False."""
        view = self.view(name, mask)
        view.mul_(kept.to(view).view(self.groups, -1, *[1] * (view.dim() - 2)))

    @property
    def main(self) -> str:
        """The tensor that scores a channel, of several the weight."""
        return next(iter(self.tensors))

    def dimension(self, name: str) -> int | None:
        """The dimension of tensor `name` that is this axis; None: it is a part of one, or of several."""
        layout = self.tensors[name]
        if self.groups > 1:
            return None
        return int(layout[3:]) if layout.startswith("dim") else {"rows": 0, "cols": 1}.get(layout)

    @property
    def parameters(self) -> list[str]:
        """The tensors that are parameters."""
        return [name for name in self.tensors if name in self.owner._parameters]


def module_at(model: nn.Module, name: str) -> nn.Module | None:
    """The module of this name; None: there is none. Other than a dict of all names it costs nothing."""
    here = model
    for part in name.split(".") if name else ():
        child = here._modules.get(part)
        if child is None:
            return None
        here = child
    return here


def axis_of(model: nn.Module, name: str, axis: str) -> AxisView:
    """The axis "in", "out" or "hidden" of the module, or of the plain parameter, that `model` knows by `name`.

    Raises:
        CompressionError: there is none, or it cannot be cut (computed weights, a parameter with several axes).
    """
    module = module_at(model, name)
    if module is None:
        return _parameter_axis(model, name, axis)
    return module_axis(module, name, axis)


def module_axis(module: nn.Module, name: str, axis: str) -> AxisView:
    """As `axis_of`, of a module at hand; `name` serves for messages."""
    if axis not in SIDES:
        raise CompressionError(f"'{name}': an axis is 'in', 'out' or 'hidden', not {axis!r}")
    groups = 1
    if axis == "hidden" and not isinstance(module, RECURRENT):
        raise CompressionError(f"'{name}' ({type(module).__name__}) has no hidden units")
    if isinstance(module, CONV):
        groups = module.groups
        size = module.out_channels if axis == "out" else module.in_channels
        tensors = {"weight": "cols" if (axis == "in") != module.transposed else "rows"}
        if axis == "out":
            tensors["bias"] = "rows"
    elif isinstance(module, nn.Linear):
        size = module.out_features if axis == "out" else module.in_features
        tensors = {"weight": "rows", "bias": "rows"} if axis == "out" else {"weight": "cols"}
    elif isinstance(module, nn.MultiheadAttention):
        size, tensors = _attention_axis(module, name, axis)
    elif is_conv1d(module):
        size = module.get_parameter("weight").shape[1 if axis == "out" else 0]
        tensors = {"weight": "cols", "bias": "rows"} if axis == "out" else {"weight": "rows"}
    elif isinstance(module, RECURRENT):
        size, tensors = recurrent_axis(module, name, axis)
    elif axis == "in":
        raise CompressionError(f"'{name}' ({type(module).__name__}) has no input channels of its own")
    elif isinstance(module, BATCH_NORM | INSTANCE_NORM):
        size = module.num_features
        tensors = dict.fromkeys(_STATISTICS, "rows")
    elif isinstance(module, nn.GroupNorm):
        size, groups = module.num_channels, module.num_groups
        tensors = {"weight": "rows", "bias": "rows"}
    elif isinstance(module, nn.LayerNorm | nn.RMSNorm) and len(module.normalized_shape) == 1:
        size = module.normalized_shape[0]
        tensors = {"weight": "rows", "bias": "rows"}
    elif isinstance(module, nn.PReLU) and module.num_parameters > 1:
        size, tensors = module.num_parameters, {"weight": "rows"}
    elif isinstance(module, nn.Embedding):
        size, tensors = module.embedding_dim, {"weight": "cols"}
    elif is_frozen_norm(module):
        size, tensors = module.get_buffer("weight").numel(), dict.fromkeys(_STATISTICS, "rows")
    else:
        raise CompressionError(f"'{name}' ({type(module).__name__}) has no channels that can be removed")
    for tensor in tensors:
        _check_plain(module, name, tensor)
    present = {t: layout for t, layout in tensors.items() if getattr(module, t, None) is not None}
    return AxisView(module, axis, size, groups, present)


def _attention_axis(module: nn.MultiheadAttention, name: str, axis: str) -> tuple[int, dict[str, str]]:
    """Its rows of queries, keys and values, one after the other ("out"), or what each of them is made of ("in")."""
    weight = module.in_proj_weight
    if weight is None:
        raise CompressionError(f"'{name}' (MultiheadAttention) takes keys and values of other widths than its own")
    if module.bias_k is not None:
        raise CompressionError(f"'{name}' (MultiheadAttention) adds a bias to the sequence of keys and values")
    if type(module).forward not in (nn.MultiheadAttention.forward, PrunedMultiheadAttention.forward):
        raise CompressionError(f"'{name}' ({type(module).__name__}) has a forward of its own")
    if axis == "in":
        return weight.shape[1], {"in_proj_weight": "cols"}
    return weight.shape[0], {"in_proj_weight": "rows", "in_proj_bias": "rows"}


def is_conv1d(module: nn.Module) -> bool:
    """Whether it is transformers' Conv1D: a linear layer whose weight is (inputs, outputs)."""
    return any(
        f"{cls.__module__}.{cls.__name__}" == "transformers.pytorch_utils.Conv1D" for cls in type(module).__mro__
    )


def is_frozen_norm(module: nn.Module) -> bool:
    """Whether it is a BatchNorm that is not trained, as detectors have them: the same four vectors, all buffers."""
    buffers = module._buffers
    return (
        not module._parameters
        and not module._modules
        and buffers.keys() == {*_STATISTICS}
        and len({tuple(each.shape) for each in buffers.values() if each is not None}) == 1
        and all(each is not None and each.dim() == 1 for each in buffers.values())
    )


def shrink(view: AxisView, kept: torch.Tensor, known: Mapping[str, nn.Parameter] | None = None) -> None:
    """Cuts the axis of its module, in place, down to the channels where `kept`, bool (size,), is True.

    On a grouped convolution or a GroupNorm either every group keeps equally many channels, or whole groups go; with a
    group of a convolution its inputs go too.

    Args:
        view: the axis.
        kept: which channels stay.
        known: parameters, by name, that are cut already.

    Raises:
        CompressionError: nothing would be kept, or groups would end up with different sizes.
    """
    owner = view.owner
    for name in view.tensors:
        if known is not None and name in known:
            setattr(owner, name, known[name])
            continue
        tensor = getattr(owner, name)
        data = cut(view, name, tensor.detach(), kept)
        if name in owner._parameters:
            setattr(owner, name, nn.Parameter(data, requires_grad=tensor.requires_grad))
        else:
            setattr(owner, name, data)
    groups, width = _kept_groups(view, kept)
    _patch(owner, view.axis, groups, groups * width)


def shrink_shared(model: nn.Module, view: AxisView, kept: torch.Tensor) -> list[AxisView]:
    """As `shrink`, and what other modules have along the same dimension of a shared parameter, which stays shared.

    Returns:
        All axes that were cut, `view` first.

    Raises:
        CompressionError: as `shrink`.
    """
    others = partners(model, view)
    shrink(view, kept)
    for other, shared in others:
        shrink(other, kept, {own: getattr(view.owner, name) for own, name in shared.items()})
    return [view, *(other for other, _ in others)]


def partners(model: nn.Module, view: AxisView) -> list[tuple[AxisView, dict[str, str]]]:
    """Axes of other modules along the same dimension of a parameter that they share with `view`.

    Returns:
        Each with the names of what is shared: its own, and the one in `view`.
    """
    mine = {id(getattr(view.owner, name)): name for name in view.parameters}
    found = []
    for path, module in model.named_modules():
        if module is view.owner or not any(id(p) in mine for p in module._parameters.values()):
            continue
        for other in _sides(module, path):
            shared = {name: mine[id(p)] for name in other.parameters if id(p := getattr(other.owner, name)) in mine}
            along = [(other.dimension(own), view.dimension(name)) for own, name in shared.items()]
            if along and all(own == name is not None for own, name in along):
                found.append((other, shared))
    return found


def _sides(module: nn.Module, path: str) -> Iterator[AxisView]:
    for side in SIDES:
        try:
            yield module_axis(module, path, side)
        except CompressionError:
            continue


def cut(view: AxisView, name: str, tensor: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """What `shrink` leaves of `tensor`, which is shaped like tensor `name` of the view: a new tensor.

    Raises:
        CompressionError: as `shrink`.
    """
    groups, width = _kept_groups(view, kept)
    dimension = view.dimension(name)
    if dimension is not None:
        return tensor.index_select(dimension, kept.nonzero().flatten().to(tensor.device))
    layout = view.tensors[name]
    rows = tensor.shape[0] // view.groups if layout == "cols" else 0
    if layout == "flat":
        shape = tuple(width if size == view.size and size > 1 else size for size in tensor.shape)
    elif layout.startswith("gates"):
        shape = (int(layout[5:]) * width, *tensor.shape[1:])
    elif layout.startswith("blocks"):
        shape = (tensor.shape[0], int(layout[6:]) * width)
    elif layout == "rows":
        shape = (groups * width, *tensor.shape[1:])
    else:
        shape = (groups * rows, width, *tensor.shape[2:])
    return tensor[view.keep_mask(name, tensor, kept)].reshape(shape)


def _kept_groups(view: AxisView, kept: torch.Tensor) -> tuple[int, int]:
    """How many groups are left, and how many channels in each of them."""
    groups, kind = view.groups, type(view.owner).__name__
    per_group = kept.view(groups, -1).sum(dim=1).tolist()
    width = view.size // groups
    left = [count for count in per_group if count]
    if not left or any(count != left[0] for count in left) or (len(left) < groups and left[0] != width):
        raise CompressionError(
            f"the groups of a {kind} would keep {per_group} of {width} channels each; "
            "they must keep equally many, or whole groups must go"
        )
    if len(left) < groups and view.axis == "in":
        raise CompressionError(f"a {kind} loses whole groups by its output channels only")
    return len(left), left[0]


def _patch(owner: nn.Module, axis: str, groups: int, size: int) -> None:
    if isinstance(owner, CONV):
        if axis == "out":
            owner.in_channels = owner.in_channels // owner.groups * groups
            owner.out_channels, owner.groups = size, groups
        else:
            owner.in_channels = size
    elif isinstance(owner, nn.Linear):
        if axis == "out":
            owner.out_features = size
        else:
            owner.in_features = size
    elif isinstance(owner, BATCH_NORM | INSTANCE_NORM):
        owner.num_features = size
    elif isinstance(owner, nn.GroupNorm):
        owner.num_channels, owner.num_groups = size, groups
    elif isinstance(owner, nn.LayerNorm | nn.RMSNorm):
        owner.normalized_shape = (size,)
    elif isinstance(owner, nn.PReLU):
        owner.num_parameters = size
    elif isinstance(owner, nn.Embedding):
        owner.embedding_dim = size
    elif isinstance(owner, nn.MultiheadAttention):
        cut_heads(owner)
        if axis == "in":
            owner.embed_dim = owner.kdim = owner.vdim = size
    elif is_conv1d(owner):
        setattr(owner, "nf" if axis == "out" else "nx", size)
    elif isinstance(owner, RECURRENT) and axis != "hidden":
        setattr(owner, "input_size" if axis == "in" else "hidden_size", size)


def _parameter_axis(model: nn.Module, name: str, axis: str) -> AxisView:
    path, _, attribute = name.rpartition(".")
    owner = module_at(model, path)
    parameter = {**owner._buffers, **owner._parameters}.get(attribute) if owner is not None else None
    if owner is None or parameter is None:
        raise CompressionError(f"the model has no module or parameter '{name}'")
    if (match := DIMENSION.fullmatch(axis)) is not None:
        dim = int(match[1])
        if dim >= parameter.dim():
            raise CompressionError(f"the parameter '{name}' of shape {tuple(parameter.shape)} has no dimension {dim}")
        return parameter_axis(owner, attribute, dim)
    wide = [size for size in parameter.shape if size > 1]
    if len(wide) != 1 or axis != "out":
        raise CompressionError(f"the parameter '{name}' of shape {tuple(parameter.shape)} has no single channel axis")
    return AxisView(owner, axis, wide[0], 1, {attribute: "flat"})


def parameter_axis(owner: nn.Module, attribute: str, dim: int) -> AxisView:
    """The axis of one dimension of a plain parameter or buffer."""
    return AxisView(owner, f"dim{dim}", getattr(owner, attribute).shape[dim], 1, {attribute: f"dim{dim}"})


def _check_plain(module: nn.Module, name: str, tensor: str) -> None:
    if tensor in module._parameters or tensor in module._buffers:
        return
    if hasattr(module, tensor):
        known = next((str(each) for each in computed(module, name) if each.tensor == tensor), None)
        raise CompressionError(known or f"'{name}.{tensor}' is no parameter of its own, but computed from others")
