"""How a call of a model is timed on each kind of device."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

Clock = Callable[[Callable[[], object]], int]  # runs a call; nanoseconds that it took on the device


def on_cpu(call: Callable[[], object]) -> int:
    """By the monotonic clock around the call."""
    start = time.perf_counter_ns()
    call()
    return time.perf_counter_ns() - start


def on_cuda(call: Callable[[], object]) -> int:
    """By events on the current stream: what the device worked, and what it waited for the next kernel's launch."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    end.record()
    end.synchronize()
    return int(start.elapsed_time(end) * 1e6)


def clock_of(device: str) -> Clock:
    """The clock for "cpu" or "cuda"."""
    return on_cuda if device == "cuda" else on_cpu
