"""The measured metrics of a model: what it holds and computes, and how long it takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import nn

from modelpress.api.v1alpha1 import Benchmark
from modelpress_runner.export.weights import safetensors_bytes
from modelpress_runner.measure import counts, latency
from modelpress_runner.measure.clocks import Clock

if TYPE_CHECKING:
    from modelpress.search import Spread


@dataclass(frozen=True)
class Timed:
    """Timed metrics of the dense and of the compressed model; `detail` is JSON-ready data with the spread."""

    baseline: dict[str, float]
    compressed: dict[str, float]
    detail: dict[str, Any] = field(default_factory=dict)


def static_metrics(
    model: nn.Module,
    dummy_input: Any,
    *,
    size: int | None = None,
    dense_parameters: float | None = None,
    dense_size: float | None = None,
) -> dict[str, float]:
    """Metrics that need no clock.

    Args:
        model: as it is in memory, whatever the target is.
        dummy_input: example inputs; macs are counted with a batch of 1. None: there are no macs.
        size: bytes on disk in the target's format; None: those of model.safetensors.
        dense_parameters: parameters of the dense model; None: this is the dense model.
        dense_size: sizeBytes of the dense model; None: compressionRatio is left out.

    Returns:
        parameters, nonzeroParameters, macs, sizeBytes, sparsity = 1 - nonzeroParameters / dense parameters,
        compressionRatio = dense size / size.

    Raises:
        InvalidModelError: the model does not run on `dummy_input`.
    """
    total, nonzero = counts.parameters(model), counts.nonzero_parameters(model)
    size = safetensors_bytes(model) if size is None else size
    dense = total if dense_parameters is None else dense_parameters
    metrics = {"parameters": float(total), "nonzeroParameters": float(nonzero)}
    if dummy_input is not None:
        metrics["macs"] = float(counts.macs(model, dummy_input))
    metrics |= {"sizeBytes": float(size), "sparsity": 1 - nonzero / dense if dense else 0.0}
    if dense_size is not None:
        metrics["compressionRatio"] = dense_size / size
    return metrics


def timed_metrics(
    dense: nn.Module,
    compressed: nn.Module,
    dummy_input: Any,
    benchmark: Benchmark,
    device: str = "cpu",
    *,
    is_settled: Callable[[Timed], bool] = lambda timed: True,
    clock: Clock | None = None,
) -> Timed:
    """Latency of both models, timed in turn in this process, see `benchmark.latency`.

    Args:
        dense: the dense model in the target's format, opened.
        compressed: the compressed model in the same format.
        dummy_input: example inputs, batch first.
        benchmark: how often, with how many rows and threads.
        device: "cpu" or "cuda".
        is_settled: whether what was measured so far is enough, see `latency.compare`.
        clock: times a call; none: the device's.

    Returns:
        latencyMs (median), throughput (rows per second), and in `compressed` speedup = dense / compressed latency.

    Raises:
        InvalidModelError: a model does not run on `dummy_input` with `benchmark.batch_size` rows.
    """

    def metrics(before: latency.Timing, after: latency.Timing, spread: Spread) -> Timed:
        baseline, result = _metrics(before, benchmark), _metrics(after, benchmark)
        result["speedup"] = before.median / after.median
        detail = {
            "dense": before.to_dict(),
            "compressed": after.to_dict(),
            "spread": spread.to_dict(),
            "device": device,
            "batchSize": benchmark.batch_size,
            "threads": benchmark.cores_per_instance,
            "warmup": benchmark.warmup,
        }
        return Timed(baseline, result, detail)

    return metrics(
        *latency.compare(
            dense,
            compressed,
            dummy_input,
            benchmark,
            device,
            is_settled=lambda *found: is_settled(metrics(*found)),
            clock=clock,
        )
    )


def _metrics(timing: latency.Timing, benchmark: Benchmark) -> dict[str, float]:
    return {"latencyMs": timing.median, "throughput": benchmark.batch_size / (timing.median / 1e3)}
