"""The evaluators for plain PyTorch and for CompressionModules keep the contract that any evaluator must keep."""

from __future__ import annotations

import contextlib

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, TensorDataset

import modelpress as mp
from modelpress_runner.errors import CompressionError
from modelpress_runner.process.stopping import Stopped
from modelpress_runner.runtime import rng
from modelpress_runner.subject.compression_module import subject_of
from modelpress_runner.testing.evaluators import EvaluatorContract


def data() -> TensorDataset:
    """24 points of four features; the class is the sign of the first."""
    x = torch.randn(24, 4, generator=torch.Generator().manual_seed(0))
    return TensorDataset(x, (x[:, 0] > 0).long())


def network() -> nn.Sequential:
    """The same weights each time; norm and dropout, so that modes and random numbers matter."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.2), nn.Linear(6, 2))


def accuracy(model: nn.Module) -> float:
    """Over all points, in shuffled order."""
    right = [(model(x).argmax(1) == y).sum().item() for x, y in DataLoader(data(), 8, shuffle=True)]
    return sum(right) / 24


def training_step(batch, model):
    """Cross entropy."""
    x, y = batch
    return F.cross_entropy(model(x), y)


def loop(loader: DataLoader, breaks: bool = False):
    """A training_func over the loader's batches."""

    def training_func(model, optimizers, training_step, lr_schedulers, max_steps, max_epochs):
        optimizers = optimizers if isinstance(optimizers, list) else [optimizers]
        steps = 0
        for _ in range(max_epochs or 1000):
            model.train()
            for batch in loader:
                if max_steps is not None and steps >= max_steps:
                    return
                for optimizer in optimizers:
                    optimizer.zero_grad()
                training_step(batch, model).backward()
                for optimizer in optimizers:
                    optimizer.step()
                steps += 1
                if breaks:
                    raise ValueError("broken")
            if lr_schedulers is not None:
                lr_schedulers.step()

    return training_func


class TestTorchEvaluator(EvaluatorContract):
    """One traced optimizer with momentum, a scheduler, shuffling by the global generator."""

    def given(self, breaks=False):
        model = network()
        sgd = mp.trace(torch.optim.SGD)(model.parameters(), lr=0.1, momentum=0.9)
        evaluator = mp.TorchEvaluator(
            loop(DataLoader(data(), 8, shuffle=True), breaks),
            sgd,
            training_step,
            mp.trace(lr_scheduler.ExponentialLR)(sgd, gamma=0.5),
            torch.zeros(1, 4),
            accuracy,
        )
        return evaluator, model

    @pytest.fixture
    def make(self):
        return self.given

    @pytest.fixture
    def broken(self):
        return lambda: self.given(True)


class TestTorchEvaluatorWithFactories(EvaluatorContract):
    """Two optimizers from factories, shuffling and scoring by a generator of the user's own."""

    def given(self, breaks=False):
        loader = DataLoader(data(), 8, shuffle=True, generator=torch.Generator().manual_seed(5))

        def accuracy(model):
            return sum((model(x).argmax(1) == y).sum().item() for x, y in loader) / 24

        evaluator = mp.TorchEvaluator(
            loop(loader, breaks),
            [lambda params: torch.optim.Adam(params[:2], lr=0.1), lambda params: torch.optim.SGD(params[2:], lr=0.1)],
            training_step,
            dummy_input=torch.zeros(1, 4),
            evaluating_func=accuracy,
        )
        return evaluator, network()

    @pytest.fixture
    def make(self):
        return self.given

    @pytest.fixture
    def broken(self):
        return lambda: self.given(True)


class TestModuleEvaluator(EvaluatorContract):
    """The trainers of a CompressionModule, which train by epochs."""

    def given(self, breaks=False):
        class Digits(mp.CompressionModule):
            @classmethod
            def model(cls):
                return network()

            @classmethod
            def evaluator(cls):
                return accuracy

            @classmethod
            def optimizer_factory(cls):
                return lambda params: torch.optim.Adam(params, lr=0.05)

            @classmethod
            def criterion(cls):
                return nn.CrossEntropyLoss()

            @classmethod
            def sparsifying_trainer(cls, algorithm_name):
                def trainer(model, optimizer, criterion, current_epoch):
                    step = lambda batch, model: criterion(model(batch[0]), batch[1])  # noqa: E731
                    loop(DataLoader(data(), 8, shuffle=True), breaks)(model, optimizer, step, None, None, 1)

                return trainer

            @classmethod
            def example_inputs(cls):
                return torch.zeros(1, 4)

        subject = subject_of(Digits)
        subject.evaluator.dummy_input = subject.dummy_input
        return subject.evaluator, subject.model

    @pytest.fixture
    def make(self):
        return self.given

    @pytest.fixture
    def broken(self):
        return lambda: self.given(True)


# The contract finds what breaks it ------------------------------------------------------------------------------------


class Forgetful(mp.TorchEvaluator):
    """Leaves its step hooks on the optimizers."""

    def unbind(self):
        self._handles = []
        super().unbind()


class Clinging(mp.TorchEvaluator):
    """Leaves a forward hook on the model."""

    def register_forward_hook(self, module, hook):
        hook.attach(self.model.get_submodule(module))


class Patching(mp.TorchEvaluator):
    """Puts a method of its own in front of the model's."""

    def bind(self, model):
        super().bind(model)
        forward = model.forward
        model.forward = lambda *args: forward(*args)


class Anew(mp.TorchEvaluator):
    """Makes optimizers for every call."""

    def train(self, max_steps=None, max_epochs=None):
        if self._steps_made:
            model, patches = self.model, self._patches
            self.unbind()
            self.bind(model)
            self._patches = patches
        self._steps_made = True
        super().train(max_steps, max_epochs)

    _steps_made = False


class Swallowing(mp.TorchEvaluator):
    """Ends quietly when it is stopped."""

    def train(self, max_steps=None, max_epochs=None):
        with contextlib.suppress(Stopped):
            super().train(max_steps, max_epochs)


class Stateless(mp.TorchEvaluator):
    """Saves nothing of its optimizers."""

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


class Deaf(mp.TorchEvaluator):
    """Ignores what a loss patch gives."""

    def patch_loss(self, patch):
        super().patch_loss(lambda loss, batch: (patch(loss, batch), loss)[1])


class Messy(mp.TorchEvaluator):
    """Evaluates in a mode of its own and draws from the global generator."""

    def evaluate(self, model=None):
        score = super().evaluate(model)
        torch.rand(1)
        return score


class Tired(mp.TorchEvaluator):
    """Makes one step more than it is asked for."""

    def train(self, max_steps=None, max_epochs=None):
        super().train(max_steps and max_steps + 1, max_epochs)


@pytest.mark.parametrize(
    ("kind", "test", "arguments"),
    [
        (Forgetful, "test_nothing_is_left_after_unbinding", {"ending": "well"}),
        (Forgetful, "test_nothing_is_left_after_unbinding", {"ending": "after a step"}),
        (Clinging, "test_nothing_is_left_after_unbinding", {"ending": "in a hook"}),
        (Patching, "test_nothing_is_left_after_unbinding", {"ending": "well"}),
        (Anew, "test_calls_go_on_with_the_same_optimizers", {}),
        (Anew, "test_step_hooks_fire_around_every_step", {}),
        (Swallowing, "test_nothing_is_left_after_unbinding", {"ending": "in the loss"}),
        (Stateless, "test_a_resumed_run_equals_an_undisturbed_one", {"unit": "epochs", "after": 3}),
        (Deaf, "test_loss_patches_apply_in_order_and_in_every_call", {}),
        (Messy, "test_evaluation_changes_nothing", {}),
        (Messy, "test_it_evaluates_between_calls", {}),
        (Tired, "test_it_keeps_to_a_number_of_steps", {}),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else None,
)
def test_the_contract_finds_a_faulty_evaluator(kind, test, arguments, request, tmp_path):
    """Each fault fails the test that is there for it."""

    def make():
        evaluator, model = TestTorchEvaluator().given()
        evaluator.__class__ = kind
        return evaluator, model

    if "ending" in arguments:
        arguments = arguments | {"request": request}
    if "after" in arguments:
        arguments = arguments | {"tmp_path": tmp_path}
    with rng.fork_rng(0), pytest.raises((AssertionError, pytest.fail.Exception, CompressionError)):
        getattr(EvaluatorContract(), test)(make=make, **arguments)
