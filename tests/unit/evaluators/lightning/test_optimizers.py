"""configure_optimizers in all its forms, optimization by hand, and where the hooks of a step stand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning_task import Clouds, Net, evaluator, net

from modelpress_runner.errors import InvalidModelError, UserCodeError
from modelpress_runner.runtime import rng


@pytest.fixture(autouse=True)
def _seeded() -> Any:
    with rng.fork_rng(0):
        yield


def _sgd(model: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1)


def _decay(optimizer: torch.optim.Optimizer) -> Any:
    return torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)


def _single(model: Any) -> Any:
    return _sgd(model)


def _list(model: Any) -> Any:
    return [_sgd(model)]


def _two_lists(model: Any) -> Any:
    optimizer = _sgd(model)
    return [optimizer], [_decay(optimizer)]


def _dict(model: Any) -> Any:
    optimizer = _sgd(model)
    return {"optimizer": optimizer, "lr_scheduler": _decay(optimizer)}


def _dict_with_config(model: Any) -> Any:
    optimizer = _sgd(model)
    schedule = {"scheduler": _decay(optimizer), "interval": "step", "frequency": 3}
    return {"optimizer": optimizer, "lr_scheduler": schedule}


def _tuple_of_dicts(model: Any) -> Any:
    return (_dict(model),)


@pytest.mark.parametrize(
    ("form", "rates"),
    [
        # Two epochs of six steps: no schedule, one that halves per epoch, one that halves every third step.
        (_single, [0.1, 0.1]),
        (_list, [0.1, 0.1]),
        (_two_lists, [0.05, 0.025]),
        (_dict, [0.05, 0.025]),
        (_dict_with_config, [0.025, 0.00625]),
        (_tuple_of_dicts, [0.05, 0.025]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_every_form_trains_and_schedules(form, rates):
    """The rate after each chunk of one epoch is what the schedule says, in the same objects."""

    class Formed(Net):
        def configure_optimizers(self) -> Any:
            return form(self)

    model = net(Formed)
    ours = evaluator()
    ours.bind(model)
    [optimizer] = ours.optimizers()
    seen = []
    for _ in range(2):
        ours.train(max_epochs=1)
        seen.append(optimizer.param_groups[0]["lr"])
    assert list(ours.optimizers()) == [optimizer]
    ours.unbind()
    assert seen == pytest.approx(rates)


def test_configure_optimizers_is_asked_once_per_binding():
    """With a Trainer attached; and nothing is left on the model."""
    asked = []

    class Asked(Net):
        def configure_optimizers(self) -> Any:
            asked.append((self.trainer.max_epochs, self.trainer.estimated_stepping_batches))
            return super().configure_optimizers()

    model = net(Asked)
    ours = evaluator(max_epochs=4)
    ours.bind(model)
    ours.train(max_epochs=1)
    ours.train(max_epochs=1)
    ours.unbind()
    ours.on_training_begin(None, 2)
    ours.bind(model)
    ours.unbind()
    assert asked == [(4, 24), (2, 12)]
    assert not {"configure_optimizers", "training_step", "manual_backward"} & vars(model).keys()
    with pytest.raises(RuntimeError, match="not attached"):
        _ = model.trainer


@pytest.mark.parametrize(
    ("form", "message"),
    [
        (lambda model: None, r"Formed.configure_optimizers\(\) returned None.*return an optimizer"),
        (lambda model: "adam", "Lightning says: Unknown configuration for model optimizers"),
        (lambda model: [_sgd(model.fc1), _sgd(model.fc2)], "Lightning says: .*multiple optimizers.*manual"),
    ],
    ids=["none", "nonsense", "two"],
)
def test_what_cannot_train_is_refused_when_it_is_bound(form, message):
    """One sentence; afterwards the evaluator is not bound and the model as it was."""

    class Formed(Net):
        def configure_optimizers(self) -> Any:
            return form(self)

    model = net(Formed)
    before = set(vars(model))
    ours = evaluator()
    with pytest.raises(InvalidModelError, match=message):
        ours.bind(model)
    assert set(vars(model)) - before <= {"_hparams"}  # an empty dict, which Lightning makes when it looks for one
    with pytest.raises(RuntimeError, match="not bound"):
        _ = ours.model
    assert ours.evaluate(model)["default"] >= 0


def test_the_users_own_error_names_his_line():
    """What configure_optimizers raises is the user's, with file and line."""

    class Broken(Net):
        def configure_optimizers(self) -> Any:
            raise KeyError("lr")

    with pytest.raises(UserCodeError, match=r"configure_optimizers of Broken raised KeyError: 'lr' \(.*\.py:\d+\)"):
        evaluator().bind(net(Broken))


@pytest.mark.parametrize("arguments", [{}, {"accumulate_grad_batches": 4}, {"precision": "bf16-mixed"}])
def test_hooks_before_a_step_see_its_gradients(arguments):
    """The gradient is that of the whole step, and the step is lr times it: w' = w - 0.1 g."""

    class Plain(Net):
        def configure_optimizers(self) -> Any:
            return _sgd(self)

    model = net(Plain)
    ours = evaluator(**arguments)
    ours.bind(model)
    expected: list[torch.Tensor] = []
    got: list[torch.Tensor] = []
    weight = model.fc1.weight
    ours.before_optimizer_step(lambda: expected.append((weight - 0.1 * ours.gradient(weight)).detach().clone()))
    ours.after_optimizer_step(lambda: got.append(weight.detach().clone()))
    ours.train(max_epochs=1)
    ours.unbind()
    # Of six batches four make a step, and the rest of the epoch another.
    assert len(got) == (2 if "accumulate_grad_batches" in arguments else 6)
    for one, two in zip(expected, got, strict=True):
        torch.testing.assert_close(one, two)


def test_hooks_come_behind_clipping():
    """The gradient that a hook sees is the one that the step takes: its norm is the Trainer's limit at most."""
    model = net()
    ours = evaluator(gradient_clip_val=1e-3)
    ours.bind(model)
    norms: list[float] = []

    def note() -> None:
        norms.append(float(torch.stack([ours.gradient(p).norm() for p in model.parameters()]).norm()))

    ours.before_optimizer_step(note)
    ours.train(max_steps=3)
    ours.unbind()
    assert norms == pytest.approx([1e-3] * 3, rel=1e-3)


def test_an_optimizer_that_works_out_its_loss_several_times_has_one_step():
    """LBFGS calls its closure up to 20 times a step; the hooks before and after it fire once."""

    class Newton(Net):
        def configure_optimizers(self) -> Any:
            return torch.optim.LBFGS(self.parameters(), lr=0.1)

    calls = []
    ours = evaluator()
    ours.bind(net(Newton))
    ours.patch_loss(lambda loss, batch: (calls.append("loss"), loss)[1])
    ours.before_optimizer_step(lambda: calls.append("before"))
    ours.after_optimizer_step(lambda: calls.append("after"))
    ours.train(max_steps=2)
    ours.unbind()
    assert [call for call in calls if call != "loss"] == ["before", "after"] * 2
    assert calls.count("loss") > 2


def test_a_skipped_batch_passes_through():
    """training_step may return None: no loss is patched, and the weights stay."""

    class Skipping(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return None if batch_idx % 2 else self.loss(batch)

    patched = []
    ours = evaluator()
    model = net(Skipping)
    ours.bind(model)
    ours.patch_loss(lambda loss, batch: (patched.append(len(batch[0])), loss)[1])
    ours.train(max_epochs=1)
    ours.unbind()
    assert patched == [8, 8, 8]


class Adversaries(Net):
    """Two optimizers by hand, the second stepped twice as often."""

    patched = True

    def __init__(self, lr: float = 0.05) -> None:
        super().__init__(lr)
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        first, second = self.optimizers()
        self._step(second, batch)
        if batch_idx % 2:
            self._step(first, batch)
            self.lr_schedulers().step()
        self._step(second, batch)

    def _step(self, optimizer: Any, batch: Any) -> None:
        optimizer.zero_grad()
        loss = F.cross_entropy(self(batch[0]), batch[1])
        if self.patched:
            self.manual_backward(loss)
        else:
            loss.backward()
        optimizer.step()

    def configure_optimizers(self) -> Any:
        first, second = _sgd(self.fc1), _sgd(self.fc2)
        return [first, second], [_decay(first)]


def test_several_optimizers_by_hand():
    """Three steps of the first optimizer take six batches: it alone is counted, and its schedule goes on."""
    calls = []
    ours = evaluator()
    ours.bind(net(Adversaries))
    ours.before_optimizer_step(lambda: calls.append("before"))
    ours.after_optimizer_step(lambda: calls.append("after"))
    ours.train(max_steps=1)
    ours.train(max_steps=2)
    first, second = ours.optimizers()
    assert first.param_groups[0]["lr"] == pytest.approx(0.1 / 8)
    assert second.param_groups[0]["lr"] == 0.1
    ours.unbind()
    assert calls.count("before") == 3
    assert calls.count("after") == 3 + 12


def test_a_loss_that_no_patch_can_reach_is_refused():
    """loss.backward() by hand would leave out what a method adds to the loss."""

    class Unpatched(Adversaries):
        patched = False

    ours = evaluator()
    ours.bind(net(Unpatched))
    ours.patch_loss(lambda loss, batch: loss)
    with pytest.raises(InvalidModelError, match=r"call that in place of loss.backward\(\)"):
        ours.train(max_epochs=1)
    ours.unbind()
    ours.bind(net(Unpatched))
    ours.train(max_epochs=1)
    ours.unbind()


def test_layers_that_are_made_anew_are_refused():
    """setup() that makes its layers each time would throw the compressed ones away."""

    class Anew(Net):
        def setup(self, stage: str) -> None:
            self.fc1 = torch.nn.Linear(4, 6)

    with pytest.raises(InvalidModelError, match="Anew makes its layers anew"):
        evaluator().bind(net(Anew))


def test_a_precision_that_changes_the_model_is_refused():
    """bf16-true would leave another type of weights behind; the model keeps its own."""
    model = net()
    with pytest.raises(InvalidModelError, match=r"turns the model into torch.bfloat16.*bf16-mixed"):
        evaluator(precision="bf16-true").bind(model)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    half = net().bfloat16()
    ours = evaluator(precision="bf16-true", data=lambda: Clouds())
    ours.bind(half)
    ours.train(max_steps=1)
    ours.unbind()
