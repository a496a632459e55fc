"""mp.trace as a decorator: the class stays a class."""

from __future__ import annotations

import io
import pickle

import pytest
import torch
from torch import nn

import modelpress as mp
from modelpress_runner.errors import InvalidModelError
from modelpress_runner.evaluators.trace import call_of


@mp.trace
class Old(nn.Module):
    def __init__(self, width: int = 2, *parts: object) -> None:
        super(Old, self).__init__()  # noqa: UP008
        self.layer = nn.Linear(width, width)


class Derived(Old):
    def __init__(self) -> None:
        super().__init__(3)


def test_a_decorated_class_is_a_class() -> None:
    """super(Old, self), unions, pickle, derived classes; its own objects remember their call."""
    kind = Old
    assert isinstance(kind, type)
    assert isinstance(kind(), kind | None)
    again = pickle.loads(pickle.dumps(made := kind(4)))
    assert torch.equal(again.layer.weight, made.layer.weight)
    torch.save(made, io.BytesIO())
    call = call_of(made)
    assert (call.factory, call.args, call.kwargs) == (kind, (4,), {})
    assert call.factory(*call.args).layer.in_features == 4
    assert call_of(Derived()) is None
    assert mp.trace(kind) is kind


def test_a_class_of_a_function_is_decorated_too() -> None:
    """Its generators become lists, as of other traced classes."""

    @mp.trace
    class Local:
        def __init__(self, values) -> None:
            self.values = list(values)

    made = Local(number for number in (1, 2))
    assert made.values == [1, 2]
    assert call_of(made).args == ([1, 2],)


def test_a_library_class_stays_as_it_is() -> None:
    """Only what is being defined is changed."""
    before = torch.optim.SGD.__init__
    traced = mp.trace(torch.optim.SGD)
    assert traced is not torch.optim.SGD
    assert torch.optim.SGD.__init__ is before
    assert call_of(torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)) is None


def test_schedulers_inside_a_traced_one_are_traced_too() -> None:
    """Known before anything is scored or trained."""
    model = nn.Linear(2, 2)
    optimizer = mp.trace(torch.optim.SGD)(model.parameters(), lr=0.1)
    parts = [torch.optim.lr_scheduler.ConstantLR(optimizer), torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)]
    scheduler = mp.trace(torch.optim.lr_scheduler.SequentialLR)(optimizer, parts, milestones=[1])
    evaluator = mp.TorchEvaluator(lambda *args: None, optimizer, lambda batch, model: None, scheduler)
    with pytest.raises(InvalidModelError, match=r"SequentialLR was made of a ConstantLR .*mp.trace\(ConstantLR\)"):
        evaluator.record_parameter_names(model)
