"""What is the user's carries no trace of a compression: no hook, no patched method, no step, whatever ended it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import modelpress as mp
from modelpress_runner.process.stopping import Stopped
from modelpress_runner.subject.compression_module import subject_of
from modelpress_runner.testing.evaluators import traces

X = torch.randn(16, 4, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()
STAGES = [
    {
        "prune": {
            "algorithm": "taylor",
            "config_list": [{"op_types": ["Linear"], "op_names_re": [r"(.*\.)?(first|0)"], "sparsity": 0.5}],
            "scores": {"steps": 2},
            "schedule": {"train": {"epochs": 1}},
        }
    },
    {"finetune": {"epochs": 1}},
]


class BrokenError(Exception):
    """Raised by the user's code."""


@dataclass
class User:
    """Everything that is the user's, and the exception that his code raises at its nth training step or evaluation."""

    model: nn.Module
    evaluator: Any = None
    others: list[Any] = field(default_factory=list)  # optimizers, schedulers, trainers, data modules
    fault: tuple[str, int, type[BaseException]] | None = None
    count: dict[str, int] = field(default_factory=lambda: {"step": 0, "score": 0})

    def at(self, what: str) -> None:
        self.count[what] += 1
        if self.fault is not None and self.fault[:2] == (what, self.count[what]):
            raise self.fault[2]

    def step(self, batch: Any, model: nn.Module, *args: Any) -> torch.Tensor:
        self.at("step")
        return F.cross_entropy(model(batch[0]), batch[1])

    def accuracy(self, model: nn.Module) -> float:
        self.at("score")
        return (model(X).argmax(1) == Y).float().mean().item()


def network() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))


def training_func(model, optimizer, training_step, scheduler, max_steps, max_epochs):
    steps = 0
    for _ in range(max_epochs or 1000):
        for index in torch.arange(16).split(8):
            if max_steps is not None and steps >= max_steps:
                return
            optimizer.zero_grad()
            training_step((X[index], Y[index]), model).backward()
            optimizer.step()
            steps += 1
        if scheduler is not None:
            scheduler.step()


def plain() -> User:
    """A TorchEvaluator with a traced optimizer and a traced scheduler."""
    user = User(network())
    optimizer = mp.trace(torch.optim.Adam)(user.model.parameters(), lr=0.05)
    scheduler = mp.trace(torch.optim.lr_scheduler.ExponentialLR)(optimizer, 0.9)
    user.others = [optimizer, scheduler]
    user.evaluator = mp.TorchEvaluator(training_func, optimizer, user.step, scheduler, X[:1], user.accuracy)
    return user


def module() -> User:
    """A CompressionModule whose criterion is a module of the user's own."""
    user, criterion = User(network()), nn.CrossEntropyLoss()

    class Digits(mp.CompressionModule):
        @classmethod
        def model(cls):
            return user.model

        @classmethod
        def evaluator(cls):
            return user.accuracy

        @classmethod
        def optimizer_factory(cls):
            return lambda parameters: torch.optim.SGD(parameters, lr=0.1)

        @classmethod
        def criterion(cls):
            return criterion

        @classmethod
        def sparsifying_trainer(cls, algorithm_name):
            def trainer(model, optimizer, criterion, current_epoch):
                for index in torch.arange(16).split(8):
                    user.at("step")
                    optimizer.zero_grad()
                    criterion(model(X[index]), Y[index]).backward()
                    optimizer.step()

            return trainer

        @classmethod
        def example_inputs(cls):
            return X[:1]

    subject = subject_of(Digits)
    user.evaluator, user.others = subject.evaluator, [criterion, Digits]
    user.evaluator.dummy_input = X[:1]
    return user


def lightning() -> User:
    """A LightningEvaluator with a traced Trainer and a traced data module."""
    pl = pytest.importorskip("lightning.pytorch")
    user = User(nn.Identity())

    class Net(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x):
            return self.last(F.relu(self.first(x)))

        def training_step(self, batch, batch_idx):
            return user.step(batch, self)

        def test_step(self, batch, batch_idx):
            self.log("default", user.accuracy(self))

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    class Data(pl.LightningDataModule):
        def train_dataloader(self):
            return DataLoader(TensorDataset(X, Y), 8)

        def test_dataloader(self):
            return DataLoader(TensorDataset(X, Y), 16)

    trainer = mp.trace(pl.Trainer)(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    data = mp.trace(Data)()
    user.model, user.others = Net(), [trainer, data, trainer.fit_loop, trainer.strategy]
    user.evaluator = mp.LightningEvaluator(trainer, data, dummy_input=X[:1])
    return user


def transformers() -> User:
    """A TransformersEvaluator with a traced Trainer."""
    hf = pytest.importorskip("transformers")
    user = User(nn.Identity())

    class Config(hf.PretrainedConfig):
        model_type = "modelpress-leftovers"

    class Net(hf.PreTrainedModel):
        config_class = Config

        def __init__(self, config):
            super().__init__(config)
            self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 2)
            self.post_init()

        def forward(self, x, labels=None):
            logits = self.last(F.relu(self.first(x)))
            if labels is None:
                return {"logits": logits}
            if torch.is_grad_enabled():
                user.at("step")
            return {"loss": F.cross_entropy(logits, labels), "logits": logits}

    class Data(torch.utils.data.Dataset):
        def __len__(self):
            return 16

        def __getitem__(self, index):
            return {"x": X[index], "labels": Y[index]}

    def metrics(prediction):
        user.at("score")
        return {"default": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}

    user.model = Net(Config())
    arguments = hf.TrainingArguments(
        output_dir="unused",
        per_device_train_batch_size=8,
        use_cpu=True,
        dataloader_pin_memory=False,
        save_strategy="no",
        report_to=[],
    )
    trainer = mp.trace(hf.Trainer)(
        user.model, arguments, train_dataset=Data(), eval_dataset=Data(), compute_metrics=metrics
    )
    user.others = [trainer, trainer.callback_handler, arguments]
    user.evaluator = mp.TransformersEvaluator(trainer, dummy_input=(X[:1],))
    return user


def deepspeed() -> User:
    """A DeepspeedTorchEvaluator with a traced optimizer."""
    pytest.importorskip("deepspeed")
    user = User(network())

    def loop(engine, optimizer, training_step, scheduler, max_steps, max_epochs):
        first = engine.global_steps
        for _ in range(max_epochs or 1000):
            for index in torch.arange(16).split(8):
                if max_steps is not None and engine.global_steps - first >= max_steps:
                    return
                engine.backward(training_step((X[index], Y[index]), engine))
                engine.step()

    optimizer = mp.trace(torch.optim.SGD)(user.model.parameters(), lr=0.1)
    config = {"train_micro_batch_size_per_gpu": 8}
    user.others = [optimizer]
    user.evaluator = mp.DeepspeedTorchEvaluator(
        loop, user.step, config, optimizer, dummy_input=X[:1], evaluating_func=user.accuracy
    )
    return user


USERS = {make.__name__: make for make in (plain, module, lightning, transformers, deepspeed)}
ENDINGS = {
    "success": None,
    "an exception in a scoring step": ("step", 2, BrokenError),
    "an exception in training": ("step", 5, BrokenError),
    "a request to stop": ("step", 4, Stopped),
    "an exception in an evaluation": ("score", 2, BrokenError),
}


def state(user: User) -> Any:
    """Weights, gradients, modes and flags of the model, and the states of optimizers and schedulers."""
    found = [copy.deepcopy(user.model.state_dict()), [module.training for module in user.model.modules()]]
    found += [[(each.requires_grad, each.grad) for each in user.model.parameters()]]
    return found + [each.state_dict() for each in user.others if isinstance(each, torch.optim.Optimizer)]


@pytest.mark.filterwarnings("ignore:The 'test_dataloader' does not have many workers")
@pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers")
@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("make", USERS)
def test_nothing_is_left_after_compress(make: str, ending: str, tmp_path, monkeypatch):
    """Scores by gradients, masks, a shrink and two trainings; the user's own objects are as they were."""
    monkeypatch.chdir(tmp_path)
    user = USERS[make]()
    user.fault = ENDINGS[ending]
    before, were = traces(user.model, user.evaluator, *user.others), state(user)
    _run(lambda: mp.compress(user.model, STAGES, user.evaluator, benchmark=None), user)
    assert user.count["step"] >= (2 if user.fault is None else user.fault[1] if user.fault[0] == "step" else 2)
    assert traces(user.model, user.evaluator, *user.others) == before
    for now, then in zip(state(user), were, strict=True):
        assert str(now) == str(then)


def _run(call: Callable[[], Any], user: User) -> None:
    if user.fault is None:
        call()
        return
    with pytest.raises(BaseException) as raised:
        call()
    chain = {type(raised.value), type(raised.value.__cause__)}
    assert user.fault[2] in chain, raised.value


@pytest.mark.parametrize("ending", ["success", "exception", "stop", "a refused step", "thrown away"])
def test_nothing_is_left_after_a_loop_of_the_users_own(ending: str):
    """The same after prepare_compression: model, optimizer and scheduler carry nothing any more."""
    user = plain()
    model = user.model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    before = traces(model, optimizer, scheduler)
    stage = {
        "algorithm": "taylor",
        "config_list": [{"op_names": ["0"], "sparsity": 0.5}],
        "schedule": {"start_step": 3},
    }

    def loop() -> None:
        compression = mp.prepare_compression(
            model,
            [{"prune": stage}],
            evaluator=user.accuracy,
            dummy_input=X[:1],
            optimizers=optimizer,
            lr_schedulers=scheduler,
        )
        assert traces(model, optimizer, scheduler) != before
        with compression:
            compression.callbacks.on_train_begin()
            for batch in range(4):
                compression.callbacks.on_step_begin(batch)
                optimizer.zero_grad()
                user.step((X, Y), model).backward()
                if ending == "a refused step":
                    optimizer.step()
                compression.callbacks.on_before_optimizer_step()
                optimizer.step()
                compression.callbacks.on_after_optimizer_step()
            compression.callbacks.on_train_end()

    fault = {"exception": BrokenError, "stop": Stopped}.get(ending)
    user.fault = None if fault is None else ("step", 2, fault)
    if ending == "success":
        loop()
    elif ending == "thrown away":
        mp.prepare_compression(model, [{"prune": stage}], dummy_input=X[:1], optimizers=optimizer).close()
    else:
        with pytest.raises(fault or Exception):
            loop()
    assert traces(model, optimizer, scheduler) == before
