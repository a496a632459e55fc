"""Whole layers: residual blocks that can go, and what each is worth."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import nn

from modelpress.api.v1alpha1 import DropLayers
from modelpress_runner.dependency.analyse import find_dependencies
from modelpress_runner.dependency.layers import check_without
from modelpress_runner.edits.bypass import Bypass, Bypassed
from modelpress_runner.errors import CompressionError, InvalidSpecError
from modelpress_runner.evaluators.hooks import ForwardHook
from modelpress_runner.methods.context import StageContext
from modelpress_runner.methods.drop.whole import outermost, selected
from modelpress_runner.passes.collectors import Collector, Pass
from modelpress_runner.passes.run import Sources, run_pass
from modelpress_runner.runtime.graph import tensors_in

TAKES = "dropLayers takes residual blocks, which give what they take plus something"


def removable(model: nn.Module, dummy_input: Any) -> list[Bypass]:
    """All residual blocks, nested ones too, as the dependency analysis lists them."""
    return list(find_dependencies(model, dummy_input).layers)


def members(model: nn.Module, listed: Sequence[Bypass]) -> list[str]:
    """The blocks that are the model's layers: members of lists or sequences of two or more, outermost ones."""
    modules = dict(model.named_modules())
    found = []
    for edit in listed:
        parent, _, name = edit.module.rpartition(".")
        if name.isdigit() and len(modules[parent]._modules) > 1:
            found.append(edit.module)
    return outermost(found)


def layers_of(model: nn.Module, block: DropLayers, dummy_input: Any, path: str) -> tuple[list[Bypass], list[str]]:
    """The selected layers that can go, in the model's order, and notes on those that cannot.

    Raises:
        InvalidSpecError: a selector matches nothing; one that is named exactly cannot go; none can.
    """
    listed = {edit.module: edit for edit in removable(model, dummy_input)}
    default = members(model, list(listed.values()))
    names = selected(model, block, path, default, TAKES)
    modules = dict(model.named_modules())
    reasons: dict[str, str] = {}
    for name in names:
        if isinstance(modules[name], Bypassed):
            reasons[name] = f"'{name}' is gone already"
        elif name not in listed:
            reasons[name] = f"'{name}' ({type(modules[name]).__name__}) does not give what it takes plus something"
        else:
            try:
                check_without(model, [listed[name]], dummy_input)
            except CompressionError as error:
                reasons[name] = str(error)
    for name, reason in reasons.items():
        number = names[name]
        if number is not None:
            raise InvalidSpecError(reason, f"{path}.configList[{number}].opNames")
    left = outermost(name for name in names if name not in reasons)
    if not left:
        raise InvalidSpecError(f"no selected layer can go: {next(iter(reasons.values()))}", path)
    gone = {name for name in reasons if isinstance(modules[name], Bypassed)}
    return [listed[name] for name in left], [
        f"Left as it was: {reason}" for name, reason in reasons.items() if name not in gone
    ]


def influences(context: StageContext, layers: Sequence[Bypass], steps: int | None, seed: int, path: str) -> list[float]:
    """1 - the mean cosine between what each layer takes and gives (Men et al. 2024, arXiv 2403.03853).

    Raises:
        InvalidSpecError: there is no data to look at.
        CompressionError: a layer is not called in the pass.
    """
    sources = Sources(context.evaluator, context.calibration_data)
    kind = sources.kind({"activations"})
    if kind is None:
        raise InvalidSpecError(f"influence is seen in a pass over data, but {sources.missing({'activations'})}", path)
    names = [edit.module for edit in layers]
    collectors, count = run_pass(
        context.model,
        sources,
        kind,
        lambda data: {name: Turning(name, data) for name in names},
        batches=steps,
        seed=seed,
        stop=context.stop,
    )
    context.report(f"scored {len(names)} layers by {count} {kind}")
    return [float(collectors[name].compute()) for name in names]


def losses(context: StageContext, layers: Sequence[Bypass], path: str) -> list[float]:
    """What the job's own score loses without each layer (Kim et al. 2024, arXiv 2402.02834)."""
    if context.score is None:
        raise InvalidSpecError("loss is that of the job's score, and the evaluator takes none", f"{path}.by")
    whole = context.score()
    out = []
    for edit in layers:
        context.stop()
        with without(context.model, edit):
            out.append(whole - context.score())
    context.report(f"scored {len(out)} layers by the model without each")
    return out


@contextlib.contextmanager
def without(model: nn.Module, edit: Bypass) -> Iterator[None]:
    """The model goes without a layer while the context is open."""
    path, _, name = edit.module.rpartition(".")
    parent = model.get_submodule(path)
    block = parent._modules[name]
    edit.apply(model)
    try:
        yield
    finally:
        parent._modules[name] = block


class Turning(Collector):
    """How far a layer turns the vectors along the last dimension of what it takes; of feature maps along channels."""

    states: ClassVar = {"_total": "sum", "_count": "sum"}

    def __init__(self, name: str, data: Pass) -> None:
        self._name, self._data = name, data
        self._total = torch.zeros((), dtype=torch.float64)
        self._count = torch.zeros((), dtype=torch.float64)
        self._hook = ForwardHook(self._look)

    def attach(self) -> None:
        """As Collector.attach."""
        self._data.register_forward_hook(self._name, self._hook)

    def update(self) -> None:
        """As Collector.update."""
        for total, count in self._hook.buffer:
            self._total += total
            self._count += count
        self._hook.buffer.clear()

    def compute(self) -> torch.Tensor:
        """As Collector.compute."""
        if not self._count:
            raise CompressionError(
                f"'{self._name}' was not called with a tensor in the pass over data, so it has no score; exclude it"
            )
        score = self._total / self._count
        if not bool(torch.isfinite(score)):
            raise CompressionError(f"what '{self._name}' takes or gives is NaN or infinite in the pass over data")
        return score

    def _look(self, buffer: list[Any], module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        given = tensors_in(args)
        if not given:
            return
        with torch.no_grad():
            one, other = given[0].detach().float(), tensors_in(output)[0].detach().float()
            along = 1 if one.dim() == 4 else -1
            turned = 1 - torch.nn.functional.cosine_similarity(one, other, dim=along)
            buffer.append((turned.double().sum().cpu(), turned.numel()))
