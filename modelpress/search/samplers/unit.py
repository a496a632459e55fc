"""Values of a dimension as shares of [0, 1), and back: what samplers that compute with numbers search in."""

from __future__ import annotations

import math

from modelpress.api.search_space import Dimension
from modelpress.api.v1alpha1 import Categorical, FloatRange
from modelpress.api.v1alpha1.base import Scalar

BITS = 128
_LAST = 1 - 2**-53


def value_of(dimension: Dimension, bits: int) -> Scalar:
    """The value that 128 bits stand for: their share of 2^128, evenly (with log: by the logarithm) over the values."""
    domain = dimension.domain
    if isinstance(domain, Categorical) or dimension.size == 1 or (dimension.size is not None and not domain.log):
        assert dimension.size is not None
        return dimension.at((bits * dimension.size) >> BITS)
    share = (bits >> (BITS - 53)) / 2**53
    if isinstance(domain, FloatRange):
        if not domain.log:
            return dimension.tidy(domain.min * (1 - share) + domain.max * share)
        return dimension.tidy(math.exp(math.log(domain.min) * (1 - share) + math.log(domain.max) * share))
    # Each integer gets the share of [min - 1/2, max + 1/2] that rounds to it.
    low, high = math.log(domain.min - 0.5), math.log(domain.max + 0.5)
    return min(max(round(math.exp(low * (1 - share) + high * share)), domain.min), domain.max)


def value_at(dimension: Dimension, share: float) -> Scalar:
    """The value at a share; one outside of [0, 1) is brought inside."""
    return value_of(dimension, int(min(max(share, 0.0), _LAST) * 2**53) << (BITS - 53))


def share_of(dimension: Dimension, value: Scalar) -> float:
    """A share at which the value lies: the middle of a numbered value's own part of [0, 1).

    Raises:
        ValueError: it is none of the dimension's values.
    """
    domain = dimension.domain
    if isinstance(domain, Categorical) or (dimension.size is not None and not domain.log):
        assert dimension.size is not None
        return (dimension.index_of(value) + 0.5) / dimension.size
    if not dimension.contains(value):
        raise ValueError(f"{value!r} is none of the values of {dimension.name}")
    low, high, number = domain.min, domain.max, float(value)
    if not isinstance(domain, FloatRange):
        low, high = domain.min - 0.5, domain.max + 0.5
    if low == high:
        return 0.5
    if domain.log:
        low, high, number = math.log(low), math.log(high), math.log(number)
    return min(max((number - low) / (high - low), 0.0), _LAST)
