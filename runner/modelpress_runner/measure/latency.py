"""How long a forward pass takes: two models in turn, in one process, with pinned threads."""

from __future__ import annotations

import contextlib
import copy
import functools
import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from modelpress.api.v1alpha1 import Benchmark
from modelpress_runner.errors import InvalidModelError, first_line
from modelpress_runner.export.runtime_module import RuntimeModule
from modelpress_runner.measure.clocks import Clock, clock_of
from modelpress_runner.runtime.example_inputs import as_call, fitting, on_device
from modelpress_runner.runtime.preserve import untouched

if TYPE_CHECKING:
    from modelpress.search import Spread

BATCHES = 10  # of calls, for the spread of a median
MOST_ROUNDS = 10  # times `benchmark.iterations` calls of each model, where the verdict stays open
MOST_SECONDS = 60.0  # after which no further round begins


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


Settled = Callable[[Timing, Timing, "Spread"], bool]


def compare(
    dense: nn.Module,
    compressed: nn.Module,
    dummy_input: Any,
    benchmark: Benchmark,
    device: str = "cpu",
    *,
    is_settled: Settled = lambda before, after, spread: True,
    clock: Clock | None = None,
    now: Callable[[], float] = time.monotonic,
) -> tuple[Timing, Timing, Spread]:
    """Times both models in turn, each call of one beside a call of the other, so that both meet the same machine.

    Who goes first alternates. Models run in eval mode under inference_mode on `device` ("cpu", or "cuda", where the
    device's own events are the clock), with `benchmark.cores_per_instance` threads and no garbage collection. Models,
    threads and random numbers are left as they were.

    Args:
        dense: the dense model.
        compressed: the compressed model.
        dummy_input: example inputs, batch first.
        benchmark: how often, with how many rows and threads.
        device: "cpu" or "cuda".
        is_settled: whether what was measured so far is enough. If not, `benchmark.iterations` more calls are timed,
            until it is, or MOST_ROUNDS times as many were made, or MOST_SECONDS have passed.
        clock: times a call; none: the device's.
        now: seconds.

    Returns:
        The timings of dense and compressed, and where they lie.

    Raises:
        InvalidModelError: a model does not run on `dummy_input` with `benchmark.batch_size` rows.
    """
    models = [_on(dense, device), _on(compressed, device)]
    args, kwargs = as_call(on_device(fitting(models[0], dummy_input, benchmark.batch_size), device))
    clock = clock or clock_of(device)
    timed = 0
    samples: list[list[int]] = [[], []]
    with (
        untouched(models[0]),
        untouched(models[1]),
        torch.inference_mode(),
        _pinned(models, benchmark.cores_per_instance),
    ):
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
            began = now()
            for done in range(1, MOST_ROUNDS + 1):
                for iteration in range(timed, timed + benchmark.iterations):
                    for which in (0, 1) if iteration % 2 == 0 else (1, 0):
                        model = models[which]
                        samples[which].append(clock(functools.partial(model, *args, **kwargs)))
                timed += benchmark.iterations
                before, after = summarize(samples[0]), summarize(samples[1])
                spread = spread_of(*samples)
                if is_settled(before, after, spread) or done == MOST_ROUNDS or now() - began >= MOST_SECONDS:
                    break
    return before, after, spread


def spread_of(dense: list[int], compressed: list[int]) -> Spread:
    """Where the medians of two models' durations, in ns, lie, and the ratio of both.

    The calls are taken in their order as BATCHES batches, so that a while in which the machine was busy is a few of
    them; an interval reaches from the second lowest of the batches' medians to the second highest. The median of a
    batch's medians lies in it with a probability of 1 - 2 (1 + 10) / 2^10 = 0.979. Fewer calls than BATCHES are taken
    one by one, from the lowest to the highest.
    """
    from modelpress.search import Spread

    count = min(BATCHES, len(dense))
    spare = 1 if count == BATCHES else 0
    times = [[float(np.median(part)) for part in np.array_split(side, count)] for side in (dense, compressed)]
    ratios = [after / before for before, after in zip(*times, strict=True)]
    (low, high), (least, most) = (
        (sorted(values)[spare], sorted(values)[len(values) - 1 - spare]) for values in (times[1], ratios)
    )
    return Spread((low / 1e6, high / 1e6), (least, most), len(dense))


def summarize(nanoseconds: list[int]) -> Timing:
    """Median and spread of durations."""
    p10, q1, median, q3, p90 = (float(value) / 1e6 for value in np.percentile(nanoseconds, [10, 25, 50, 75, 90]))
    return Timing(median, p10, p90, min(nanoseconds) / 1e6, q3 - q1, len(nanoseconds))


def _on(model: nn.Module, device: str) -> nn.Module:
    held = [*model.parameters(), *model.buffers()]
    return model if all(tensor.device.type == device for tensor in held) else copy.deepcopy(model).to(device)


@contextlib.contextmanager
def _pinned(models: list[nn.Module], threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with contextlib.ExitStack() as stack:
            for model in models:
                if isinstance(model, RuntimeModule):
                    stack.enter_context(model.with_threads(threads))
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
