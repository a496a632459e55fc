"""How long a forward pass takes: two models in turn, in one process, with pinned threads."""

from __future__ import annotations

import contextlib
import copy
import functools
import gc
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from modelpress.api.v1alpha1 import Benchmark
from modelpress_runner.errors import InvalidModelError, first_line
from modelpress_runner.measure.clocks import clock_of
from modelpress_runner.runtime.example_inputs import as_call, fitting, on_device
from modelpress_runner.runtime.preserve import untouched


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one forward pass over `iterations` timed calls; percentiles interpolate linearly."""

    median: float
    p10: float
    p90: float
    min: float
    iqr: float
    iterations: int

    def to_dict(self) -> dict[str, float]:
        """As JSON-ready data; keys end in Ms, but for the count."""
        spread = {"medianMs": self.median, "p10Ms": self.p10, "p90Ms": self.p90, "minMs": self.min, "iqrMs": self.iqr}
        return {**spread, "iterations": self.iterations}


def compare(
    dense: nn.Module, compressed: nn.Module, dummy_input: Any, benchmark: Benchmark, device: str = "cpu"
) -> tuple[Timing, Timing]:
    """Times both models in turn, each call of one beside a call of the other, so that both meet the same machine.

    Who goes first alternates. Models run in eval mode under inference_mode on `device` ("cpu", or "cuda", where the
    device's own events are the clock), with `benchmark.cores_per_instance` threads and no garbage collection. Models,
    threads and random numbers are left as they were.

    Returns:
        The timings of dense and compressed.

    Raises:
        InvalidModelError: a model does not run on `dummy_input` with `benchmark.batch_size` rows.
    """
    models = [_on(dense, device), _on(compressed, device)]
    args, kwargs = as_call(on_device(fitting(models[0], dummy_input, benchmark.batch_size), device))
    clock = clock_of(device)
    samples: list[list[int]] = [[], []]
    with untouched(models[0]), untouched(models[1]), torch.inference_mode(), _pinned(benchmark.cores_per_instance):
        for which, name in enumerate(("dense", "compressed")):
            try:
                models[which](*args, **kwargs)
            except Exception as error:
                raise InvalidModelError(
                    f"benchmark: the {name} model does not run on dummy_input with a batch of {benchmark.batch_size} "
                    f"({first_line(error)}); set another benchmark.batchSize"
                ) from error
        for _ in range(benchmark.warmup):
            for model in models:
                model(*args, **kwargs)
        with _no_collection():
            for iteration in range(benchmark.iterations):
                for which in (0, 1) if iteration % 2 == 0 else (1, 0):
                    model = models[which]
                    samples[which].append(clock(functools.partial(model, *args, **kwargs)))
    return summarize(samples[0]), summarize(samples[1])


def summarize(nanoseconds: list[int]) -> Timing:
    """Median and spread of durations."""
    p10, q1, median, q3, p90 = (float(value) / 1e6 for value in np.percentile(nanoseconds, [10, 25, 50, 75, 90]))
    return Timing(median, p10, p90, min(nanoseconds) / 1e6, q3 - q1, len(nanoseconds))


def _on(model: nn.Module, device: str) -> nn.Module:
    held = [*model.parameters(), *model.buffers()]
    return model if all(tensor.device.type == device for tensor in held) else copy.deepcopy(model).to(device)


@contextlib.contextmanager
def _pinned(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
