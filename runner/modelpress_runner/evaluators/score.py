"""What an evaluator may return: a number, or a dict of numbers with the key `default`."""

from __future__ import annotations

import math
import numbers
import re
from collections.abc import Mapping
from typing import Any

import torch

from modelpress.api.v1alpha1 import DEFAULT_METRIC, MEASURED
from modelpress_runner.errors import InvalidModelError
from modelpress_runner.evaluators.base import Score

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_./@-]{0,62}")
_MOST = 64 - len(MEASURED)


def score_of(value: Any, source: str = "evaluating_func") -> Score:
    """The score in what a user's evaluation returned.

    Args:
        value: a finite number (float, int, NumPy number, 0-d tensor), or a dict of them by name.
        source: who returned it, for messages.

    Raises:
        InvalidModelError: anything else, a missing `default`, NaN or infinity, or the name of a measured metric.
    """
    if not isinstance(value, Mapping):
        return {DEFAULT_METRIC: _number(value, source, None)}
    if DEFAULT_METRIC not in value:
        keys = ", ".join(map(repr, value)) or "nothing"
        raise InvalidModelError(f"{source} returned {keys} but no key 'default'; name the score 'default'")
    return numbers_in(value, source)


def numbers_in(values: Mapping[Any, Any], source: str, verb: str = "returned") -> Score:
    """Metrics by name as finite floats.

    Args:
        values: numbers by name; at most 54.
        source: who gave them, for messages.
        verb: what `source` did with them, for messages.

    Raises:
        InvalidModelError: too many, a name that is none or that of a measured metric, or what is no finite number.
    """
    if len(values) > _MOST:
        raise InvalidModelError(f"{source} {verb} {len(values)} metrics; give at most {_MOST}")
    score: Score = {}
    for name, item in values.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise InvalidModelError(
                f"{source} {verb} a metric named {name!r}; use at most 63 letters, digits and _ . / @ -, with a "
                "letter or _ first"
            )
        if name in MEASURED:
            raise InvalidModelError(f"{source} {verb} {name!r}, which modelpress measures itself; rename it")
        score[name] = _number(item, source, name, verb)
    return score


def _number(value: Any, source: str, name: str | None, verb: str = "returned") -> float:
    what = source if name is None else f"{source}, metric {name!r},"
    if isinstance(value, torch.Tensor):
        if value.dim() != 0 or value.is_complex():
            raise InvalidModelError(f"{what} {verb} a tensor of shape {tuple(value.shape)}; give a single number")
        value = value.item()
    elif getattr(value, "shape", None) == () and hasattr(value, "item"):  # a NumPy number or 0-d array
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        given = "nothing (None)" if value is None else f"a {type(value).__name__}"
        remedy = "give a number"
        if verb == "returned":
            remedy = "return a number, or a dict with the key 'default'"
            if name is not None:
                remedy = "give a number" if name == DEFAULT_METRIC else "leave it out, or give a number"
        raise InvalidModelError(f"{what} {verb} {given}; {remedy}")
    number = float(value)
    if not math.isfinite(number):
        raise InvalidModelError(f"{what} {verb} {number}; a metric must be finite")
    return number
