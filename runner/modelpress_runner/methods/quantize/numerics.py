"""Scales and zero points: from ranges, and ranges from histograms and errors."""

from __future__ import annotations

import torch

TINY = float(torch.finfo(torch.float32).tiny)
BINS = 2048
_SHARES = 100  # of a range, that are tried for the least error
EMA_DECAY = 0.99


def scale_and_zero(
    low: torch.Tensor, high: torch.Tensor, qmin: int, qmax: int, scheme: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale (float32) and zero point (int32) of ranges, of their shape.

    symmetric: max(|low|, |high|) / ((qmax - qmin) / 2) and the middle integer, which is 0 of signed ones. affine:
    (high - low) / (qmax - qmin) with the range widened to hold zero, and qmin - low / scale, rounded half to even, so
    that zero is one of the numbers (Jacob et al. 2017, arXiv 1712.05877). A range of nothing has a scale of 1.
    """
    low, high = low.double().clamp(max=0.0), high.double().clamp(min=0.0)
    if scheme == "symmetric":
        scale = torch.maximum(-low, high) / ((qmax - qmin) / 2)
        zero = torch.full_like(scale, (qmin + qmax + 1) // 2)
    else:
        scale = (high - low) / (qmax - qmin)
        zero = (qmin - low / torch.where(scale > 0, scale, 1.0)).round().clamp(qmin, qmax)
    scale = torch.where(scale > TINY, scale, 1.0)
    return scale.float(), zero.to(torch.int32)


def ema(before: torch.Tensor | None, value: torch.Tensor, decay: float = EMA_DECAY) -> torch.Tensor:
    """The moving average: decay * before + (1 - decay) * value; the first value is itself."""
    return value if before is None else decay * before + (1 - decay) * value


def rows_of(weight: torch.Tensor, axis: int | None, group: int | None) -> torch.Tensor:
    """A weight as a matrix, with a row for each scale."""
    if axis is None:
        return weight.reshape(1, -1)
    if group is not None:
        return weight.reshape(-1, group)
    return weight.movedim(axis, 0).reshape(weight.shape[axis], -1)


def least_error(rows: torch.Tensor, qmin: int, qmax: int, scheme: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Ranges, (rows,) each, whose rounding has the least sum of squared errors, among shares of the whole range.

    Args:
        rows: (rows, values), float.
    """
    low, high = rows.amin(1).clamp(max=0.0), rows.amax(1).clamp(min=0.0)
    best = torch.full_like(low, torch.inf)
    found = low.clone(), high.clone()
    for number in range(_SHARES, _SHARES // 5, -1):
        share = number / _SHARES
        scale, zero = scale_and_zero(low * share, high * share, qmin, qmax, scheme)
        scale, zero = scale.unsqueeze(1), zero.unsqueeze(1)
        back = ((rows / scale).round() + zero).clamp(qmin, qmax).sub(zero).mul(scale)
        error = (back - rows).square().sum(1)
        better = error < best
        best = torch.where(better, error, best)
        found = torch.where(better, low * share, found[0]), torch.where(better, high * share, found[1])
    return found


def percentile_range(histogram: torch.Tensor, low: float, high: float, percentile: float) -> tuple[float, float]:
    """The range that leaves out (100 - percentile) % of the values at each end that reaches beyond zero.

    Args:
        histogram: counts of bins of equal width between low and high.
        percentile: in percent; 100: nothing is left out.
    """
    edges = torch.linspace(low, high, histogram.numel() + 1, dtype=torch.float64)
    total = histogram.double().cumsum(0)
    wanted = total[-1] * percentile / 100
    upper = float(edges[1 + int(torch.searchsorted(total, wanted).clamp(max=histogram.numel() - 1))])
    down = histogram.double().flip(0).cumsum(0)
    lower = float(edges[-2 - int(torch.searchsorted(down, wanted).clamp(max=histogram.numel() - 1))])
    return min(lower, 0.0), max(upper, 0.0)


def entropy_range(histogram: torch.Tensor, low: float, high: float, levels: int) -> tuple[float, float]:
    """The range [-t, t], cut to what there is, whose rounded distribution diverges least from the clipped one (as
    TensorRT calibrates: Migacz 2017, "8-bit Inference with TensorRT").

    Args:
        histogram: counts of bins of equal width between low and high.
        levels: how many steps there are between 0 and t.
    """
    width = (high - low) / histogram.numel()
    centers = low + width * (torch.arange(histogram.numel(), dtype=torch.float64) + 0.5)
    bins = max(1, round(max(-low, high) / width))
    folded = torch.zeros(bins, dtype=torch.float64)
    place = (centers.abs() / width).long().clamp(max=bins - 1)
    folded.index_add_(0, place, histogram.double())
    if bins <= levels:
        return low, high
    best, found = torch.inf, bins
    for kept in range(levels, bins + 1, max(1, (bins - levels) // 256)):
        divergence = _divergence(folded, kept, levels)
        if divergence < best:
            best, found = divergence, kept
    most = found * width
    return max(low, -most), min(high, most)


def _divergence(folded: torch.Tensor, kept: int, levels: int) -> float:
    inside = folded[:kept]
    clipped = inside.clone()
    clipped[-1] += folded[kept:].sum()
    step = (torch.arange(kept) * levels // kept).clamp(max=levels - 1)
    sums = torch.zeros(levels, dtype=torch.float64).index_add_(0, step, inside)
    filled = torch.zeros(levels, dtype=torch.float64).index_add_(0, step, (inside > 0).double())
    spread = torch.where(inside > 0, (sums / filled.clamp(min=1))[step], 0.0)
    p, q = clipped / clipped.sum(), spread / spread.sum().clamp(min=TINY)
    # A bin that only clipping has filled has no q: it is as unlikely as can be told.
    q = torch.where((p > 0) & (q == 0), 1e-9, q)
    there = p > 0
    return float((p[there] * (p[there] / q[there]).log()).sum())


def error_range(
    histogram: torch.Tensor, low: float, high: float, qmin: int, qmax: int, scheme: str
) -> tuple[float, float]:
    """The range whose rounding has the least squared error, every value taken for the middle of its bin."""
    width = (high - low) / histogram.numel()
    centers = low + width * (torch.arange(histogram.numel(), dtype=torch.float64) + 0.5)
    counts = histogram.double()
    best, found = torch.inf, (low, high)
    for number in range(_SHARES, 0, -1):
        share = number / _SHARES
        ends = torch.tensor(low * share), torch.tensor(high * share)
        scale, zero = (each.double() for each in scale_and_zero(*ends, qmin, qmax, scheme))
        back = ((centers / scale).round() + zero).clamp(qmin, qmax).sub(zero).mul(scale)
        error = float(((back - centers).square() * counts).sum())
        if error < best:
            best, found = error, (low * share, high * share)
    return found
