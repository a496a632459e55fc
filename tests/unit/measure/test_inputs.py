"""Example inputs as calls, and with any batch size."""

from __future__ import annotations

from collections import OrderedDict, namedtuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modelpress_runner.errors import InvalidModelError
from modelpress_runner.runtime.example_inputs import as_call, batch_size, with_batch

X = torch.arange(6.0).reshape(2, 3)


def test_a_tensor_is_one_positional_argument() -> None:
    """A bare tensor is passed as the only positional argument."""
    args, kwargs = as_call(X)
    assert len(args) == 1
    assert args[0] is X
    assert kwargs == {}


@pytest.mark.parametrize("inputs", [(X, [X, 3]), [X, [X, 3]]])
def test_tuples_and_lists_are_positional(inputs: object) -> None:
    """The items of a tuple or list are the positional arguments; what is inside them stays nested."""
    args, kwargs = as_call(inputs)
    assert args[0] is X
    assert args[1] == [X, 3]
    assert kwargs == {}


def test_a_mapping_is_keywords() -> None:
    """A mapping's items are keyword arguments, whatever its class; nested containers become plain ones."""
    pair = namedtuple("pair", ["a", "b"])
    args, kwargs = as_call(OrderedDict(x=X, more=pair(X, None)))
    assert args == ()
    assert list(kwargs) == ["x", "more"]
    assert type(kwargs["more"]) is tuple


@pytest.mark.parametrize("inputs", [None, 3, (), {"x": 1}, "x"])
def test_inputs_without_a_tensor_are_refused(inputs: object) -> None:
    """A dummy_input with no tensor in it is an error that says which forms there are."""
    with pytest.raises(InvalidModelError, match=r"dummy_input holds no tensor .* give a tensor, a tuple or list"):
        as_call(inputs)


def test_keys_that_are_no_names_are_refused() -> None:
    """Keyword arguments need texts as names."""
    with pytest.raises(InvalidModelError, match="the key 1"):
        as_call({1: X})


def test_rows_repeat_in_turn() -> None:
    """Two rows asked for five give rows 0, 1, 0, 1, 0."""
    assert with_batch(X, 5)[:, 0].tolist() == [0.0, 3.0, 0.0, 3.0, 0.0]
    assert with_batch(X, 1).tolist() == [[0.0, 1.0, 2.0]]


def test_only_tensors_with_the_batch_grow() -> None:
    """Scalars and tensors whose first dimension is not the batch stay as they are."""
    grown = with_batch({"x": X, "scale": torch.tensor(2.0), "table": torch.ones(7, 3), "n": 4}, 3)
    assert [tuple(grown[name].shape) for name in ("x", "scale", "table")] == [(3, 3), (), (7, 3)]
    assert grown["n"] == 4


def test_an_empty_batch_is_refused() -> None:
    """No row can be repeated where there is none."""
    with pytest.raises(InvalidModelError, match="empty batch"):
        with_batch(torch.ones(0, 3), 2)


@given(rows=st.integers(1, 5), size=st.integers(1, 12))
@settings(max_examples=30, deadline=None)
def test_every_row_comes_from_the_batch(rows: int, size: int) -> None:
    """Row i of a batch of any size is row i modulo the given rows, also inside nested inputs."""
    x = torch.arange(rows).reshape(rows, 1)
    grown = with_batch([x, {"y": (x,)}], size)
    assert grown[0][:, 0].tolist() == [index % rows for index in range(size)]
    assert torch.equal(grown[0], grown[1]["y"][0])
    assert batch_size(grown) == size
