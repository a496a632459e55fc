"""What evaluating_func may return."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from modelpress_runner.errors import InvalidModelError
from modelpress_runner.evaluators.score import score_of


@pytest.mark.parametrize(
    "value", [0.5, np.float32(0.5), np.float64(0.5), np.array(0.5), torch.tensor(0.5), torch.tensor(0.5).half()]
)
def test_numbers_of_every_library_are_scores(value):
    """A single number is the metric default, as a Python float."""
    score = score_of(value)
    assert score == {"default": 0.5}
    assert type(score["default"]) is float


def test_integers_and_dicts_are_scores():
    """Integers become floats; a dict keeps all its metrics."""
    assert score_of(3) == {"default": 3.0}
    assert score_of({"default": np.int64(2), "f1": torch.tensor(0.25)}) == {"default": 2.0, "f1": 0.25}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "returned nothing"),
        (True, "returned a bool"),
        ("0.5", "returned a str"),
        (torch.zeros(1), r"tensor of shape \(1,\)"),
        (float("nan"), "returned nan; a metric must be finite"),
        (float("-inf"), "returned -inf"),
        ({}, "returned nothing but no key 'default'"),
        ({"accuracy": 1.0}, "returned 'accuracy' but no key 'default'"),
        ({"default": 1.0, "macs": 5}, "'macs', which modelpress measures itself"),
        ({"default": 1.0, "top 1": 5}, "a metric named 'top 1'"),
        ({"default": 1.0, "f1": None}, r"metric 'f1', returned nothing"),
        ({"default": 1.0, "f1": float("inf")}, r"metric 'f1', returned inf"),
        ({"default": 1.0} | {f"m{i}": 0.0 for i in range(54)}, "returned 55 metrics; give at most 54"),
    ],
)
def test_everything_else_is_refused(value, message):
    """The message says what came and what should."""
    with pytest.raises(InvalidModelError, match=message):
        score_of(value)
