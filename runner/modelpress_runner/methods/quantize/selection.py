"""Which layers a quantize block selects, and what stands before their targets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from modelpress.api.stages.quantize import GROUP_SIZE, numbers
from modelpress.api.stages.quantize_backends import row_of
from modelpress.api.v1alpha1 import Quantize, QuantizeEntry
from modelpress.api.v1alpha1.algorithms import Algorithm
from modelpress_runner.edits.computed import computed
from modelpress_runner.edits.quantize import QuantizedLayer, channel_axis, why_not
from modelpress_runner.edits.quantizers import QuantizerSpec
from modelpress_runner.errors import InvalidSpecError
from modelpress_runner.methods.called import called_modules
from modelpress_runner.methods.quantize.protocol import method
from modelpress_runner.methods.selectors import is_of, matches

Targets = dict[str, QuantizerSpec]

# Layers that servers compute as one: their weights must be of one kind.
_FUSED = (("q_proj", "k_proj", "v_proj"), ("query", "key", "value"), ("gate_proj", "up_proj"), ("w1", "w3"))


@dataclass(frozen=True)
class Selection:
    """What is quantized, by module, in the model's order; and what is worth a note."""

    layers: dict[str, Targets]
    notes: tuple[str, ...] = ()


def select(model: nn.Module, block: Quantize, path: str, dummy_input: Any = None, again: bool = False) -> Selection:
    """Applies configList to the modules of a model.

    Args:
        model: stays as it is.
        block: the stage's.
        path: of the block.
        dummy_input: to see which layers are called; None: that is not looked at.
        again: the layers may be quantized already, by this very block.

    Raises:
        InvalidSpecError: a selector matches nothing; a module that is named cannot be quantized; groups do not divide
            a weight; nothing is left.
    """
    modules = dict(model.named_modules())
    row = row_of(block)
    holders: dict[str, list[tuple[int, QuantizeEntry]]] = {}
    excluded: set[str] = set()
    by = "" if block.backend == "torch" else f" of {block.backend}"
    takes = f"{row.name}{by} quantizes {', '.join(row.default_types)}"
    for number, entry in enumerate(block.config_list):
        names = matches(modules, entry, row.default_types, takes, f"{path}.configList[{number}]")
        if entry.exclude:
            excluded.update(names)
            continue
        for name in names:
            holders.setdefault(name, []).append((number, entry))
    called = None if dummy_input is None or again else called_modules(model, dummy_input)
    layers: dict[str, Targets] = {}
    notes: list[str] = []
    for name, module in modules.items():
        if name not in holders or name in excluded:
            continue
        reason = next((str(each) for each in computed(module, name)), None)
        if reason is None and not (again and isinstance(module, QuantizedLayer)):
            why = why_not(module)
            reason = None if why is None else f"'{name}' {why}"
        if reason is None and by and not is_of(module, row.default_types):
            reason = f"'{name}' is a {type(module).__name__}, and {takes}"
        if reason is None and called is not None and name not in called:
            reason = f"'{name}' is not called on the example inputs, so what uses its weight would not see it rounded"
        if reason is None and block.backend == "compressed-tensors":
            reason = _tied(model, module, name)
        if reason is None:
            layers[name] = _targets(module, name, block, row, holders[name], path)
            continue
        naming = next((number for number, entry in holders[name] if name in (entry.op_names or ())), None)
        if naming is not None:
            raise InvalidSpecError(reason, f"{path}.configList[{naming}].opNames")
        notes.append(f"Left as it was: {reason}")
    if not layers:
        why = "; ".join(note.removeprefix("Left as it was: ") for note in notes[:3])
        message = f"no selected module can be quantized: {why}" if why else "every selected module is excluded again"
        raise InvalidSpecError(f"{message}; select one that can", f"{path}.configList")
    apart = list(_apart(model, layers))
    if apart and block.backend == "compressed-tensors":
        raise InvalidSpecError(f"{apart[0]}; select them alike", f"{path}.configList")
    return Selection(layers, (*notes, *apart))


def _targets(
    module: nn.Module, name: str, block: Quantize, row: Algorithm, entries: list[tuple[int, QuantizeEntry]], path: str
) -> Targets:
    """What stands before each target of a layer."""
    quantizing = method(block.algorithm)
    chain: list[Quantize | QuantizeEntry] = [block, *(entry for _, entry in entries)]
    last = f"{path}.configList[{entries[-1][0]}]"

    def said(field: str, default: Any) -> Any:
        values = (getattr(holder, field) for holder in reversed(chain))
        return next((value for value in values if value is not None), default)

    targets: Targets = {}
    for target in said("targets", row.targets):
        if target == "input" and isinstance(module, nn.Embedding):
            continue  # it takes whole numbers
        axis = group = None
        granularity = said("granularity", "channel")
        if target == "weight" and granularity != "tensor":
            axis = channel_axis(module)
            if granularity == "group":
                group = _group(module, name, axis, said("group_size", GROUP_SIZE), last)
        spec = quantizing.spec(target, numbers(chain, target, row), axis, group)
        if spec.kind == "dynamic" and block.backend == "compressed-tensors":
            spec = replace(spec, kind="token")
        targets[target] = spec
    if not targets:
        raise InvalidSpecError(f"'{name}' takes no numbers, so there is nothing to quantize; exclude it", last)
    return targets


def _group(module: nn.Module, name: str, axis: int, size: int, path: str) -> int:
    weight = module.get_parameter("weight")
    row = weight.numel() // max(1, weight.shape[axis])
    if axis:
        raise InvalidSpecError(
            f"the outputs of '{name}' are no rows of its weight; take channel", f"{path}.granularity"
        )
    size = min(size, row)
    if row % size or size < 2:
        raise InvalidSpecError(
            f"groups of {size} do not divide the {row} weights of an output of '{name}'; take a divisor, or exclude it",
            f"{path}.groupSize",
        )
    return size


def _tied(model: nn.Module, module: nn.Module, name: str) -> str | None:
    """Why a layer that shares its weight stays, as a clause: the files of transformers tie such weights again."""
    weight = module._parameters.get("weight")
    for other, held in model.named_modules():
        if weight is not None and held is not module and held._parameters.get("weight") is weight:
            return f"'{name}' shares its weight with '{other}', and transformers would tie them again"
    return None


def _apart(model: nn.Module, layers: Mapping[str, Targets]) -> Iterator[str]:
    """Notes about layers that servers compute as one, and that are quantized in several ways."""
    names = {name for name, _ in model.named_modules()}
    seen: set[tuple[str, ...]] = set()
    for name in layers:
        parent, _, own = name.rpartition(".")
        for fused in _FUSED:
            together = tuple(f"{parent}.{each}" if parent else each for each in fused)
            if own not in fused or together in seen or not names.issuperset(together):
                continue
            seen.add(together)
            if len({str(layers.get(each, {}).get("weight")) for each in together}) > 1:
                listed = ", ".join(together)
                yield f"{listed} are quantized in several ways; servers that compute them as one take only one"
