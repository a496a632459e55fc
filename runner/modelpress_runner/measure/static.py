"""The measured metrics of a model: what it holds and computes, and how long it takes."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from modelpress.api.v1alpha1 import Benchmark, Target
from modelpress_runner.export.pt2.module import Program
from modelpress_runner.export.pt2.program import export_program, open_program
from modelpress_runner.measure import counts, latency


@dataclass(frozen=True)
class Timed:
    """Timed metrics of the dense and of the compressed model; `detail` is JSON-ready data with the spread."""

    baseline: dict[str, float]
    compressed: dict[str, float]
    detail: dict[str, Any] = field(default_factory=dict)


def static_metrics(
    model: nn.Module,
    dummy_input: Any,
    target: Target | str = "eager",
    *,
    dense_parameters: float | None = None,
    dense_size: float | None = None,
    size: int | None = None,
) -> dict[str, float]:
    """Metrics that need no clock.

    Args:
        model: as it is in memory, also where the target is pt2.
        dummy_input: example inputs; macs are counted with a batch of 1.
        target: sizeBytes is that of model.safetensors (eager, transformers) or of model.pt2 (pt2).
        dense_parameters: parameters of the dense model; none: this is the dense model.
        dense_size: sizeBytes of the dense model; none: compressionRatio is left out.
        size: sizeBytes of this very model, if it was written in the target's form already.

    Returns:
        parameters, nonzeroParameters, macs, sizeBytes, sparsity = 1 - nonzeroParameters / dense parameters,
        compressionRatio = dense size / size.

    Raises:
        InvalidModelError: the model does not run on `dummy_input`.
        NotPortableError: the target is pt2 and the model cannot be exported.
    """
    total, nonzero = counts.parameters(model), counts.nonzero_parameters(model)
    if size is None and _format(target) != "pt2":
        size = counts.safetensors_bytes(model)
    elif size is None:
        with tempfile.TemporaryDirectory(prefix="modelpress-size-") as folder:
            export_program(model, dummy_input, Path(folder, "model.pt2"))
            size = Path(folder, "model.pt2").stat().st_size
    dense = total if dense_parameters is None else dense_parameters
    metrics = {
        "parameters": float(total),
        "nonzeroParameters": float(nonzero),
        "macs": float(counts.macs(model, dummy_input)),
        "sizeBytes": float(size),
        "sparsity": 1 - nonzero / dense if dense else 0.0,
    }
    if dense_size is not None:
        metrics["compressionRatio"] = dense_size / size
    return metrics


def timed_metrics(
    dense: nn.Module, compressed: nn.Module, dummy_input: Any, target: Target | str, benchmark: Benchmark
) -> Timed:
    """Latency of both models, timed in turn in this process, see `benchmark.latency`.

    Where the target is pt2, what is timed is the opened program; a model that is a Program is timed as it is.

    Returns:
        latencyMs (median), throughput (rows per second), and in `compressed` speedup = dense / compressed latency.

    Raises:
        InvalidModelError: a model does not run on `dummy_input` with `benchmark.batch_size` rows.
        NotPortableError: the target is pt2 and a model cannot be exported.
    """
    if _format(target) == "pt2":
        dense, compressed = _program(dense, dummy_input), _program(compressed, dummy_input)
    before, after = latency.compare(dense, compressed, dummy_input, benchmark)
    baseline, result = _metrics(before, benchmark), _metrics(after, benchmark)
    result["speedup"] = before.median / after.median
    detail = {
        "dense": before.to_dict(),
        "compressed": after.to_dict(),
        "target": _format(target),
        "batchSize": benchmark.batch_size,
        "threads": benchmark.cores_per_instance,
        "warmup": benchmark.warmup,
    }
    return Timed(baseline, result, detail)


def _metrics(timing: latency.Timing, benchmark: Benchmark) -> dict[str, float]:
    return {"latencyMs": timing.median, "throughput": benchmark.batch_size / (timing.median / 1e3)}


def _program(model: nn.Module, dummy_input: Any) -> nn.Module:
    if isinstance(model, Program):
        return model
    with tempfile.TemporaryDirectory(prefix="modelpress-time-") as folder:
        export_program(model, dummy_input, Path(folder, "model.pt2"))
        return open_program(Path(folder, "model.pt2"))


def _format(target: Target | str) -> str:
    return target if isinstance(target, str) else target.format
