"""What a runtime's own tools are asked to quantize."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from modelpress_runner.errors import CompressionError, first_line
from modelpress_runner.serving.errors import CallError
from modelpress_runner.serving.signature import Signature

Call = tuple[tuple[Any, ...], dict[str, Any]]
Feed = dict[str, np.ndarray[Any, Any]]


@dataclass(frozen=True)
class Plan:
    """The layers and the numbers.

    Attributes:
        backend: onnxruntime or openvino.
        algorithm: ptq_static, ptq_dynamic or weight_only.
        layers: names of the modules that are quantized; others are not.
        bits: of weights.
        per_channel: each output has a scale.
        group: so many weights of an output have a scale together.
        symmetric_weights: weights have no zero point.
        symmetric_inputs: inputs have none.
        observer: as of Calibration.
        percentile: as of Calibration.
        calls: arguments of the model, tensors on the CPU, that ranges are taken of.
    """

    backend: str
    algorithm: str
    layers: tuple[str, ...]
    bits: int = 8
    per_channel: bool = True
    group: int | None = None
    symmetric_weights: bool = True
    symmetric_inputs: bool = False
    observer: str = "minMax"
    percentile: float = 99.99
    calls: Sequence[Call] = ()


@dataclass(frozen=True)
class Written:
    """What came of it.

    Attributes:
        files: in the folder that was asked for.
        layers: of those that have fewer bits now: bytes of the weight, before and after, and the SQNR of outputs in dB.
        notes: for the model card.
    """

    files: list[Path]
    layers: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def feeds(signature: Signature, calls: Sequence[Call]) -> list[Feed]:
    """Inputs of a file by name, of calls of the module.

    Raises:
        CompressionError: the file does not take such a call.
    """
    import torch

    found: list[Feed] = []
    for number, (args, kwargs) in enumerate(calls, start=1):
        known = {name for name, _, _ in signature.parameters}
        given = {name: value for name, value in kwargs.items() if name in known or isinstance(value, torch.Tensor)}
        try:
            tensors = signature.feed(args, given, lambda value: isinstance(value, torch.Tensor))
            signature.check(tensors)
        except CallError as error:
            raise CompressionError(
                f"batch {number} of the data does not fit the exported model: {first_line(error).rstrip('.')}; give "
                "data.calibration batches as the example inputs are, or let axes be free with export.dynamicAxes"
            ) from error
        found.append({name: tensor.contiguous().numpy() for name, tensor in tensors.items()})
    return found


def decibels(pairs: Sequence[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]) -> float | None:
    """10 log10 of the squares of exact numbers by those of the differences of others to them; 200 at most.

    None: there is nothing to be compared.
    """
    signal = noise = 0.0
    for exact, other in pairs:
        if exact.shape != other.shape:
            return None
        wide = exact.astype(np.float64)
        signal += float(np.square(wide).sum())
        noise += float(np.square(wide - other.astype(np.float64)).sum())
    if not np.isfinite(noise) or not signal:
        return None
    return round(min(200.0, 10 * float(np.log10(signal / noise))), 2) if noise > 0 else 200.0
