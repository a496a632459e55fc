"""The order of callbacks: what is out of order is refused in a sentence, and never ends in an unpruned model."""

from __future__ import annotations

import re

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from own_loop import Task, level, zeros

import modelpress as mp
from modelpress_runner.errors import InvalidModelError


class Order(RuleBasedStateMachine):
    """Calls callbacks in any order, beside a second account of what is in order."""

    def __init__(self) -> None:
        super().__init__()
        task = Task()
        self.weights = task.model[0].weight
        self.compression = mp.prepare_compression(task.model, [level(0.5)])
        self.callbacks = self.compression.callbacks
        self.phase, self.epoch, self.next = "new", False, 0
        self.step = self.around = self.stepped = self.evaluating = self.untouched = False

    def call(self, allowed: bool, name: str, *args: object) -> bool:
        """Calls a callback, which must raise if and only if it is not allowed now."""
        self.untouched = self.untouched and name == "on_train_begin"
        if allowed:
            getattr(self.callbacks, name)(*args)
        else:
            with pytest.raises(InvalidModelError, match=re.escape(f"{name}()")):
                getattr(self.callbacks, name)(*args)
        return allowed

    @property
    def between(self) -> bool:
        return self.phase == "training" and not self.around and not self.evaluating

    @rule()
    def train_begin(self) -> None:
        if self.call(self.phase == "new" or self.untouched, "on_train_begin"):
            self.phase, self.untouched = "training", True

    @rule(skip=st.integers(-1, 2))
    def epoch_begin(self, skip: int) -> None:
        epoch = self.next + skip
        if self.call(self.between and not self.epoch and skip >= 0, "on_epoch_begin", epoch):
            self.epoch, self.next, self.step = True, epoch + 1, False

    @rule()
    def step_begin(self) -> None:
        if self.call(self.between, "on_step_begin", 0):
            self.step, self.stepped = True, False

    @rule()
    def compute_loss(self) -> None:
        self.call(self.between and self.step, "on_after_compute_loss", None, None, torch.tensor(1.0))

    @rule()
    def before_step(self) -> None:
        if self.call(self.between and self.step and not self.stepped, "on_before_optimizer_step"):
            self.around = True
            with torch.no_grad():
                self.weights += 0.5  # what an optimizer does

    @rule()
    def after_step(self) -> None:
        if self.call(self.phase == "training" and self.around, "on_after_optimizer_step"):
            self.around, self.stepped = False, True

    @rule()
    def step_end(self) -> None:
        allowed = self.phase == "training" and self.step and not self.evaluating
        if self.call(allowed, "on_step_end"):
            self.around = self.step = False

    @rule()
    def epoch_end(self) -> None:
        if self.call(self.between and self.epoch, "on_epoch_end"):
            self.epoch = self.step = False

    @rule()
    def before_eval(self) -> None:
        if self.call(self.between, "on_before_eval"):
            self.evaluating = True

    @rule()
    def after_eval(self) -> None:
        if self.call(self.evaluating, "on_after_eval"):
            self.evaluating = False

    @rule()
    def train_end(self) -> None:
        if self.call(self.between, "on_train_end"):
            self.phase = "ended"

    @invariant()
    def pruned_weights_are_zero(self) -> None:
        if self.phase != "new" and not self.around:
            assert (self.weights == 0).sum() == 16

    @invariant()
    def there_is_a_result_at_the_end_alone(self) -> None:
        if self.phase == "ended":
            assert (self.compression.result.masks["0"]["weight"] == 0).sum() == 16
        else:
            with pytest.raises(InvalidModelError, match="on_train_end"):
                _ = self.compression.result

    def teardown(self) -> None:
        self.compression.close()


Order.TestCase.settings = hypothesis.settings(max_examples=40, stateful_step_count=25, deadline=None)
TestOrder = Order.TestCase


def test_errors_name_the_place_and_the_missing_call(task):
    """Epoch, batch, the file and line of the call, what is wrong, and what to call."""
    callbacks = mp.prepare_compression(task.model, [level()]).callbacks
    callbacks.on_train_begin()
    callbacks.on_epoch_begin(2)
    callbacks.on_step_begin(7)
    callbacks.on_before_optimizer_step()
    callbacks.on_after_optimizer_step()
    message = (
        r"on_before_optimizer_step\(\) in epoch 2, batch 7 was called twice in one batch; "
        r"call on_step_begin\(\) before each batch \(test_order\.py:\d+\)"
    )
    with pytest.raises(InvalidModelError, match=f"^{message}$"):
        callbacks.on_before_optimizer_step()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda c: c.on_epoch_begin("1"), "was given the epoch '1'; give a number, 0 or more"),
        (lambda c: c.on_epoch_begin(True), "was given the epoch True"),
        (lambda c: c.on_before_optimizer_step(), "came without on_step_begin(batch); call that before each batch"),
        (lambda c: c.on_after_optimizer_step(), "came without on_before_optimizer_step(); call that before"),
        (lambda c: (c.on_step_begin(0), c.on_train_begin()), "was called before; one object goes through one training"),
        (lambda c: c.on_epoch_end(), "came without on_epoch_begin(epoch)"),
        (lambda c: c.on_after_eval(), "came without on_before_eval()"),
        (lambda c: (c.on_before_eval(), c.on_step_begin(0)), "came before on_after_eval()"),
        (lambda c: (c.on_epoch_begin(0), c.on_epoch_begin(1)), "came before on_epoch_end() of epoch 0"),
        (lambda c: (c.on_epoch_begin(3), c.on_epoch_end(), c.on_epoch_begin(3)), "was given epoch 3 after epoch 3"),
        (
            lambda c: (c.on_step_begin(0), c.on_before_optimizer_step(), c.on_step_begin(1)),
            "came before on_after_optimizer_step(); call that right after optimizer.step()",
        ),
        (lambda c: (c.on_train_end(), c.on_step_begin(0)), "came after on_train_end()"),
        (
            lambda c: (c.on_step_begin(0), c.on_after_compute_loss(None, None, 0.5)),
            "was given a float as student_loss; it must hold one number",
        ),
        (
            lambda c: (c.on_step_begin(0), c.on_after_compute_loss(None, None, torch.ones(2))),
            "was given a tensor of shape (2,) as student_loss",
        ),
        (
            lambda c: (c.on_step_begin(0), c.on_after_compute_loss(None, None, torch.tensor(1.0), torch.ones(2))),
            "was given a teacher_output, and no stage of the recipe uses one; leave it out",
        ),
    ],
)
def test_each_fault_has_its_sentence(task, call, message):
    """What is called out of order, or with something of the wrong kind, is told apart."""
    callbacks = mp.prepare_compression(task.model, [level()]).callbacks
    callbacks.on_train_begin()
    with pytest.raises(InvalidModelError, match=re.escape(message)):
        call(callbacks)


def test_a_watched_optimizer_may_step_between_the_two_callbacks_only(task):
    """An optimizer that was handed over refuses a step that the callbacks do not surround, and steps again later."""
    compression = mp.prepare_compression(task.model, [level()], optimizers=task.optimizer)
    compression.callbacks.on_train_begin()
    with pytest.raises(InvalidModelError, match=r"optimizer.step\(\) was called outside on_before_optimizer_step"):
        task.optimizer.step()
    task.train(compression.callbacks, epochs=1)
    compression.callbacks.on_train_end()
    before = task.model[3].weight.clone()
    task.optimizer.step()
    assert not torch.equal(task.model[3].weight, before)


def test_gradients_may_be_accumulated_over_batches(task):
    """A batch without an optimizer step is in order, and counts no step."""
    compression = mp.prepare_compression(task.model, [level(start_step=2)])
    callbacks = compression.callbacks
    callbacks.on_train_begin()
    for batch in range(4):
        callbacks.on_step_begin(batch)
        task.model(task.x).sum().backward()
        if batch % 2:
            callbacks.on_before_optimizer_step()
            task.optimizer.step()
            callbacks.on_after_optimizer_step()
            task.optimizer.zero_grad()
        assert zeros(task.model[0]) == (16 if batch == 3 else 0)
    callbacks.on_train_end()
