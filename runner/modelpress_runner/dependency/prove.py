"""Proof that a shrunk model is the masked model, only smaller."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from modelpress_runner.errors import CompressionError
from modelpress_runner.runtime.graph import call, map_tensors, tensors_in

# Largest difference between masked and shrunk outputs, relative to the largest masked output. A shrink only leaves out
# terms that are exactly zero, so what differs is the order of summation.
TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 5e-2}


@dataclass(frozen=True)
class Proof:
    """What was compared: sizes before and after, and the largest relative difference of the outputs."""

    parameters: tuple[int, int]
    macs: tuple[int, int]
    difference: float


def prove(masked: nn.Module, shrunk: nn.Module, dummy_input: Any) -> Proof:
    """Compares a masked model with its shrunk form; both stay as they are (they run as copies, in eval mode).

    Proven: fewer parameters, fewer multiply-accumulates of one forward pass (of convolutions and matrix products, where
    there are any), the same number and shapes of outputs, and equal outputs on the dummy input and on a second input
    of its shapes, drawn at random and left out if the masked model does not take it.

    Raises:
        CompressionError: one of them does not hold, or a model does not run.
    """
    before, after = (sum(p.numel() for p in model.parameters()) for model in (masked, shrunk))
    if after >= before:
        raise CompressionError(f"the shrink removed nothing: {before} parameters before, {after} after")
    masked, shrunk = (_eval_copy(model) for model in (masked, shrunk))
    difference, macs = 0.0, (0, 0)
    for number, inputs in enumerate(_inputs(dummy_input)):
        try:
            expected, macs_before = _run(masked, inputs)
        except Exception as error:
            if number:
                break
            raise CompressionError(f"the model fails on the dummy input: {type(error).__name__}: {error}") from error
        if not all(bool(torch.isfinite(t).all()) for t in expected):
            if number:
                break
            raise CompressionError("the model gives NaN or infinity on the dummy input, so nothing can be compared")
        try:
            found, macs_after = _run(shrunk, inputs)
        except Exception as error:
            raise CompressionError(f"the shrunk model does not run: {type(error).__name__}: {error}") from error
        if number == 0:
            macs = (macs_before, macs_after)
            if macs_before and macs_after >= macs_before:
                raise CompressionError(f"the shrink saved no work: {macs_before} MACs before, {macs_after} after")
        difference = max(difference, _compare(expected, found))
    return Proof((before, after), macs, difference)


def _compare(expected: list[torch.Tensor], found: list[torch.Tensor]) -> float:
    shapes, new_shapes = ([tuple(t.shape) for t in tensors] for tensors in (expected, found))
    if shapes != new_shapes:
        raise CompressionError(f"the shrink changed the model's outputs: shapes {shapes} became {new_shapes}")
    worst = 0.0
    for old, new in zip(expected, found, strict=True):
        if old.numel() == 0:
            continue
        tolerance = TOLERANCE.get(old.dtype, 0.0)
        # The floor is for outputs that are zero everywhere, where nothing is relative.
        scale = max(float(old.abs().max()) if old.dtype != torch.bool else 1.0, 1e-6)
        gap = float((old.double() - new.double()).abs().max()) / scale
        if not gap <= tolerance:
            raise CompressionError(
                f"the shrunk model's output differs from the masked model's by {gap:.3g} of its largest value "
                f"(allowed: {tolerance:g}), so something else in the model depends on the removed channels"
            )
        worst = max(worst, gap)
    return worst


def _run(model: nn.Module, inputs: Any) -> tuple[list[torch.Tensor], int]:
    given = tensors_in(inputs)
    devices = sorted({tensor.device.index or 0 for tensor in given if tensor.is_cuda})
    # Both models see the same random numbers, and the caller's generator is left as it was.
    with torch.random.fork_rng(devices=devices), torch.no_grad(), FlopCounterMode(display=False) as counter:
        torch.manual_seed(0)
        outputs = tensors_in(call(model, inputs))
    return outputs, math.ceil(counter.get_total_flops() / 2)


def _inputs(dummy_input: Any) -> Iterator[Any]:
    yield map_tensors(dummy_input, torch.clone)
    generator = torch.Generator().manual_seed(0)
    yield map_tensors(
        dummy_input,
        lambda t: torch.randn(t.shape, generator=generator).to(t) if t.is_floating_point() else t.clone(),
    )


def _eval_copy(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model).eval()
    except Exception as error:
        raise CompressionError(
            f"the model cannot be copied, so a shrink cannot be proven: {type(error).__name__}: {error}; "
            "set speedup: false"
        ) from error
