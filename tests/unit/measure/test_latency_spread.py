"""A latency is measured on while its spread leaves a verdict open: by a clock that is given."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import pytest
import torch
from torch import nn

from modelpress.api.v1alpha1 import Benchmark
from modelpress.search import Spread
from modelpress_runner.measure import latency

X = torch.zeros(1, 2)


class Clock:
    """Says what the dense and the compressed model take, in ms, call by call; both are called in turn."""

    def __init__(self, dense: Iterable[float], compressed: Iterable[float]) -> None:
        self._times: dict[str, Iterator[float]] = {"dense": iter(dense), "compressed": iter(compressed)}

    def __call__(self, call: Callable[[], object]) -> int:
        name = "dense" if call.func.dense else "compressed"  # type: ignore[attr-defined]
        call()
        return round(next(self._times[name]) * 1e6)


class Model(nn.Module):
    """Knows which one it is."""

    def __init__(self, dense: bool) -> None:
        super().__init__()
        self.dense = dense

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def compare(
    clock: Clock, iterations: int, is_settled: latency.Settled, now: Callable[[], float] = lambda: 0.0
) -> tuple[latency.Timing, latency.Timing, Spread]:
    benchmark = Benchmark(warmup=0, iterations=iterations)
    return latency.compare(Model(True), Model(False), X, benchmark, is_settled=is_settled, clock=clock, now=now)


def forever(value: float) -> Iterator[float]:
    while True:
        yield value


def test_a_settled_verdict_takes_as_many_calls_as_were_asked_for() -> None:
    """Batches of two calls: 1.0, 1.1, ..., 1.9 ms against 2 ms; without the lowest and the highest, 1.1 to 1.8."""
    times = [1 + batch / 10 for batch in range(10) for _ in range(2)]
    asked: list[int] = []

    def is_settled(before: latency.Timing, after: latency.Timing, spread: Spread) -> bool:
        asked.append(spread.calls)
        return True

    before, after, spread = compare(Clock(forever(2.0), times), 20, is_settled)
    assert asked == [20]
    assert (before.iterations, after.iterations, before.median) == (20, 20, 2.0)
    assert after.median == pytest.approx(1.45)
    assert spread.calls == 20
    assert spread.compressed == pytest.approx((1.1, 1.8))
    assert spread.ratio == pytest.approx((0.55, 0.9))


def test_a_burst_is_left_out() -> None:
    """One batch of ten is ten times as slow for both models: neither interval sees it."""
    slow = [10.0 if 4 <= call < 8 else 1.0 for call in range(40)]
    _, _, spread = compare(Clock([2 * time for time in slow], slow), 40, lambda *found: True)
    assert spread == Spread((1.0, 1.0), (0.5, 0.5), 40)


def test_what_slows_both_down_cancels_out_of_the_ratio() -> None:
    """A machine that becomes slower and slower: 1 to 40 ms, but always half as long."""
    slow = [float(call + 1) for call in range(40)]
    _, _, spread = compare(Clock([2 * time for time in slow], slow), 40, lambda *found: True)
    assert spread.compressed == (6.5, 34.5)
    assert spread.ratio == (0.5, 0.5)


def test_an_open_verdict_is_measured_on() -> None:
    """The first five calls are disturbed. Settled is what stays below 0.6: after 30 calls they are two batches of ten,
    after 40 one, which is left out."""
    compressed = [2.0] * 5 + [1.0] * 95
    calls: list[int] = []

    def is_settled(before: latency.Timing, after: latency.Timing, spread: Spread) -> bool:
        calls.append(spread.calls)
        return spread.ratio[1] < 0.6

    _, after, spread = compare(Clock(forever(2.0), compressed), 10, is_settled)
    assert calls == [10, 20, 30, 40]
    assert (after.iterations, spread) == (40, Spread((1.0, 1.0), (0.5, 0.5), 40))


def test_it_ends_at_the_limit_of_calls() -> None:
    """Ten times as many as were asked for."""
    _, after, spread = compare(Clock(forever(2.0), forever(1.0)), 3, lambda *found: False)
    assert after.iterations == spread.calls == 30 == latency.MOST_ROUNDS * 3


def test_it_ends_at_the_limit_of_time() -> None:
    """No round begins behind it."""
    seconds = iter([0.0, 20.0, 40.0, latency.MOST_SECONDS])
    _, after, _ = compare(Clock(forever(2.0), forever(1.0)), 5, lambda *found: False, lambda: next(seconds))
    assert after.iterations == 15


def test_few_calls_are_taken_one_by_one() -> None:
    """Three calls reach from the lowest to the highest; a single one is a point."""
    _, _, spread = compare(Clock([2.0, 4.0, 2.0], [1.0, 3.0, 2.0]), 3, lambda *found: True)
    assert spread == Spread((1.0, 3.0), (0.5, 1.0), 3)
    _, _, spread = compare(Clock([2.0], [1.0]), 1, lambda *found: True)
    assert spread == Spread((1.0, 1.0), (0.5, 0.5), 1)
