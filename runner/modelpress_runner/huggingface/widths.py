"""What a configuration of transformers may say of a model that became narrower: which numbers, tried by shapes."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from modelpress_runner.export.layout import LayoutError
from modelpress_runner.huggingface import compressed_tensors
from modelpress_runner.runtime.example_inputs import tensors

NO_INTEGERS = "transformers has no form of its weights as integers, or of what rounds before its layers"
_MOST_CONFIGURATIONS = 64
_HEADS = ("num_attention_heads", "num_key_value_heads")
_HEAD_WIDTH = "head_dim"
_OPTIONAL_SIZES = ("n_inner",)  # None: four times another size (GPT-2 and its kin)


def shapes_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in compressed_tensors.weights(model).items()}


def configurations(
    config: Any, shapes: Mapping[str, tuple[int, ...]], dense: Mapping[str, tuple[int, ...]] | None
) -> Iterator[Any]:
    """The configuration, and those in which sizes that shrank have their new values."""
    yield config
    if dense is None or dense.keys() != shapes.keys():
        return
    changed: dict[tuple[int, int], None] = {}
    for name, before in dense.items():
        for old, new in zip(before, shapes[name], strict=False):
            if old != new:
                changed[old, new] = None
    # Sizes of two meanings may be one number, and shrink to two: then each field is tried with each.
    changes = [_changes(config, old, new) for old, new in changed]
    if not changed or not all(changes):
        return
    for chosen in itertools.islice(itertools.product(*changes), _MOST_CONFIGURATIONS):
        other = copy.deepcopy(config)
        for key, value in (item for change in chosen for item in change.items()):
            setattr(other, key, value)
        yield other


def _changes(config: Any, old: int, new: int) -> list[dict[str, int]]:
    """What may say that a size has changed: a field that had it, or numbers of heads whose width is a field, too."""
    known = {key: value for key, value in vars(config).items() if type(value) is int}
    changes = [{key: new} for key, value in known.items() if value == old]
    changes += [{key: new} for key in _OPTIONAL_SIZES if getattr(config, key, 0) is None]
    if hasattr(config, _HEAD_WIDTH):
        heads = {key: known[key] for key in _HEADS if known.get(key)}
        fewer = {
            key: {key: new // (old // count), _HEAD_WIDTH: old // count}
            for key, count in heads.items()
            if old % count == 0 and new % (old // count) == 0
        }
        changes += [*fewer.values(), {key: value for each in fewer.values() for key, value in each.items()}]
    elif (whole := known.get(_HEADS[0])) and old % whole == 0 and new % (old // whole) == 0:
        # The width of a head is that of the model by the number of heads: both may have become smaller alike.
        changes += [{key: new, _HEADS[0]: new // (old // whole)} for key, value in known.items() if value == old]
    return changes


def nearest(model: nn.Module, fitting: Sequence[tuple[Any, nn.Module]]) -> Any:
    """Of configurations, each with an empty model of it, that whose modules hold the numbers that `model`'s hold.

    Shapes leave open what numbers of heads, and the epsilon of norms that were rescaled, say.
    """
    ours = _numbers(model)
    missed = [{key for key, value in _numbers(empty).items() if ours.get(key, value) != value} for _, empty in fitting]
    best = min(range(len(fitting)), key=lambda number: len(missed[number]))
    config, empty = fitting[best]
    theirs = _numbers(empty)
    changed = {(theirs[key], ours[key]) for key in missed[best] if "eps" in key.rpartition(".")[2]}
    if len(changed) != 1:
        return config
    old, new = changed.pop()
    fields = [key for key, value in vars(config).items() if "eps" in key and value == old]
    kept = [key for key, value in theirs.items() if "eps" in key.rpartition(".")[2] and value == old]
    if len(fields) != 1 or any(ours.get(key, new) != new for key in kept):
        return config
    other = copy.deepcopy(config)
    setattr(other, fields[0], new)
    return other


def _numbers(model: nn.Module) -> dict[str, int | float]:
    """The numbers that modules hold as attributes, by their full names."""
    return {
        f"{name}.{key}": value
        for name, module in model.named_modules()
        for key, value in vars(module).items()
        if type(value) in (int, float)
    }


def fields_of(config: Any, other: Any) -> dict[str, Any]:
    """The numbers that are others in the second configuration."""
    return {key: value for key, value in vars(other).items() if vars(config).get(key) != value}


def compare(written: nn.Module, again: nn.Module, model: nn.Module, dummy_input: Any) -> None:
    """Raises LayoutError unless what was read back holds what was written, and gives what `model` gives."""
    compressed_tensors.decompressed(again)
    ours = compressed_tensors.weights(written)
    theirs = {name: value for name, value in again.state_dict().items() if not name.endswith(compressed_tensors.BESIDE)}
    if ours.keys() != theirs.keys():
        raise LayoutError(f"read back, it differs in {min(ours.keys() ^ theirs.keys())}")
    for name, value in ours.items():
        if value.shape != theirs[name].shape or not torch.equal(value.cpu(), theirs[name].cpu()):
            raise LayoutError(f"read back, {name} is another")
    device = next(model.parameters()).device
    inputs = {name: value.to(device) for name, value in dummy_input.items()}
    with torch.no_grad():
        model.eval()
        pairs = list(zip(tensors(model(**inputs)), tensors(again.to(device)(**inputs)), strict=True))
    if not pairs or not all(torch.allclose(one, other, rtol=1e-5, atol=1e-6) for one, other in pairs):
        raise LayoutError("read back, it gives other outputs")
