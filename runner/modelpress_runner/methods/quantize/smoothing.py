"""What can be scaled together: a norm, or a layer, whose outputs are divided by numbers, and the layers behind it,
whose weights are multiplied by them. The model computes the same (Xiao et al. 2022, arXiv 2211.10438, section 4; Lin
et al. 2023, arXiv 2306.00978, section 3.2).

Candidates are found by looking at one call of the model: the layers that take the very output of a norm, and else a
layer of as many outputs that was called shortly before. They are proven by scaling with powers of two, which changes no
digit and is undone exactly.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from modelpress_runner.edits.axes import is_conv1d
from modelpress_runner.errors import InvalidSpecError
from modelpress_runner.methods.context import StageContext
from modelpress_runner.methods.quantize.products import matrix
from modelpress_runner.passes.forward import first_batch
from modelpress_runner.runtime import rng
from modelpress_runner.runtime.example_inputs import as_call, on_device
from modelpress_runner.runtime.preserve import untouched

_NEAR = 3  # layers before one, that are tried
_RTOL = 1e-4  # of the greatest output: powers of two leave every product as it is


@dataclass(frozen=True)
class Smoothing:
    """A module whose outputs can be divided, and the layers whose inputs they are."""

    source: str
    layers: tuple[str, ...]


@torch.no_grad()
def scale(model: nn.Module, smoothing: Smoothing, factors: torch.Tensor) -> None:
    """Divides the source's outputs by `factors`, (outputs,), and multiplies the columns of the layers' weights."""
    source = model.get_submodule(smoothing.source)
    weight = source.get_parameter("weight")
    rows = factors if is_conv1d(source) else factors.view(-1, *[1] * (weight.dim() - 1))
    weight.copy_(weight.double() / rows.to(weight.device))
    if (bias := source._parameters.get("bias")) is not None:
        bias.copy_(bias.double() / factors.to(bias.device))
    for name in smoothing.layers:
        layer = model.get_submodule(name)
        held = layer.get_parameter("weight")
        held.copy_(held.double() * (factors.view(-1, 1) if is_conv1d(layer) else factors).to(held.device))


def smoothings(context: StageContext, layers: Sequence[str], path: str) -> list[Smoothing]:
    """Those of linear layers that change nothing of what the model gives, each layer in one at most.

    Args:
        context: the model, which stays as it is, and what it can be called on.
        layers: names of those that may be scaled.
        path: of the stage.

    Raises:
        InvalidSpecError: there is nothing to call the model on.
    """
    model = context.model
    batch = context.dummy_input
    if batch is None and context.calibration_data is not None:
        batch = first_batch(context.calibration_data)
    if batch is None:
        raise InvalidSpecError(
            "what can be scaled together is proven on example inputs, and there are none; give a dummy_input", path
        )
    device = next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
    args, kwargs = as_call(on_device(batch, device))

    def outputs() -> list[torch.Tensor]:
        with untouched(model), torch.no_grad(), rng.fork_rng(0):
            found = pytree.tree_leaves(model(*args, **kwargs))
        return [leaf for leaf in found if isinstance(leaf, torch.Tensor) and leaf.is_floating_point()]

    found = list(_candidates(model, layers, outputs))
    before = outputs()
    best = [options[0] for options in found]
    if _holds(model, best, outputs, before):
        return best
    proven: list[Smoothing] = []
    for options in found:
        proven += [each for each in options if _holds(model, [each], outputs, before)][:1]
    return proven


def _candidates(model: nn.Module, layers: Sequence[str], outputs: Any) -> Iterator[list[Smoothing]]:
    """For layers that take the same, what could be scaled with them, the likeliest first."""
    wanted = set(layers)
    made: dict[int, str] = {}
    kept: list[torch.Tensor] = []  # so that no other tensor gets the identity of one
    taken: dict[str, str | None] = {}
    called: list[str] = []

    def give(name: str) -> Any:
        def look(module: nn.Module, args: Any, output: Any) -> None:
            called.append(name)
            if name in wanted and args:
                taken[name] = made.get(id(args[0]))
            if isinstance(output, torch.Tensor):
                made[id(output)] = name
                kept.append(output)

        return look

    shared = {each for each, count in _holders(model) if count > 1}
    modules = {name: module for name, module in model.named_modules() if _scalable(module, shared)}
    hooks = [module.register_forward_hook(give(name)) for name, module in modules.items()]
    try:
        outputs()
    finally:
        for hook in hooks:
            hook.remove()
    once = {name for name in called if called.count(name) == 1}
    groups: dict[str, list[str]] = {}
    for name in layers:
        source = taken.get(name) if name in once else None
        if source is not None and source in once and _width(modules[source]) == _inputs(modules[name]):
            groups.setdefault(source, []).append(name)
    yield from ([Smoothing(source, tuple(names))] for source, names in groups.items())
    held = {name for names in groups.values() for name in names}
    for name in layers:
        if name in held or name not in once or not _linear(modules[name]):
            continue
        before = [each for each in called[: called.index(name)] if each in once and _linear(modules[each])]
        fits = [each for each in reversed(before) if _width(modules[each]) == _inputs(modules[name])]
        near = [each for each in fits if _family(each) == _family(name)][:_NEAR]
        if near:
            yield [Smoothing(each, (name,)) for each in near]


def _holds(model: nn.Module, several: Sequence[Smoothing], outputs: Any, before: Sequence[torch.Tensor]) -> bool:
    """Whether the model gives the same with all of them; it is the same afterwards, to the bit."""
    factors = []
    for number, each in enumerate(several):
        generator = torch.Generator().manual_seed(number)
        width = _width(model.get_submodule(each.source))
        factors.append(2.0 ** torch.randint(-1, 2, (width,), generator=generator).double())
    try:
        for each, own in zip(several, factors, strict=True):
            scale(model, each, own)
        after = outputs()
    finally:
        for each, own in zip(several, factors, strict=True):
            scale(model, each, 1 / own)
    return len(after) == len(before) and all(
        a.shape == b.shape and float((a - b).abs().max()) <= _RTOL * float(b.abs().max())
        for a, b in zip(after, before, strict=True)
        if b.numel()
    )


def _scalable(module: nn.Module, shared: Iterable[int]) -> bool:
    """Norms and linear layers whose weight nobody else holds."""
    weight = module._parameters.get("weight")
    if weight is None or id(weight) in set(shared) or not weight.is_floating_point():
        return False
    rest = set(module._parameters) - {"weight", "bias"}
    return not rest and (_linear(module) or (weight.dim() == 1 and "Norm" in type(module).__name__))


def _holders(model: nn.Module) -> Iterable[tuple[int, int]]:
    count: dict[int, int] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                count[id(parameter)] = count.get(id(parameter), 0) + 1
    return count.items()


def _linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or is_conv1d(module)


def _width(module: nn.Module) -> int:
    weight = module.get_parameter("weight")
    return int(matrix(module, weight).shape[0] if _linear(module) else weight.numel())


def _inputs(module: nn.Module) -> int:
    return int(matrix(module, module.get_parameter("weight")).shape[1]) if _linear(module) else -1


def _family(name: str) -> str:
    """The module that a layer's own one is in: layers of one block are near each other."""
    return name.rpartition(".")[0]
