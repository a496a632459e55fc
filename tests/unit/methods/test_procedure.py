"""Procedures: lists of steps, and what a state may hold."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from modelpress_runner.methods.context import Transform
from modelpress_runner.methods.procedure import Procedure, StepList, plain_state
from modelpress_runner.training.step import Training

STEPS = [Transform("a", print), Training("b", epochs=1), Transform("c", print), Training("d", max_steps=2)]


def test_a_list_gives_its_steps_in_order() -> None:
    """From the begin, and from where another left off; the trainings are those that are left."""
    whole = StepList(STEPS)
    assert whole.trainings() == [STEPS[1], STEPS[3]]
    assert [whole.next(None) for _ in range(5)] == [*STEPS, None]
    assert whole.trainings() == []
    for done in range(5):
        first, second = StepList(STEPS), StepList(STEPS)
        for _ in range(done):
            first.next(None)
        second.load_state_dict(plain_state(first))
        assert [second.next(None) for _ in range(5 - done)] == [*STEPS[done:], None]


class Holding(Procedure):
    """Nothing but a state."""

    def __init__(self, state: dict[str, Any]) -> None:
        self.state = state

    def next(self, score: Any) -> None:
        return None

    def state_dict(self) -> dict[str, Any]:
        return self.state


def test_a_state_is_a_snapshot() -> None:
    """What the procedure does to its lists and dicts afterwards does not reach it."""
    inner = {"numbers": [1, 2.5], "none": None, "tensor": torch.ones(2, requires_grad=True)}
    state = plain_state(Holding({"inner": inner}))
    inner["numbers"].append(3)
    inner["more"] = 1
    assert state["inner"]["numbers"] == [1, 2.5]
    assert set(state["inner"]) == {"numbers", "none", "tensor"}
    assert not state["inner"]["tensor"].requires_grad


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"a": [1, {2}]}, r"Holding.state_dict\(\)\['a'\]\[1\] is a set; give numbers"),
        ({"a": {1: 2}}, r"Holding.state_dict\(\)\['a'\] has the key 1; give texts"),
    ],
)
def test_what_no_checkpoint_can_hold_is_named(state: dict[str, Any], words: str) -> None:
    """With its place."""
    with pytest.raises(TypeError, match=words):
        plain_state(Holding(state))
