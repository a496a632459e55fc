"""The mixedPrecision stage: layers that the example inputs reach get half precision, and the outputs are looked at."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from modelpress.api.v1alpha1 import MixedPrecision
from modelpress.api.v1alpha1.mixed_precision import PrecisionEntry
from modelpress_runner.edits.computed import computed
from modelpress_runner.edits.half_precision import HalfPrecision, why_not
from modelpress_runner.errors import CompressionError, InvalidSpecError, first_line
from modelpress_runner.methods.called import called_modules
from modelpress_runner.methods.context import StageContext, Step, Transform
from modelpress_runner.methods.selectors import matches
from modelpress_runner.runtime.example_inputs import as_call, on_device
from modelpress_runner.runtime.graph import tensors_in
from modelpress_runner.runtime.preserve import untouched
from modelpress_runner.stages.base import StageKind
from modelpress_runner.subject.subject import Subject

_TYPES = (
    *("Linear", "Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d"),
    *("Embedding", "Conv1D"),
)
_TAKES = f"mixedPrecision converts {', '.join(_TYPES)}"


class MixedPrecisionKind(StageKind[MixedPrecision]):
    """Layers get half precision."""

    name = "mixedPrecision"

    def check(self, block: MixedPrecision, path: str, subject: Subject) -> None:
        """Selectors match, and there are example inputs to be looked at."""
        _selected(subject.model, block, path)
        if subject.dummy_input is None:
            raise InvalidSpecError(
                "a dummy_input shows which layers are called, and what becomes of the outputs; give one", path
            )

    def steps(self, block: MixedPrecision, index: int) -> list[Step]:
        """One conversion."""
        path = f"spec.stages[{index}].mixedPrecision"
        return [Transform(f"convert to {block.dtype}", lambda context: _convert(context, block, path))]

    def record(self, block: MixedPrecision) -> dict[str, Any]:
        """To what."""
        return {"dtype": block.dtype}


def _convert(context: StageContext, block: MixedPrecision, path: str) -> None:
    model = context.model
    layers, notes = _layers(model, block, path, context.dummy_input)
    before = _outputs(model, context.dummy_input)
    edit = HalfPrecision(tuple(layers), block.dtype)
    edit.apply(model, context.masks)
    context.edits.append(edit)
    try:
        after = _outputs(model, context.dummy_input)
    except Exception as error:
        raise CompressionError(f"the model does not run in {block.dtype}: {first_line(error)}", path) from error
    moved = 0.0
    for old, new in zip(before, after, strict=True):
        if bool(torch.isfinite(old).all()) and not bool(torch.isfinite(new).all()):
            remedy = "write bf16, or exclude layers" if block.dtype == "fp16" else "exclude layers"
            raise CompressionError(f"in {block.dtype} the outputs are not finite on the example inputs; {remedy}", path)
        scale = float(old.abs().max()) if old.numel() else 0.0
        moved = max(moved, float((old - new).abs().max()) / scale if scale else 0.0)
    context.note(
        *notes,
        f"{len(layers)} layers compute in {block.dtype}; on the example inputs that moves the outputs by {moved:.3g} "
        "of their largest value",
    )


def _selected(model: nn.Module, block: MixedPrecision, path: str) -> dict[str, int | None]:
    """Names of the selected modules, and the number of the entry that names each exactly."""
    modules = dict(model.named_modules())
    entries = list(enumerate(block.config_list or ()))
    if all(entry.exclude for _, entry in entries):
        entries = [(-1, PrecisionEntry()), *entries]
    selected: dict[str, int | None] = {}
    excluded: set[str] = set()
    for number, entry in entries:
        where = f"{path}.configList[{number}]" if number >= 0 else path
        names = matches(modules, entry, _TYPES, _TAKES, where)
        if entry.exclude:
            excluded.update(names)
            continue
        for name in names:
            named = number if name in (entry.op_names or ()) else None
            selected[name] = named if selected.get(name) is None else selected[name]
    left = {name: named for name, named in selected.items() if name not in excluded}
    if not left:
        message = "every selected module is excluded again; select one that is not"
        raise InvalidSpecError(message, f"{path}.configList")
    return {name: left[name] for name in modules if name in left}


def _layers(model: nn.Module, block: MixedPrecision, path: str, dummy_input: Any) -> tuple[list[str], list[str]]:
    """The layers to be converted, and notes of those that stay."""
    selected, called = _selected(model, block, path), called_modules(model, dummy_input)
    modules = dict(model.named_modules())
    reasons: dict[str, str] = {}
    for name in selected:
        module = modules[name]
        reason = next((str(each) for each in computed(module, name)), None)
        if reason is None and (why := why_not(module)) is not None:
            reason = f"'{name}' {why}"
        if reason is None and name not in called:
            reason = f"'{name}' is not called on the example inputs, so what uses its weight would not expect it"
        if reason is not None:
            reasons[name] = reason
    taken = [name for name in selected if name not in reasons]
    while shared := _shared(model, taken):
        name, other = shared
        reasons[name] = f"'{name}' shares a weight with '{other}', which stays as it is"
        taken.remove(name)
    for name, reason in reasons.items():
        number = selected[name]
        if number is not None:
            raise InvalidSpecError(reason, f"{path}.configList[{number}].opNames")
    if not taken:
        raise InvalidSpecError(f"no selected module can be converted: {next(iter(reasons.values()))}", path)
    return taken, [f"Left as it was: {reason}" for reason in reasons.values()]


def _shared(model: nn.Module, taken: list[str]) -> tuple[str, str] | None:
    """A layer of those with a parameter that another module has, too, and that module; None: there is none."""
    owners: dict[nn.Parameter, list[str]] = {}
    for name, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(parameter, []).append(name)
    for names in owners.values():
        inside = [name for name in names if name in taken]
        outside = [name for name in names if name not in taken]
        if inside and outside:
            return inside[0], outside[0]
    return None


@torch.no_grad()
def _outputs(model: nn.Module, dummy_input: Any) -> list[torch.Tensor]:
    """The tensors of numbers that the model gives on its example inputs, in float64."""
    device = next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
    args, kwargs = as_call(on_device(dummy_input, device))
    with untouched(model):
        model.eval()
        found = tensors_in(model(*args, **kwargs))
    return [tensor.double() for tensor in found if tensor.is_floating_point()]


KIND = MixedPrecisionKind()
