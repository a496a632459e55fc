"""What metrics.json says of a stage."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from modelpress_runner.edits.quantize import frozen_counts

Static = Callable[[nn.Module], Mapping[str, float]]  # counts of a model by metric name
_COUNTS = ("parameters", "macs", "sizeBytes", "latencyMs")


def stage_record(
    name: str, method: str, own: Mapping[str, Any], model: nn.Module, dense: int, static: Static | None
) -> dict[str, Any]:
    """The record of a stage that is over.

    Args:
        name: of the stage.
        method: the name of its block.
        own: what its kind says.
        model: as it is now.
        dense: parameters of the dense model.
        static: counts of the model; None: parameters only.
    """
    return {"name": name, "method": method, **own, **counts(model, dense, static)}


def counts(model: nn.Module, dense: int, static: Static | None) -> dict[str, Any]:
    """sparsity, parameters and, with `static`, what it gives of macs, sizeBytes and latencyMs."""
    kept, alive = frozen_counts(model)
    parameters = sum(parameter.numel() for parameter in model.parameters()) + kept
    with torch.no_grad():
        nonzero = sum(int(torch.count_nonzero(parameter)) for parameter in model.parameters()) + alive
    found: dict[str, Any] = {"sparsity": 1 - nonzero / dense if dense else 0.0, "parameters": parameters}
    if static is not None:
        found |= {key: value for key, value in static(model).items() if key in _COUNTS}
    return found
