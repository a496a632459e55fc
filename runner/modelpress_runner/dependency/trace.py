"""Runs a model and lets planes of labels ride along with its tensors.

A TorchDispatchMode sees every ATen operation that a forward pass really runs, whatever the Python code does. What an
operation does to labels says its rule; an operation without one keeps everything that passes through it.
"""

from __future__ import annotations

import contextlib
import hashlib
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from modelpress_runner.dependency.layers import Blocks
from modelpress_runner.dependency.planes import Axis, Kept, Plane, resolved, rigid
from modelpress_runner.dependency.sizes import FixedSize, NamedSize, Use, is_attribute
from modelpress_runner.dependency.units import LABEL, Units
from modelpress_runner.runtime.graph import tensors_in

_INSIDE = ("/torch/", "/modelpress_runner/")


class Trace:
    """Labels of a forward pass under way.

    Args:
        units: what is joined and frozen.
        parameters: planes of parameters and buffers, by id.
        axes: atoms of the "out" and "in" axes of kernels in groups, by id: one plane cannot tell those of several.
    """

    def __init__(
        self, units: Units, parameters: Mapping[int, list[Axis]], axes: Mapping[int, dict[str, torch.Tensor]]
    ) -> None:
        self.units, self.axes = units, axes
        self._parameters = parameters
        self._planes: Any = WeakTensorKeyDictionary()
        self._unsettled: Any = WeakTensorKeyDictionary()  # what to do once something uses a tensor
        self._modules: list[tuple[str, nn.Module]] = []
        self._rectangles: dict[bytes, Kept] = {}
        self._kept: dict[Kept, Kept] = {}  # equal ones are one object
        self.named: Collection[int] = ()  # dimensions of the view under way whose sizes are attributes
        # Of the slice under way, by dimension: where it begins and ends, if one of both is computed from attributes.
        self.ends: Mapping[int, tuple[int | None, int | None]] = {}
        self.copies: Collection[int] = ()  # dimensions of the expansion under way that are as long as others need
        self.uses: list[Use] = []
        self.shapes: list[tuple[int, Kept]] = []  # of sizes that were read: the dimension, and its labels
        self.norms: Mapping[int, Callable[[torch.Tensor, torch.Tensor], None]] = {}  # by id of the module: its rule
        self.recurrent: Mapping[int, Callable[[Any, Any, Any], None]] = {}  # as norms, of recurrent layers
        self._inside: list[nn.Module | None] = []  # such modules that run: their parts have no rules
        self._zeros: Any = WeakTensorKeyDictionary()  # of zeros when they were made: how often they were written to
        self.made: Any = WeakTensorKeyDictionary()  # what gave a tensor with planes, and where
        self.called: dict[str, str] = {}  # by module the line that called it first
        self.exact = True
        self.blocks: Blocks | None = None  # where those are looked for
        self.approximate: list[tuple[torch.Tensor, str]] = []  # labels that a LayerNorm may lose, with its name
        self.used: set[int] = set()  # ids of the parameters, and of what else has planes from the start, that are taken

    def take(self, given: Sequence[torch.Tensor]) -> None:
        """Notes that an operation takes these."""
        for tensor in given:
            if isinstance(tensor, nn.Parameter) or id(tensor) in self._parameters:
                self.used.add(id(tensor))

    def planes(self, tensor: Any) -> list[Plane]:
        """Those of a tensor now."""
        if not isinstance(tensor, torch.Tensor):
            return []
        axes = self._parameters.get(id(tensor))
        known = self._planes.get(tensor) if axes is None else [axis.plane() for axis in axes]
        return resolved(known, self.units) if known else []

    def carries(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor may have planes."""
        return id(tensor) in self._parameters or tensor in self._planes or tensor in self._unsettled

    def postpone(self, tensor: torch.Tensor, rule: Callable[[torch.Tensor], None]) -> None:
        """Applies `rule`, which gives the tensor its planes, only if something uses the tensor."""
        self._unsettled[tensor] = rule

    def settle(self, tensor: torch.Tensor) -> None:
        """Applies what was postponed: the tensor is used."""
        if tensor in self._unsettled:
            self._unsettled.pop(tensor)(tensor)

    def put(self, tensor: torch.Tensor, planes: Sequence[Plane]) -> None:
        """Sets the planes of a tensor."""
        kept = resolved(planes, self.units)
        for plane in kept:
            assert plane.labels.dim() == tensor.dim(), (plane.labels.shape, tensor.shape)
            if len(plane.varying) > 1:
                key = _key(plane.labels)
                if key not in self._rectangles:
                    self._rectangles[key] = self._keep(plane.labels)
        if kept and id(tensor) not in self._parameters:
            self._planes[tensor] = kept

    def zeros(self, tensor: torch.Tensor, sizes: Sequence[Any]) -> None:
        """Zeros of a shape that is asked for: what they are laid beside goes, if their number follows."""
        self._zeros[tensor] = tensor._version
        for dim, size in enumerate(sizes):
            if is_attribute(size) and len(sizes) == tensor.dim() and size > 1:
                shape = [1] * tensor.dim()
                shape[dim] = int(size)
                self.put(tensor, [*self.planes(tensor), Plane(self.units.atoms(int(size)).reshape(shape))])
                self.use(size, dim, self.along(tensor, dim), "zeros")

    def is_zeros(self, tensor: torch.Tensor) -> bool:
        """Whether it is zeros that nothing has been written to."""
        return tensor in self._zeros and self._zeros[tensor] == tensor._version

    def use(self, size: int, dim: int, labels: torch.Tensor | None, name: str) -> None:
        """Remembers that dimension `dim` is as long as `size` says, if that is computed from attributes or shapes."""
        if isinstance(size, NamedSize):
            self.uses.append(Use(size, dim, None if labels is None else self._keep(labels), self.where(name)))

    def read(self, tensor: torch.Tensor) -> torch.Size:
        """The shape of a tensor; sizes of dimensions with channels know it, and others know that they have none."""
        sizes: list[int] = [FixedSize(size) if size > 1 else size for size in tensor.shape]
        for plane in self.planes(tensor):
            for dim in plane.varying:
                if not isinstance(sizes[dim], NamedSize):
                    sizes[dim] = NamedSize.read(sizes[dim], len(self.shapes))
                    self.shapes.append((dim, self._keep(plane.labels)))
        return torch.Size(sizes)

    def _keep(self, labels: torch.Tensor) -> Kept:
        kept = Kept.of(labels)
        return self._kept.setdefault(kept, kept)

    def same(self, size: NamedSize, tensor: torch.Tensor, dim: int) -> None:
        """Ties a dimension to the one, of another tensor, whose size it is asked to have."""
        if size.source is None:
            return
        reason = f"{self.where('view')} gives something of a fixed size their number"
        place, kept = self.shapes[size.source]
        mine = self.along(tensor, dim)
        read, own = ([] if each is None else resolved([Plane(each)], self.units) for each in (kept.labels(), mine))
        if not read or read[0].varying != [place]:
            return
        if own and own[0].varying != [dim]:
            own = self.rigid(own, [d for d in own[0].varying if d != dim], reason)
        other = own[0].labels.flatten() if own else torch.zeros(int(size), dtype=LABEL)
        self.units.join(read[0].labels.flatten(), other, reason)

    def along(self, tensor: torch.Tensor, dim: int) -> torch.Tensor | None:
        """The labels that change along a dimension."""
        return next((plane.labels for plane in self.planes(tensor) if dim in plane.varying), None)

    def lines(self, tensor: torch.Tensor, dim: int, reason: str) -> torch.Tensor | None:
        """The labels that change along a dimension alone; it is rigid to those that change along others too."""
        for plane in self.planes(tensor):
            if dim in plane.varying and len(plane.varying) > 1:
                self.rigid([plane], [dim], reason)
        return next((plane.labels for plane in self.planes(tensor) if plane.varying == [dim]), None)

    def freeze(self, planes: Sequence[Plane], reason: str) -> None:
        """Keeps every channel of these planes."""
        for plane in planes:
            self.units.freeze(plane.labels, reason)

    def rigid(self, planes: Sequence[Plane], dims: Sequence[int], reason: str) -> list[Plane]:
        """As planes.rigid, of several."""
        left = [rigid(plane, dims, self.units, reason) for plane in planes]
        return resolved([plane for plane in left if plane is not None], self.units)

    def resolve_rectangles(self) -> None:
        """Decides what may go where a tensor has a channel in several dimensions: whole slices of one of them.

        Taken is the dimension with the most slices that can go on their own, the first of equals.
        """
        for kept in self._rectangles.values():
            now = resolved([Plane(kept.labels())], self.units)
            if not now or len(now[0].varying) < 2:
                continue
            best = max(now[0].varying, key=lambda d: (_slices(now[0].labels, d), -d))
            others = [d for d in now[0].varying if d != best]
            rigid(now[0], others, self.units, "a view parts them together with something of a fixed size")

    def where(self, name: str) -> str:
        """What an operation is called and where the user's code asked for it."""
        text = f"{name.removeprefix('_')}"
        if self._modules and self._modules[-1][0]:
            text += f" in '{self._modules[-1][0]}'"
        return text + self.line()

    def line(self) -> str:
        """The line of the user's code that runs, as " (file:number)"."""
        frame = sys._getframe(1)
        while frame is not None:
            path = frame.f_code.co_filename
            if not any(part in path for part in _INSIDE) and not path.startswith("<"):
                return f" ({path.rsplit('/', 1)[-1]}:{frame.f_lineno})"
            frame = frame.f_back  # type: ignore[assignment]
        return ""

    @property
    def silent(self) -> bool:
        """Whether what runs is part of something that has a rule as a whole."""
        return bool(self._inside)

    @contextlib.contextmanager
    def whole(self) -> Iterator[None]:
        """What runs is part of something that has a rule as a whole."""
        self._inside.append(None)
        try:
            yield
        finally:
            self._inside.pop()

    @property
    def module(self) -> tuple[str, nn.Module] | None:
        """The innermost module that runs, with its name."""
        return self._modules[-1] if self._modules else None

    @contextlib.contextmanager
    def following(self, model: nn.Module) -> Iterator[None]:
        """Knows inside which module of `model` an operation runs."""
        names = {id(module): name for name, module in model.named_modules()}

        def enter(module: nn.Module, args: Any) -> None:
            if id(module) in names:
                self._modules.append((names[id(module)], module))
                if names[id(module)] not in self.called:
                    self.called[names[id(module)]] = self.line()
                if self.blocks is not None:
                    self.blocks.enter(names[id(module)], args)
            if id(module) in self.recurrent or (
                id(module) in self.norms and args and isinstance(args[0], torch.Tensor)
            ):
                self._inside.append(module)

        def leave(module: nn.Module, args: Any, *rest: Any) -> None:
            kwargs, output = rest if len(rest) == 2 else ({}, None)  # torch leaves kwargs out where a pass has failed
            if self._inside and self._inside[-1] is module:
                self._inside.pop()
                if id(module) in self.recurrent and output is not None:
                    self.recurrent[id(module)](args, kwargs, output)
                elif isinstance(output, torch.Tensor):
                    self.settle(args[0])
                    self.norms[id(module)](args[0], output)
                for tensor in tensors_in(output):
                    if self.carries(tensor):
                        self.made[tensor] = self.where(type(module).__name__)
            if id(module) in names and self._modules:
                self._modules.pop()
                if self.blocks is not None:
                    self.blocks.leave(names[id(module)], output)

        first = nn.modules.module.register_module_forward_pre_hook(enter)
        last = nn.modules.module.register_module_forward_hook(leave, with_kwargs=True, always_call=True)
        try:
            yield
        finally:
            first.remove()
            last.remove()
            # torch 2.11 leaves this entry behind, and then warns of every compiled model that is called.
            nn.modules.module._global_forward_hooks_with_kwargs.pop(last.id, None)
            self._modules.clear()
            self._inside.clear()


Rule = Callable[[Trace, str, Any, tuple[Any, ...], dict[str, Any], Any], None]


class LabelMode(TorchDispatchMode):
    """Runs every operation, and its rule on the labels."""

    def __init__(self, trace: Trace, rules: Mapping[str, Rule], pointwise: Rule, unknown: Rule) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch does not type it
        self._trace, self._rules, self._pointwise, self._unknown = trace, rules, pointwise, unknown

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # to say so would import the compiler, which takes seconds

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        given = tensors_in((args, kwargs))
        trace = self._trace
        trace.take(given)
        if trace.blocks is not None and isinstance(func, torch._ops.OpOverload):
            trace.blocks.operation(func._schema.name.rpartition("::")[2], args, out)
        if trace.silent or (not trace.copies and not any(trace.carries(tensor) for tensor in given)):
            return out
        for tensor in given:
            trace.settle(tensor)
        if not isinstance(func, torch._ops.OpOverload):
            self._unknown(trace, str(func), func, args, kwargs, out)
            return out
        name = func._schema.name.rpartition("::")[2]
        rule = self._pointwise if torch.Tag.pointwise in func.tags else None
        rule = rule or self._rules.get(name) or self._rules.get(name.rstrip("_")) or self._unknown
        try:
            rule(trace, name, func, args, kwargs, out)
        except Exception as error:  # an overload, or arguments, that the rule does not know
            for tensor in given:
                trace.freeze(trace.planes(tensor), f"{trace.where(name)} cannot be followed: {type(error).__name__}")
        for tensor in tensors_in(out):
            if trace.carries(tensor):
                before = trace.made.get(given[0]) if name in ("view", "_unsafe_view") else None
                trace.made[tensor] = before or trace.where(name)
        return out


def _key(labels: torch.Tensor) -> bytes:
    whole = repr(tuple(labels.shape)).encode() + labels.contiguous().numpy().tobytes()
    return hashlib.blake2b(whole, digest_size=16).digest()


def _slices(labels: torch.Tensor, dim: int) -> int:
    """How many groups of slices along `dim` share no label."""
    rows = labels.movedim(dim, 0).reshape(labels.shape[dim], -1)
    slices = Units()
    atoms = slices.atoms(len(rows))
    first: dict[int, int] = {}  # slice of each label
    pairs = [
        (first.setdefault(label, atom), atom)
        for atom, row in zip(atoms.tolist(), rows.tolist(), strict=True)
        for label in set(row) - {0}
    ]
    one, other = torch.tensor(pairs, dtype=LABEL).reshape(-1, 2).unbind(1)
    slices.join(one, other, "")
    return len(set(slices.roots(atoms).tolist()))
