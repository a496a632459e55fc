"""Which channels of a model depend on each other, found out by labels that ride along a real forward pass.

Every channel of every layer gets a label. A forward pass in eval mode is run, and what its operations hold together is
joined (rules/). So the model's Python code may do whatever it likes: it is run, not read.
"""

from __future__ import annotations

import copy
import functools
import itertools
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from modelpress_runner.dependency.calls import Calls
from modelpress_runner.dependency.groups import ChannelDependencies, DependentAxis, DependentNorm, DependentNumber
from modelpress_runner.dependency.layers import Blocks
from modelpress_runner.dependency.norms import RootMeanSquare, root_mean_square
from modelpress_runner.dependency.planes import Axis
from modelpress_runner.dependency.rules import RULES, pointwise, unknown
from modelpress_runner.dependency.rules.contraction import by_group
from modelpress_runner.dependency.rules.recurrent import recurrent
from modelpress_runner.dependency.rules.reductions import norm
from modelpress_runner.dependency.sizes import Name, NamedSize, follow
from modelpress_runner.dependency.trace import LabelMode, Trace
from modelpress_runner.dependency.train_mode import on_enough_rows
from modelpress_runner.dependency.unit_lists import Reasons, UnitList
from modelpress_runner.dependency.units import Units, labels_of
from modelpress_runner.edits.axes import CONV, SIDES, AxisView, is_conv1d, module_axis, parameter_axis
from modelpress_runner.edits.computed import computed
from modelpress_runner.edits.recurrent import RECURRENT
from modelpress_runner.errors import CompressionError, first_line
from modelpress_runner.runtime import rng
from modelpress_runner.runtime.graph import call, map_tensors, tensors_in
from modelpress_runner.runtime.heap import give_back

PRODUCERS = (CONV, nn.Linear, nn.Embedding, nn.MultiheadAttention, *RECURRENT)
_CONFIGS = {"config", "cfg", "args"}  # attributes that hold an object with numbers
UNREACHED = "The dummy input reaches "
_LINE = re.compile(r"\([^()]+:\d+\)")


@dataclass(frozen=True, slots=True)
class _LabelledAxis:
    module: str
    view: AxisView
    producer: bool
    own: range

    @property
    def atoms(self) -> torch.Tensor:
        return labels_of(self.own)


def find_dependencies(model: nn.Module, dummy_input: Any, exact: bool = True) -> ChannelDependencies:
    """Finds out which channels of `model` hang together, from one forward pass in eval mode; it stays as it is.

    Layers that this pass does not reach are looked for in a second one, in train mode. Without `exact` LayerNorms let
    channels go, although their statistics are others then.

    Raises:
        CompressionError: the model cannot be copied, or the forward pass fails.
    """
    try:
        twin = copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})
    except Exception as error:
        raise CompressionError(
            f"the model cannot be copied ({type(error).__name__}: {error}), so it cannot be shrunk; set shrink: false"
        ) from error
    return _Analysis(twin, exact).run(dummy_input)


def is_own(module: nn.Module) -> bool:
    """Whether a module's parameters are its own code's: it is none of torch's layers, nor made of one."""
    plain = (nn.Module, nn.Sequential, nn.ModuleList, nn.ModuleDict)
    bases = [base for base in type(module).__mro__ if base not in plain]
    return not any(base.__module__.startswith("torch.nn.") for base in bases) and not any(computed(module, ""))


def _clone(tensor: torch.Tensor) -> torch.Tensor:
    """A copy that takes memory once either is written to, where torch can do that."""
    try:
        return torch._lazy_clone(tensor)
    except RuntimeError:  # memory that torch did not allocate, or no plain layout
        return tensor.clone()


class _Numbers:
    """Units by number, in the order that their roots are met."""

    def __init__(self, roots: int) -> None:
        self._by_root: Any = np.full(roots, -1, dtype=np.int32)
        self.count = 0

    def fresh(self) -> int:
        """The number of a unit without a root."""
        self.count += 1
        return self.count - 1

    def of(self, roots: Any) -> Any:
        """The units of an array of roots, int32."""
        met, first = np.unique(roots, return_index=True)
        new = self._by_root[met] < 0
        order = first[new].argsort()
        self._by_root[met[new][order]] = np.arange(self.count, self.count + len(order), dtype=np.int32)
        self.count += len(order)
        return self._by_root[roots]

    def known(self, roots: Any) -> Any:
        """The units of an array of roots, int32; -1: it has none."""
        return self._by_root[roots]


class _Analysis:
    def __init__(self, model: nn.Module, exact: bool) -> None:
        held = itertools.chain(model.parameters(), model.buffers())
        self._model, self._units = model, Units(sum(sum(tensor.shape) for tensor in held))
        self._axes: list[_LabelledAxis] = []
        self._planes: dict[int, list[Axis]] = {}
        self._kernels: dict[int, dict[str, torch.Tensor]] = {}
        self._notes: list[str] = []
        self._values: dict[Name, int] = {}  # of attributes that know their name
        self._told: dict[tuple[str, str], str] = {}  # reasons with their lines, of many channels each
        self._shared: set[int] = set()  # axes for which another one stands, by id
        self._refused: dict[str, str] = {}  # modules that cannot lose channels, with the reason
        for name, module in model.named_modules():
            self._label(name, module)
            self._label_plain(name, module)
            self._name_sizes(name, module)
        first = self._units.count
        for name, module in model.named_modules():
            self._label_buffers(name, module)
        self._units.constant = range(first, self._units.count)
        self._spare_shared()
        self._trace = Trace(self._units, self._planes, self._kernels)
        self._trace.exact = exact
        self._norms = self._find_norms()
        self._trace.norms = {
            id(module): functools.partial(norm, self._trace, module, form) for module, (_, form) in self._norms.items()
        }
        self._trace.recurrent = self._find_recurrent()

    def run(self, dummy_input: Any) -> ChannelDependencies:
        blocks = self._trace.blocks = Blocks()
        give_back()
        try:
            outputs = self._pass(map_tensors(dummy_input, _clone), train=False)
        except Exception as error:
            raise CompressionError(
                f"the model fails on the dummy input: {type(error).__name__}: {first_line(error)}; set shrink: false"
            ) from error
        self._trace.blocks = None
        self._layers = tuple(blocks.listed(self._model))
        self._give(outputs, "they reach the model's output")
        self._reach_by_training(dummy_input)
        self._trace.resolve_rectangles()
        return self._found()

    def _find_norms(self) -> dict[nn.Module, tuple[str, RootMeanSquare]]:
        """Norms that stay exact when channels leave them, with their names; modules of one kind are tried once."""
        known: dict[Any, RootMeanSquare | None] = {}
        found = {}
        for name, module in self._model.named_modules():
            plain = {key: value for key, value in vars(module).items() if isinstance(value, int | float | str)}
            kind = (type(module), *((key, p.shape) for key, p in module._parameters.items() if p is not None))
            kind = (*kind, *sorted(plain.items()))
            if kind not in known:
                known[kind] = root_mean_square(module)
            if (form := known[kind]) is not None:
                found[module] = (name, form)
        return found

    def _find_recurrent(self) -> dict[int, functools.partial[None]]:
        """Rules of recurrent layers whose hidden units may go, by id."""
        atoms: dict[int, dict[str, torch.Tensor]] = {}
        for axis in self._axes:
            if isinstance(axis.view.owner, RECURRENT):
                atoms.setdefault(id(axis.view.owner), {})[axis.view.axis] = axis.atoms
        return {
            key: functools.partial(recurrent, self._trace, axes)
            for key, axes in atoms.items()
            if axes.keys() == {*SIDES}
        }

    def _give(self, outputs: list[torch.Tensor], reason: str) -> None:
        """What a pass gives stays; the list is emptied."""
        while outputs:
            tensor = outputs.pop(0)
            self._trace.settle(tensor)
            where = self._trace.made.get(tensor)
            self._trace.freeze(self._trace.planes(tensor), f"{reason} from {where}" if where else reason)

    def _pass(self, inputs: Any, train: bool) -> list[torch.Tensor]:
        self._model.train(train)
        fast_path, onednn = torch.backends.mha.get_fastpath_enabled(), torch.backends.mkldnn.enabled
        torch.backends.mha.set_fastpath_enabled(False)
        if any(isinstance(module, nn.RNNBase) for module in self._model.modules()):
            torch.backends.mkldnn.enabled = False  # type: ignore[assignment]  # its LSTM is one operation
        mode = LabelMode(self._trace, RULES, pointwise, unknown)
        try:
            with (
                torch.no_grad(),
                rng.fork_rng(),
                self._trace.following(self._model),
                mode,
                Calls(self._trace),
            ):
                return tensors_in(call(self._model, inputs))
        finally:
            torch.backends.mha.set_fastpath_enabled(fast_path)
            torch.backends.mkldnn.enabled = onednn

    def _reach_by_training(self, dummy_input: Any) -> None:
        """Runs train mode where eval mode leaves layers out; tells of those that neither runs."""
        if not self._silent():
            return
        try:
            outputs = on_enough_rows(lambda inputs: self._pass(inputs, train=True), dummy_input)
        except Exception:
            outputs = []  # it does not run on example inputs in train mode
        self._give(outputs, "they reach the model's output in train mode")
        silent = self._silent()
        if silent:
            named = ", ".join(f"'{name}'" for name in silent[:6])
            named += f" and {len(silent) - 6} more" if silent[6:] else ""
            self._notes.append(
                f"{UNREACHED}{named} neither in eval nor in train mode. If your training uses that, "
                "exclude the layers that feed it"
            )

    def _silent(self) -> list[str]:
        return sorted(
            name
            for name, module in self._model.named_modules()
            if (own := [p for p in module._parameters.values() if p is not None])
            and not any(id(p) in self._trace.used for p in own)
        )

    # Labels of parameters ---------------------------------------------------------------------------------------------

    def _label(self, name: str, module: nn.Module) -> None:
        for side in SIDES:
            try:
                view = module_axis(module, name, side)
            except CompressionError as error:
                if side == "out" and not is_own(module) and (module._parameters or any(computed(module, name))):
                    self._refused[name] = str(error)
                continue
            if not view.tensors:
                continue
            grouped = isinstance(module, CONV) and by_group(module.groups, module.in_channels, module.out_channels)
            if grouped and side == "in":
                continue  # they go with the outputs
            producer = (isinstance(module, PRODUCERS) or is_conv1d(module)) and not grouped
            own = self._units.fresh(view.size)
            if isinstance(module, nn.MultiheadAttention) and side == "out":
                heads = labels_of(own).view(3, -1, module.head_dim)  # of queries, keys and values alike, and whole
                self._units.join(heads[:1, :, :1], heads, "")
                if heads.shape[1] == 1:
                    self._units.freeze(labels_of(own), f"'{name}' has one head")
            self._axes.append(_LabelledAxis(name, view, producer, own))
            for tensor, layout in view.tensors.items():
                self._place(getattr(view.owner, tensor), view, layout, own)

    def _label_plain(self, name: str, module: nn.Module) -> None:
        """Parameters that no layer of torch's knows: an axis for each dimension."""
        if not type(module).__module__.startswith("torch.nn."):
            self._label_dimensions(name, module, module._parameters)

    def _label_buffers(self, name: str, module: nn.Module) -> None:
        """As `_label_plain`, of numbers that are not trained: slopes of heads, tables of places."""
        if not type(module).__module__.startswith("torch."):
            self._label_dimensions(name, module, module._buffers)

    def _label_dimensions(self, name: str, module: nn.Module, held: Mapping[str, torch.Tensor | None]) -> None:
        if name in self._refused:
            return
        known = {tensor for axis in self._axes if axis.view.owner is module for tensor in axis.view.tensors}
        for attribute, tensor in held.items():
            if tensor is None or attribute in known or not tensor.is_floating_point():
                continue
            for dim in [d for d, size in enumerate(tensor.shape) if size > 1]:
                view = parameter_axis(module, attribute, dim)
                own = self._units.fresh(view.size)
                self._axes.append(_LabelledAxis(f"{name}.{attribute}" if name else attribute, view, False, own))
                self._place(tensor, view, f"dim{dim}", own)

    def _name_sizes(self, name: str, module: nn.Module) -> None:
        """Numbers among a module's attributes know from now on whose they are.

        Those of torch's layers follow cuts; of recurrent ones the hidden width is read by code that makes their states.
        """
        if isinstance(module, RECURRENT) and not is_own(module):
            self._name_numbers(vars(module), name, "", {"hidden_size"})
        if not is_own(module) or is_conv1d(module):
            return
        own = vars(module)
        self._name_numbers(own, name, "")
        for key in _CONFIGS & own.keys():
            if hasattr(own[key], "__dict__") and not isinstance(own[key], nn.Module | type):
                own[key] = copy.copy(own[key])
                self._name_numbers(vars(own[key]), name, f"{key}.")

    def _name_numbers(self, own: dict[str, Any], module: str, prefix: str, only: Collection[str] | None = None) -> None:
        for key, value in own.items():
            if type(value) is int and value > 1 and (only is None or key in only):
                self._values[module, prefix + key] = value
                own[key] = NamedSize.of(value, module, prefix + key)

    def _place(self, tensor: torch.Tensor, view: AxisView, layout: str, own: range) -> None:
        if isinstance(view.owner, CONV) and view.owner.groups > 1:
            self._kernels.setdefault(id(tensor), {}).setdefault(view.axis, labels_of(own))
        dim = int(layout[3:]) if layout.startswith("dim") else int(layout == "cols")
        if tensor.shape[dim] != len(own):
            return  # a kernel in groups, whose channels one plane cannot tell
        axis = Axis(own, dim, tensor.dim(), isinstance(tensor, nn.Parameter))  # of buffers nothing is masked
        axes = self._planes.setdefault(id(tensor), [])
        for known in axes:
            if (known.dim, len(known.atoms)) == (dim, len(own)):  # two modules share it
                self._units.join(labels_of(known.atoms), labels_of(own), "")
        axes.append(axis)

    # The result -------------------------------------------------------------------------------------------------------

    def _found(self) -> ChannelDependencies:
        reached = [axis for axis in self._axes if id(axis) not in self._shared and self._is_reached(axis)]
        followed = follow(self._trace.uses, self._values, self._trace.shapes, self._units)
        reached = self._without_constants(reached)
        order = {name: number for number, name in enumerate(dict(self._model.named_modules()))}
        reached.sort(
            key=lambda axis: (
                order.get(axis.module, order.get(axis.module.rpartition(".")[0], 0)),
                axis.view.axis != "out",
            )
        )
        numbers = _Numbers(self._units.count)
        frozen: list[tuple[str, Any]] = []
        settled = np.zeros(self._units.count + len(self._refused), dtype=bool)  # by unit: made by a layer, or frozen
        texts = self._units.texts
        axes = []
        by_place: dict[tuple[str, str], UnitList] = {}
        for axis in reached:
            roots = self._units.roots(axis.atoms).numpy()
            units, why = numbers.of(roots), self._units.reasons(roots)
            for number in np.unique(why[~settled[units] & (why > 0)]).tolist():
                stay = units[why == number]
                frozen.append((self._placed(texts[number], axis.module), stay))
                settled[stay] = True
            axes.append(DependentAxis(axis.module, axis.view.axis, axis.producer, UnitList(units)))
            owner = axis.module if axis.view.axis in SIDES else axis.module.rpartition(".")[0]
            by_place[owner, axis.view.main] = axes[-1].units
        sizes = self._numbers(followed, numbers)
        for each in axes:
            if each.producer and each.axis == "out":
                settled[each.units.array] = True
        for each in axes:
            stay = each.units.array
            stay = stay[~settled[stay]]
            if len(stay):
                reason = f"'{each.module}' takes these channels from outside the traced model"
                if each.axis not in SIDES:
                    reason = f"no layer gives these channels of the parameter '{each.module}'"
                frozen.append((self._placed(reason, each.module), stay))
                settled[stay] = True
        for name, reason in self._refused.items():
            unit = numbers.fresh()
            frozen.append((self._placed(reason, name), [unit]))
            axes.append(DependentAxis(name, "out", False, UnitList([unit])))
        norms = tuple(
            DependentNorm(name, form.parameter, form.epsilon, form.offset, vector)
            for name, form in self._norms.values()
            for vector in (by_place.get((name, form.parameter)),)
            if vector is not None
        )
        approximate: dict[str, UnitList] = {}
        for labels, name in self._trace.approximate:
            some = np.unique(numbers.known(self._units.roots(labels).numpy()))
            approximate[name] = UnitList(some[some >= 0])
        return ChannelDependencies(
            tuple(axes),
            Reasons(frozen),
            notes=tuple(self._notes),
            numbers=sizes,
            norms=norms,
            approximate=approximate,
            layers=self._layers,
        )

    def _without_constants(self, axes: list[_LabelledAxis]) -> list[_LabelledAxis]:
        """The axes but for those of buffers that nothing goes along."""
        goes = np.zeros(self._units.count, dtype=bool)
        for axis in axes:
            if axis.producer and axis.view.axis == "out":
                goes[self._units.roots(axis.atoms).numpy()] = True
        goes &= self._units.reasons(slice(self._units.count)) == 0
        return [
            axis
            for axis in axes
            if axis.view.axis in SIDES or axis.view.parameters or goes[self._units.roots(axis.atoms).numpy()].any()
        ]

    def _placed(self, reason: str, module: str) -> str:
        """A reason that names a line: if it has none, the one that calls the module, or the owner of the parameter."""
        told = self._told.get((reason, module))
        if told is None:
            called = self._trace.called
            line = "" if _LINE.search(reason) else called.get(module) or called.get(module.rpartition(".")[0], "")
            told = f"{reason}, in '{module}'{line}" if line and f"'{module}" not in reason else reason + line
            self._told[reason, module] = told
        return told

    def _numbers(self, found: dict[tuple[str, str], list[int]], numbers: _Numbers) -> tuple[DependentNumber, ...]:
        """The attributes that count what may be cut."""
        counted = {place: numbers.known(np.array(roots)) for place, roots in found.items()}
        return tuple(
            DependentNumber(module, name, UnitList(units))
            for (module, name), units in counted.items()
            if (units >= 0).all()
        )

    def _is_reached(self, axis: _LabelledAxis) -> bool:
        return any(id(getattr(axis.view.owner, tensor)) in self._trace.used for tensor in axis.view.tensors)

    def _spare_shared(self) -> None:
        """What modules share goes along a dimension that all of them know: the first one's axis stands for all.

        Other dimensions stay: a cut of one module would part them.
        """
        owners: dict[int, list[nn.Module]] = {}
        for module in self._model.modules():
            for parameter in module._parameters.values():
                if parameter is not None:
                    owners.setdefault(id(parameter), []).append(module)
        sharing: dict[tuple[int, int | None], list[_LabelledAxis]] = {}
        for axis in self._axes:
            for tensor in axis.view.parameters:
                key = id(getattr(axis.view.owner, tensor))
                if len(owners[key]) > 1:
                    sharing.setdefault((key, axis.view.dimension(tensor)), []).append(axis)
        for (key, dim), axes in sharing.items():
            alone = {id(axis.view.owner) for axis in axes} == {id(module) for module in owners[key]}
            # Of a layer that gives these channels users may ask for them by its name.
            told = any(a.view.axis == "out" and not isinstance(a.view.owner, nn.Embedding) for a in axes[1:])
            if dim is None or told or not alone or len(axes) != len(owners[key]):
                for axis in axes:
                    name = next(t for t in axis.view.parameters if id(getattr(axis.view.owner, t)) == key)
                    self._units.freeze(axis.atoms, f"'{axis.module}.{name}' is shared with another module")
                continue
            for axis in axes[1:]:
                self._units.join(axes[0].atoms, axis.atoms, "")
                self._shared.add(id(axis))
