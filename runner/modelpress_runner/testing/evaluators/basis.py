"""What every part of the contract stands on: fixtures, and what is compared."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from modelpress_runner.evaluators.base import Evaluator
from modelpress_runner.runtime import rng

Make = Callable[[], tuple[Evaluator, nn.Module]]

Limits = tuple[int | None, int | None]  # max_steps, max_epochs

EPOCH: Limits = (None, 1)
_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
    "_post_accumulate_grad_hooks",
    "_optimizer_step_pre_hooks",
    "_optimizer_step_post_hooks",
)


def traces(*objects: Any) -> set[str]:
    """What somebody has put on models, their modules and parameters, optimizers and other objects, as text.

    Hooks, and instance attributes that stand in front of a method of the class.
    """
    found: set[str] = set()
    for number, each in enumerate(objects):
        parts: list[tuple[str, Any]] = [("", each)]
        if isinstance(each, nn.Module):
            parts = [*each.named_modules(), *each.named_parameters()]
        for name, part in parts:
            where = f"{number} {type(part).__name__} {name!r}"
            for attribute in _HOOKS:
                for key, hook in (getattr(part, attribute, None) or {}).items():
                    found.add(f"{where}: {attribute}[{key}] {hook!r}")
            for attribute, value in getattr(part, "__dict__", {}).items():
                if callable(value) and callable(getattr(type(part), attribute, None)):
                    found.add(f"{where}: .{attribute} is {value!r}")
    return found


def values_of(model: nn.Module) -> dict[str, torch.Tensor]:
    named = [*model.named_parameters(), *model.named_buffers()]
    return {name: value.detach().clone() for name, value in named}


def is_same(one: Any, two: Any) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(two, torch.Tensor):
        return one.dtype == two.dtype and torch.equal(one, two)
    if isinstance(one, dict):
        return isinstance(two, dict) and one.keys() == two.keys() and all(is_same(one[key], two[key]) for key in one)
    if isinstance(one, list | tuple):
        return type(one) is type(two) and len(one) == len(two) and all(map(is_same, one, two))
    return bool(one == two)


def through_disk(state: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def first_weight(model: nn.Module) -> tuple[str, nn.Parameter]:
    return next((name, p) for name, p in model.named_parameters() if p.requires_grad and p.dim() > 1)


class Basis:
    """The fixtures of the contract."""

    @pytest.fixture
    def make(self) -> Make:
        """Makes an evaluator and its model."""
        raise NotImplementedError("the fixture `make` returns a function that gives an evaluator and its model")

    @pytest.fixture
    def broken(self) -> Make:
        """As `make`; the training raises after its first step."""
        pytest.skip("no fixture `broken`")

    def watched(self, evaluator: Evaluator) -> list[Any]:
        """Objects of the framework that the evaluator patches."""
        return []

    @pytest.fixture(autouse=True)
    def _seeded(self) -> Any:
        with rng.fork_rng(0):
            yield

    def _train(self, evaluator: Evaluator, model: nn.Module, limits: Limits = EPOCH) -> None:
        evaluator.train(*limits)
        for parameter in model.parameters():
            parameter.grad = None
