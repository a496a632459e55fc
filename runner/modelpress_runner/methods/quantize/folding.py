"""Batch norms right behind a layer, which can become part of its weight."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, cast

import torch
from torch import nn
from torch.utils import _pytree as pytree

from modelpress_runner.edits.axes import BATCH_NORM
from modelpress_runner.edits.copies import copied
from modelpress_runner.edits.masks import Masks
from modelpress_runner.edits.quantize import FoldNorm, FrozenLayer, folds
from modelpress_runner.edits.replay import replay
from modelpress_runner.runtime.example_inputs import as_call, on_device
from modelpress_runner.runtime.preserve import untouched

_RTOL, _ATOL = 1e-3, 1e-4  # of float32; as programs are proven


def foldable(model: nn.Module, layers: Iterable[str], dummy_input: Any, masks: Masks) -> list[FoldNorm]:
    """The folds that change nothing of what a model gives in eval mode, proven on example inputs.

    Args:
        model: stays as it is.
        layers: names of those whose norms are looked for.
        dummy_input: example inputs.
        masks: norms that have one, and layers whose bias has, are left, for what is masked must stay zero.
    """
    pairs = [
        fold
        for fold in _pairs(model, set(layers), dummy_input)
        if fold.norm not in masks and not _masked(masks.get(fold.layer, {}).get("bias"))
    ]
    if not pairs:
        return []
    before = _outputs(model, dummy_input)
    if _same(model, pairs, dummy_input, before):
        return pairs
    good: list[FoldNorm] = []
    for fold in pairs:
        if _same(model, [*good, fold], dummy_input, before):
            good.append(fold)
    return good


def _masked(mask: torch.Tensor | None) -> bool:
    return mask is not None and bool((mask == 0).any())


def _pairs(model: nn.Module, layers: set[str], dummy_input: Any) -> Iterator[FoldNorm]:
    """Layers whose very output a norm takes; each of both called once."""
    made: dict[int, str] = {}
    kept: list[torch.Tensor] = []  # so that no other tensor gets the identity of one
    found: dict[str, str] = {}
    calls: dict[str, int] = {}

    def give(name: str) -> Any:
        def look(module: nn.Module, args: Any, output: Any) -> None:
            calls[name] = calls.get(name, 0) + 1
            made[id(output)] = name
            kept.append(output)

        return look

    def take(name: str) -> Any:
        def look(module: nn.Module, args: Any) -> None:
            calls[name] = calls.get(name, 0) + 1
            if args and id(args[0]) in made:
                found[made[id(args[0])]] = name

        return look

    hooks = []
    for name, module in model.named_modules():
        if name in layers and folds(module):
            hooks.append(module.register_forward_hook(give(name)))
        elif isinstance(module, BATCH_NORM) and module.running_var is not None:
            hooks.append(module.register_forward_pre_hook(take(name)))
    try:
        _outputs(model, dummy_input)
    finally:
        for hook in hooks:
            hook.remove()
    shared = _shared(model)
    for layer, norm in found.items():
        module = model.get_submodule(layer)
        held = module.weight_integers if isinstance(module, FrozenLayer) else module.get_parameter("weight")
        sizes = model.get_submodule(norm).num_features == cast(torch.Tensor, module.weight).shape[0]
        if calls[layer] == calls[norm] == 1 and sizes and id(held) not in shared:
            yield FoldNorm(layer, norm)


def _shared(model: nn.Module) -> set[int]:
    """Identities of parameters and buffers that several modules hold."""
    count: dict[int, int] = {}
    for module in model.modules():
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is not None:
                count[id(tensor)] = count.get(id(tensor), 0) + 1
    return {each for each, number in count.items() if number > 1}


@torch.no_grad()
def _outputs(model: nn.Module, dummy_input: Any) -> list[torch.Tensor]:
    device = next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
    args, kwargs = as_call(on_device(dummy_input, device))
    with untouched(model):
        leaves = pytree.tree_leaves(model(*args, **kwargs))
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]


def _same(model: nn.Module, folds: list[FoldNorm], dummy_input: Any, before: list[torch.Tensor]) -> bool:
    twin = copied(model)
    replay(twin, folds)
    after = _outputs(twin, dummy_input)
    return len(after) == len(before) and all(
        a.shape == b.shape and torch.allclose(a.float(), b.float(), rtol=_RTOL, atol=_ATOL)
        for a, b in zip(after, before, strict=True)
    )
