"""Calibration data through a model block by block: what is behind a block is not run, what is before it is remembered.

A chain is a list of modules of which each takes what the one before it gives, as the layers of a transformer do. To see
what a block takes, the model's own forward runs with the blocks before it replaced by their last output, and ends
behind the block. So masks, positions and whatever else a model hands to its blocks are made by the model itself. That
blocks are a chain is proven on the first batch: inputs must be those of a plain run, bit for bit. Layers outside the
chain stand before or behind it.

Memory holds the outputs of one block for all batches, or a folder does where they are larger than ROOM.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from modelpress_runner.methods.context import StageContext
from modelpress_runner.methods.quantize.moments import Taken
from modelpress_runner.passes.forward import ForwardPass, first_batch, over_calibration
from modelpress_runner.passes.run import Kind, Sources, run_pass
from modelpress_runner.process.stopping import Stopped
from modelpress_runner.runtime import rng
from modelpress_runner.runtime.example_inputs import as_call, on_device
from modelpress_runner.runtime.preserve import untouched

ROOM = 256 * 1024 * 1024  # bytes of outputs in memory
_MOMENTS = 1 << 30  # bytes of second moments at a time, where there is no chain


@dataclass(frozen=True)
class Unit:
    """Layers that are set together.

    Attributes:
        layers: their names.
        scope: the name of the block that they are in; None: they are in none.
        place: the block's number in the chain; -1: before the chain; None: seen by whole passes.
        looks: what they take is looked at.
    """

    layers: tuple[str, ...]
    scope: str | None = None
    place: int | None = None
    looks: bool = True


@dataclass
class Run:
    """Units in order, and what gives what their layers take, each asked for once the units before are set."""

    units: list[Unit]
    taken: Callable[[Unit], Mapping[str, Taken]]
    notes: list[str] = field(default_factory=list)
    close: Callable[[], None] = lambda: None  # forgets what is remembered


def stream(context: StageContext, products: Sequence[str], others: Sequence[str], batches: int | None) -> Run:
    """A run over the data that there are: block by block over calibration data where the model has a chain.

    Args:
        context: model and data; the model stays as it is, but for what the caller does to its layers.
        products: names of layers whose inputs are looked at (`products.is_product`).
        others: names of layers that are rounded first.
        batches: so many, at most; None: all.
    """
    first = [Unit(tuple(others), looks=False)] if others else []
    sources = Sources(context.evaluator, context.calibration_data)
    kind = sources.kind({"activations"})
    assert kind is not None
    if not products:
        return Run(first, lambda unit: {})
    if kind is Kind.CALIBRATION:
        chain = _Chain.of(context, products, batches)
        if chain is not None:
            return Run([*first, *chain.units], chain.taken, close=chain.close)
    units = [Unit(tuple(names)) for names in _by_size(context.model, products)]

    def whole(unit: Unit) -> Mapping[str, Taken]:
        if not unit.looks:
            return {}

        def make(data: Any) -> dict[str, Taken]:
            return {name: Taken(name, context.model.get_submodule(name), data) for name in unit.layers}

        found, _ = run_pass(context.model, sources, kind, make, batches=batches, seed=context.seed, stop=context.stop)
        return found

    note = "the model was looked at as a whole: "
    note += "it is no chain of blocks" if kind is Kind.CALIBRATION else "block by block goes calibration data only"
    return Run([*first, *units], whole, [note])


def _by_size(model: nn.Module, names: Sequence[str]) -> Iterator[list[str]]:
    held: list[str] = []
    size = 0
    for name in names:
        own = Taken.bytes(model.get_submodule(name))
        if held and size + own > _MOMENTS:
            yield held
            held, size = [], 0
        held.append(name)
        size += own
    if held:
        yield held


class _Enough(Stopped):
    """What is behind the block that is looked at need not run; passes through the user's code as Stopped does."""


class _Outputs:
    """What one block gave for each batch."""

    def __init__(self) -> None:
        self._held: dict[int, Any] = {}
        self._bytes = 0
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def put(self, number: int, value: Any) -> None:
        leaves, spec = pytree.tree_flatten(value)
        leaves = [leaf.detach().clone() if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
        size = sum(leaf.numel() * leaf.element_size() for leaf in leaves if isinstance(leaf, torch.Tensor))
        if isinstance(self._held.get(number), tuple):
            self._bytes -= size  # as large as what it replaces
            del self._held[number]
        if self._bytes + size <= ROOM:
            self._held[number] = (leaves, spec)
            self._bytes += size
            return
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="modelpress-activations-")
        path = Path(self._folder.name) / f"{number}.pt"
        tensors = {str(at): leaf for at, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)}
        torch.save(tensors, path)
        rest = [None if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
        self._held[number] = [path, rest, spec]

    def get(self, number: int, device: torch.device) -> Any:
        found = self._held[number]
        if isinstance(found, tuple):
            return pytree.tree_unflatten(*found)
        path, rest, spec = found
        tensors = torch.load(path, map_location=device, weights_only=True)
        return pytree.tree_unflatten([tensors.get(str(at), leaf) for at, leaf in enumerate(rest)], spec)

    def close(self) -> None:
        self._held.clear()
        self._bytes = 0
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None


class _Chain:
    """A chain of a model, and how far data went through it."""

    def __init__(
        self, context: StageContext, blocks: list[tuple[str, nn.Module]], units: list[Unit], batches: int | None
    ) -> None:
        self._context, self._blocks, self.units, self._batches = context, blocks, units, batches
        self._outputs = _Outputs()
        self._known = 0  # outputs are those of the block before this one

    @classmethod
    def of(cls, context: StageContext, products: Sequence[str], batches: int | None) -> _Chain | None:
        """The chain whose largest part is smallest; None: the model has none."""
        model = context.model
        batch = first_batch(context.calibration_data)  # type: ignore[arg-type]
        sizes = {name: Taken.bytes(model.get_submodule(name)) for name in products}
        found: list[tuple[int, str]] = []
        for name, module in model.named_modules():
            if isinstance(module, nn.ModuleList | nn.Sequential) and len(module) > 1:
                parts = _parts(name, module, products)
                if sum(bool(part) for part in parts[:-1]) > 1:
                    found.append((max(sum(sizes[each] for each in part) for part in parts), name))
        for _, name in sorted(found, key=lambda each: each[0])[:4]:
            blocks = [
                (f"{name}.{key}" if name else key, block) for key, block in model.get_submodule(name)._modules.items()
            ]
            units = _units(model, name, [(key, block) for key, block in blocks if block is not None], products, batch)
            if units is None:
                continue
            chain = cls(context, [(key, block) for key, block in blocks if block is not None], units, batches)
            if chain._proven(batch):
                return chain
        return None

    def close(self) -> None:
        """As Run.close."""
        self._outputs.close()

    def taken(self, unit: Unit) -> Mapping[str, Taken]:
        """As Run.taken."""
        if not unit.looks:
            return {}
        context, model = self._context, self._context.model
        data = ForwardPass(model)
        found = {name: Taken(name, model.get_submodule(name), data) for name in unit.layers}
        number = itertools.count()
        before = self._known

        def call(*args: Any, **kwargs: Any) -> None:
            self._call(next(number), unit, before, args, kwargs)

        try:
            for each in found.values():
                each.attach()
            with rng.fork_rng(context.seed):
                over_calibration(
                    model,
                    context.calibration_data,  # type: ignore[arg-type]
                    self._batches,
                    lambda: None,
                    context.evaluator,
                    context.stop,
                    call,
                )
        finally:
            data.close()
        for each in found.values():
            each.sync()
        self._known = max(before, unit.place or 0)
        return found

    def _call(self, number: int, unit: Unit, before: int, args: Any, kwargs: Any) -> None:
        """Calls the model on a batch as far as a unit needs it, with the outputs of the blocks before `before`."""
        assert unit.place is not None
        place, last = unit.place, len(self._blocks)
        with contextlib.ExitStack() as undone:
            for _, block in self._blocks[:before]:
                self._replace(block, number, undone)
            if place > before:
                at = self._blocks[place - 1][1]
                undone.callback(at.register_forward_hook(lambda m, a, output: self._outputs.put(number, output)).remove)
            if place < 0:
                undone.callback(self._blocks[0][1].register_forward_pre_hook(_enough).remove)
            elif place < last:
                undone.callback(self._blocks[place][1].register_forward_hook(_enough).remove)
            with contextlib.suppress(_Enough):
                self._context.model(*args, **kwargs)

    def _replace(self, block: nn.Module, number: int, undone: contextlib.ExitStack) -> None:
        def given(*args: Any, **kwargs: Any) -> Any:
            device = next((leaf.device for leaf in pytree.tree_leaves((args, kwargs)) if _tensor(leaf)), None)
            return self._outputs.get(number, device or torch.device("cpu"))

        own = vars(block).get("forward")
        block.forward = given
        undone.callback(lambda: setattr(block, "forward", own) if own is not None else delattr(block, "forward"))

    @torch.no_grad()
    def _proven(self, batch: Any) -> bool:
        """Whether on this batch each block takes the same with the blocks before it replaced as in a plain run."""
        model = self._context.model
        device = next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
        args, kwargs = as_call(on_device(batch, device))
        end = len(self._blocks)
        with untouched(model), rng.fork_rng(0):
            plain = self._digests(lambda: model(*args, **kwargs))
            same = True
            try:
                for place in range(1, end + 1):
                    unit = Unit((), place=place)
                    seen = self._digests(functools.partial(self._call, 0, unit, place - 1, args, kwargs))
                    # The blocks that ran: the last one whose input was remembered, and the one behind it or the rest.
                    at = [place - 1, place] if place < end else [key for key in plain if key >= end - 1]
                    same = same and all(seen.get(key) == plain.get(key) for key in at)
            finally:
                self.close()
        return same

    def _digests(self, run: Callable[[], Any]) -> dict[int, str]:
        """Of what each block takes, by its number, and, with numbers behind those, of what layers behind them take."""
        found: dict[int, str] = {}

        def look(number: int) -> Any:
            def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
                total = hashlib.sha256(found.get(number, "").encode())
                for leaf in pytree.tree_leaves((args, kwargs)):
                    if _tensor(leaf):
                        value = leaf.detach().contiguous().reshape(-1).view(torch.uint8).cpu()
                        total.update(f"{leaf.dtype} {tuple(leaf.shape)}".encode() + value.numpy().tobytes())
                found[number] = total.hexdigest()

            return hook

        late = [unit.layers for unit in self.units if unit.place == len(self._blocks)]
        modules = [block for _, block in self._blocks]
        modules += [self._context.model.get_submodule(name) for names in late for name in names]
        hooks = [
            module.register_forward_pre_hook(look(number), with_kwargs=True) for number, module in enumerate(modules)
        ]
        try:
            run()
        finally:
            for hook in hooks:
                hook.remove()
        return found


def _tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)


def _enough(*_: Any) -> None:
    raise _Enough


def _parts(name: str, container: nn.Module, products: Sequence[str]) -> list[list[str]]:
    """The layers in each child of a container, and those outside of it."""
    prefix = f"{name}." if name else ""
    inside = [
        [each for each in products if each == f"{prefix}{key}" or each.startswith(f"{prefix}{key}.")]
        for key in container._modules
    ]
    held = {each for part in inside for each in part}
    return [*inside, [each for each in products if each not in held]]


def _units(
    model: nn.Module, name: str, blocks: Sequence[tuple[str, nn.Module]], products: Sequence[str], batch: Any
) -> list[Unit] | None:
    """The units of a chain in order; None: its blocks are not called once each, in order."""
    order: list[str] = []
    wanted = {id(block): key for key, block in blocks}
    wanted |= {id(model.get_submodule(each)): each for each in products if id(model.get_submodule(each)) not in wanted}

    def look(module: nn.Module, args: Any) -> None:
        order.append(wanted[id(module)])

    hooks = [module.register_forward_pre_hook(look) for module in model.modules() if id(module) in wanted]
    device = next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
    args, kwargs = as_call(on_device(batch, device))
    try:
        with untouched(model), torch.no_grad(), rng.fork_rng(0):
            model(*args, **kwargs)
    finally:
        for hook in hooks:
            hook.remove()
    keys = [key for key, _ in blocks]
    if [key for key in order if key in keys] != keys:
        return None
    parts = dict(zip(keys, _parts(name, model.get_submodule(name), products), strict=False))
    inside = {each for part in parts.values() for each in part}
    outside = [each for each in products if each not in inside]
    begin, end = order.index(keys[0]), order.index(keys[-1])
    early = tuple(each for each in outside if each in order and order.index(each) < begin)
    if any(begin < at < end for each in outside for at, called in enumerate(order) if called == each):
        return None
    late = tuple(each for each in outside if each not in early)
    units = [Unit(early, None, -1)] if early else []
    units += [Unit(tuple(parts[key]), key, place) for place, key in enumerate(keys) if parts[key]]
    return [*units, Unit(late, None, len(keys))] if late else units
