"""Blocks that learn, one after another, what their twins in the dense model give (blockwise knowledge distillation, Li
et al. 2020, "Blockwisely supervised neural architecture search with knowledge distillation", section 3.2; with the
inputs of the compressed model, so that each block makes good for the error of those before it).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from modelpress_runner.edits.masks import Masks
from modelpress_runner.errors import CompressionError
from modelpress_runner.methods.context import StageContext
from modelpress_runner.methods.distill.outputs import feature, rows_of
from modelpress_runner.passes.forward import over_calibration
from modelpress_runner.runtime import distributed as ranks
from modelpress_runner.runtime import rng
from modelpress_runner.runtime.example_inputs import map_tensors
from modelpress_runner.runtime.preserve import flags_restored
from modelpress_runner.training.calls import Call
from modelpress_runner.training.participants import MaskKeeper

_SEED = 2**30 + 2**28  # part of the seed


@dataclass(frozen=True)
class BlockResult:
    """What became of a block.

    Attributes:
        before: the square of the difference to what its twin gives, as a share of the square of that.
        after: the same behind its training.
    """

    name: str
    before: float
    after: float


@dataclass
class _Sample:
    """One call of a block, in main memory.

    Attributes:
        rows: which rows of the output (batch, tokens, ...) count; None: all.
    """

    args: Any = None
    kwargs: Any = None
    target: torch.Tensor | None = None
    rows: torch.Tensor | None = None


def layers_of(model: nn.Module) -> list[str]:
    """Names of the blocks that a model is a list of: the members of its outermost lists of alike modules, in order.

    A list counts where it has two members or more of one class, and they are made of modules themselves.
    """
    found: list[str] = []
    for name, module in model.named_modules():
        members = list(module.children())
        listed = isinstance(module, nn.ModuleList | nn.Sequential) and len(members) > 1
        if not listed or any(f"{name}.".startswith(f"{each}.") for each in found):
            continue
        if len({type(member) for member in members}) == 1 and any(True for _ in members[0].children()):
            found += [f"{name}.{key}" if name else key for key, _ in module.named_children()]
    return found


@dataclass
class BlockDistillation:
    """Trains blocks of `context.model` in place.

    Args:
        context: with the dense model, and with calibration data.
        names: of the blocks.
        steps: of the optimizer, of each.
        learning_rate: at the first.
        path: of the stage's block, for messages.
    """

    context: StageContext
    names: Sequence[str]
    steps: int
    learning_rate: float
    path: str
    notes: list[str] = field(default_factory=list)

    def run(self) -> list[BlockResult]:
        """The blocks that learnt, in the order in which the model calls them; `notes` says which did not, and why.

        Raises:
            CompressionError: none of them can learn, or its outputs are not finite.
            InvalidModelError: a model does not take the calibration data.
            Stopped: the run should end.
        """
        device = next((each.device for each in self.context.model.parameters()), torch.device("cpu"))
        assert self.context.dense is not None
        before = next((each.device for each in self.context.dense.parameters()), device)
        self.context.dense.to(device)
        try:
            results = [found for name in self._in_order() if (found := self._learn(name, device)) is not None]
        finally:
            self.context.dense.to(before)
        if not results:
            raise CompressionError("no block can learn: " + "; ".join(self.notes), self.path)
        return results

    def _in_order(self) -> list[str]:
        """The names in the order in which the model calls them."""
        model, called = self.context.model, []
        with contextlib.ExitStack() as undone:
            for name in self.names:
                hook = model.get_submodule(name).register_forward_hook(lambda *_, name=name: called.append(name))
                undone.callback(hook.remove)
            over_calibration(model, self._data, 1, lambda: None, self.context.evaluator, self.context.stop)
        order: list[str] = ranks.broadcast_object(list(dict.fromkeys(called)))
        self.notes += [f"{name} is not called" for name in self.names if name not in order]
        return order

    def _learn(self, name: str, device: torch.device) -> BlockResult | None:
        block = self.context.model.get_submodule(name)
        trainable = [each for each in block.parameters() if each.requires_grad and each.is_floating_point()]
        if not trainable:
            self.notes.append(f"{name} has nothing to train")
            return None
        samples, problem = self._samples(name)
        problem = next(filter(None, ranks.all_gather_object(problem)), None)
        if problem is not None:
            self.notes.append(f"{name} {problem}")
            return None
        self.context.report(f"block {name}")
        types = {parameter: parameter.dtype for parameter in block.parameters()}
        kept = [parameter.detach().clone() for parameter in trainable]
        with _in_float32(block), flags_restored(block), torch.enable_grad():
            block.eval()  # no dropout, and statistics as they are
            before = self._error(block, samples, device)
            self._train(name, block, trainable, samples, device)
            after = self._error(block, samples, device)
        assert all(parameter.dtype == dtype for parameter, dtype in types.items())
        if not math.isfinite(before):
            raise CompressionError(f"the calibration data give {name} outputs that are not finite", self.path)
        if not after < before:
            with torch.no_grad():
                for parameter, value in zip(trainable, kept, strict=True):
                    parameter.copy_(value)
            after = before
        return BlockResult(name, before, after)

    @property
    def _data(self) -> Any:
        assert self.context.calibration_data is not None  # checked before anything ran
        return self.context.calibration_data

    # What it learns ---------------------------------------------------------------------------------------------------

    def _samples(self, name: str) -> tuple[list[_Sample], str | None]:
        """What the block takes now, and what its twin gives, for this rank's batches; or why it cannot learn it."""
        context = self.context
        assert context.dense is not None
        try:
            twin = context.dense.get_submodule(name)
        except AttributeError:
            return [], "is not in the dense model"
        targets: list[torch.Tensor | None] = []
        twin_hook = twin.register_forward_hook(lambda _, __, output: targets.append(_kept(feature(output))))
        with contextlib.closing(_Hooks([twin_hook])):
            over_calibration(context.dense, self._data, None, lambda: None, None, context.stop)
        samples: list[_Sample] = []
        shapes: list[torch.Size | None] = []
        masks: list[Call] = []

        def begin(module: nn.Module, args: Any, kwargs: Any) -> None:
            masks[:] = [Call(args, kwargs, None)]

        def end(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            found = feature(output)
            rows = None if found is None else rows_of(masks[0], found.shape, next_token=False)
            shapes.append(None if found is None else found.shape)
            args, kwargs = map_tensors((args, kwargs), _kept)
            samples.append(_Sample(args, kwargs, None, None if rows is None else rows.cpu()))

        model, block = context.model, context.model.get_submodule(name)
        begin_hook = model.register_forward_pre_hook(begin, with_kwargs=True, prepend=True)
        with contextlib.closing(_Hooks([begin_hook, block.register_forward_hook(end, with_kwargs=True)])):
            over_calibration(model, self._data, None, lambda: None, context.evaluator, context.stop)
        if len(samples) != len(targets):
            return [], "is called another number of times than in the dense model"
        for sample, shape, target in zip(samples, shapes, targets, strict=True):
            if target is None or shape is None:
                return [], "gives no tensor of numbers"
            if shape != target.shape:
                return [], f"gives {tuple(shape)} where the dense model's gives {tuple(target.shape)}"
            sample.target = target
        return samples, None

    # How it learns ----------------------------------------------------------------------------------------------------

    def _train(
        self, name: str, block: nn.Module, trainable: list[nn.Parameter], samples: list[_Sample], device: torch.device
    ) -> None:
        keeper = MaskKeeper(block, lambda: _within(self.context.masks, name))
        optimizer = torch.optim.Adam(trainable, lr=self.learning_rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)
        with rng.fork_rng(rng.derive(self.context.seed, _SEED)):
            order: list[int] = []
            for _ in range(self.steps):
                self.context.stop()
                optimizer.zero_grad()
                if samples:
                    order = order or torch.randperm(len(samples)).tolist()
                    wrong, size = _difference(block, samples[order.pop()], device)
                    (wrong / size.clamp(min=torch.finfo(size.dtype).tiny)).backward()
                _averaged(trainable)
                optimizer.step()
                schedule.step()
                keeper.apply()

    @torch.no_grad()
    def _error(self, block: nn.Module, samples: list[_Sample], device: torch.device) -> float:
        """Of all samples of all ranks, as BlockResult.before says."""
        total = torch.zeros(2, dtype=torch.float64)
        for sample in samples:
            self.context.stop()
            total += torch.stack(_difference(block, sample, device)).double().cpu()
        wrong, size = ranks.all_reduce_mean(total).tolist()
        return float("nan") if math.isnan(wrong) else wrong / size if size else 0.0


class _Hooks:
    """Handles that are removed together."""

    def __init__(self, handles: list[Any]) -> None:
        self._handles = handles

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()


def _kept(tensor: torch.Tensor | None) -> Any:
    return None if tensor is None else tensor.detach().to("cpu", copy=True)


def _difference(block: nn.Module, sample: _Sample, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums over the rows that count: squares of the difference, and of what the twin gives."""
    args, kwargs = map_tensors((sample.args, sample.kwargs), lambda tensor: _single(tensor.to(device)))
    output = feature(block(*args, **kwargs))
    assert output is not None
    assert sample.target is not None
    target = sample.target.to(device, torch.float32)
    output = output.float()
    if sample.rows is not None:
        rows = sample.rows.to(device)
        output, target = output[rows], target[rows]
    return (output - target).square().sum(), target.square().sum()


def _single(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor


@contextlib.contextmanager
def _in_float32(block: nn.Module) -> Iterator[None]:
    """Inside, parameters and buffers of half precision are of single: steps of an optimizer are lost in bfloat16."""
    tensors = [each for each in (*block.parameters(), *block.buffers()) if _single(each) is not each]
    types = [each.dtype for each in tensors]
    for each in tensors:
        each.data = each.data.float()
    try:
        yield
    finally:
        for each, dtype in zip(tensors, types, strict=True):
            each.grad = None
            each.data = each.data.to(dtype)


def _averaged(parameters: list[nn.Parameter]) -> None:
    """Gives all ranks the mean of their gradients."""
    if not ranks.is_distributed():
        return
    for parameter in parameters:
        own = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        parameter.grad = ranks.all_reduce_mean(own)


def _within(masks: Masks, name: str) -> Masks:
    """The masks of modules within a block, by their names in it."""
    prefix = f"{name}."
    return {
        module[len(prefix) :] if module != name else "": tensors
        for module, tensors in masks.items()
        if module == name or module.startswith(prefix)
    }


def told(results: Sequence[BlockResult], notes: Sequence[str]) -> str:
    """One sentence of what became of the blocks."""
    each = ", ".join(f"{one.name} {one.before:.3g} -> {one.after:.3g}" for one in results[:32])
    more = f" and {len(results) - 32} more" if len(results) > 32 else ""
    left = f"; left as they were: {'; '.join(notes)}" if notes else ""
    return f"distillBlocks: relative squared error of each block, before and after: {each}{more}{left}"
