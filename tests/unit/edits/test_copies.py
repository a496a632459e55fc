"""Models whose copies would go on with the original's weights are refused, with the function that is to blame."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from torch import nn

import modelpress as mp
from modelpress_runner.edits.copies import check_copies, copied
from modelpress_runner.errors import InvalidModelError


class Plain(nn.Module):
    """Keeps a bound method, a partial and a function that holds nothing of it: all harmless."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.way = self.through
        self.bound = functools.partial(self.through, scale=2.0)
        self.activation = lambda x: torch.relu(x)
        self.layer.register_forward_hook(lambda module, args, output: output * 1.0)

    def through(self, x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        return self.layer(x) * scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.activation(self.way(x)) + self.bound(x)


def _wrapped(model: nn.Module) -> None:
    inner = model.forward
    model.forward = lambda x: inner(x)


def _lambda(model: nn.Module) -> None:
    model.activation = lambda x: model.layer(x[:, :4])


def _default(model: nn.Module) -> None:
    def keep(module, args, output, owner=model):
        owner.seen = output

    model.layer.register_forward_hook(keep)


def _nested(model: nn.Module) -> None:
    weight = model.layer.weight
    model.parts = {"norm": [functools.partial(lambda x: x @ weight.T)]}


@pytest.mark.parametrize(
    ("spoil", "where"),
    [(_wrapped, "'forward'"), (_lambda, "'activation'"), (_default, "'layer.forward_hook'"), (_nested, "'parts'")],
)
def test_a_function_that_holds_the_model_is_named(spoil: Callable[[nn.Module], None], where: str) -> None:
    """The message has the attribute, the function and its place."""
    model = Plain()
    spoil(model)
    stage = {"sparsity": 0.5, "config_list": [{}], "speedup": False}
    with pytest.raises(InvalidModelError, match=r"would run the original's weights: .*test_copies\.py:\d+") as raised:
        mp.compress(model, [{"prune": stage}], None, torch.ones(1, 4))
    assert where in str(raised.value)


def test_what_a_copy_takes_along_is_no_reason() -> None:
    """The copy is on weights of its own, through bound methods too."""
    model = Plain()
    check_copies(model)
    twin = copied(model)
    x = torch.ones(2, 4)
    before = model(x)
    with torch.no_grad():
        twin.layer.weight.zero_()
        twin.layer.bias.zero_()
    assert torch.equal(model(x), before)
    assert not twin(x).any()
