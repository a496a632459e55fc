"""What a participant adds to a loss weighs once, however gradients come about; and its parameters' optimizer group."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from small_task import Task
from torch import nn
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, Dataset
from transformers import PretrainedConfig, PreTrainedModel, Trainer, TrainingArguments

import modelpress as mp
from modelpress_runner.errors import InvalidModelError
from modelpress_runner.evaluators.parameter_groups import join
from modelpress_runner.in_process.loop_evaluator import LoopEvaluator
from modelpress_runner.training.calls import Call
from modelpress_runner.training.participants import Participant
from modelpress_runner.training.participation import Participation
from modelpress_runner.training.run import training_session


class Triple(Participant):
    """Adds three times a parameter of its own to each loss; keeps calls, losses and the gradient of each step."""

    def __init__(self) -> None:
        self.own = nn.Parameter(torch.zeros(()))
        self.calls: list[Call | None] = []
        self.losses: list[float] = []
        self.gradients: list[float] = []

    def parameter_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        return [{"params": [self.own], "lr": 0.5}]

    def loss(self, call: Call | None, loss: torch.Tensor) -> torch.Tensor:
        self.calls.append(call)
        self.losses.append(float(loss.detach()))
        return loss + 3 * self.own

    def before_step(self, step: int) -> None:
        assert self.own.grad is not None
        self.gradients.append(float(self.own.grad))


class Rows(Dataset):
    """32 rows of one feature that is 1, with labels 0: every batch has the loss log(2) of a model that is zero."""

    def __len__(self) -> int:
        return 32

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"x": torch.ones(1), "labels": torch.tensor(0)}


class Module(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.fc = zeros()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return F.cross_entropy(self(batch["x"]), batch["labels"])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Data(pl.LightningDataModule):
    def train_dataloader(self) -> Any:
        return DataLoader(Rows(), 8)


class Pretrained(PreTrainedModel):
    """Its loss is the mean over its rows, or their sum over all rows of a step, where it is told their number."""

    config_class = PretrainedConfig

    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__(config)
        self.fc = nn.Linear(1, 2)
        self.post_init()
        self.fc.load_state_dict(zeros().state_dict())

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None, **told: Any) -> dict[str, torch.Tensor]:
        logits, items = self.fc(x), told.get("num_items_in_batch")
        if items is None:
            return {"loss": F.cross_entropy(logits, labels), "logits": logits}
        return {"loss": F.cross_entropy(logits, labels, reduction="sum") / items, "logits": logits}


class Unaware(Pretrained):
    """Is told no number of rows."""

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        return super().forward(x, labels)


def zeros() -> nn.Linear:
    layer = nn.Linear(1, 2)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _loop(step: Callable[[Any, Any, list[Callable[[], torch.Tensor]]], None]) -> Callable[..., None]:
    """Two batches of 8 a step."""

    def training_func(model, optimizer, training_step, scheduler, max_steps, max_epochs):
        batch = torch.ones(8, 1), torch.zeros(8, dtype=torch.long)
        for _ in range(2):
            step(model, optimizer, [lambda: training_step(batch, model)] * 2)

    return training_func


def _plain(model: Any, optimizer: Any, losses: list[Callable[[], torch.Tensor]]) -> None:
    optimizer.zero_grad()
    for loss in losses:
        (loss() / len(losses)).backward()
    optimizer.step()


def _scaled(model: Any, optimizer: Any, losses: list[Callable[[], torch.Tensor]]) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    model.zero_grad()  # and not the optimizer's, as trainers do
    for loss in losses:
        scaler.scale(loss() / len(losses)).backward()
    scaler.step(optimizer)
    scaler.update()


def _engine(engine: Any, optimizer: Any, losses: list[Callable[[], torch.Tensor]]) -> None:
    for loss in losses:
        engine.backward(loss())
        engine.step()


def _training_step(batch, model):
    return F.cross_entropy(model(batch[0]), batch[1])


def _torch(step: Any) -> Callable[..., tuple[nn.Module, Any]]:
    def made(folder: Any) -> tuple[nn.Module, Any]:
        model = zeros()
        sgd = mp.trace(torch.optim.SGD)(model.parameters(), lr=0.01)
        return model, mp.TorchEvaluator(_loop(step), sgd, _training_step)

    return made


def _lightning(folder: Any) -> tuple[nn.Module, Any]:
    trainer = mp.trace(pl.Trainer)(accelerator="cpu", logger=False, accumulate_grad_batches=2)
    return Module(), mp.LightningEvaluator(trainer, mp.trace(Data)(), torch.ones(1, 1))


def _transformers(kind: type[Pretrained]) -> Callable[..., tuple[nn.Module, Any]]:
    def made(folder: Any) -> tuple[nn.Module, Any]:
        model = kind(PretrainedConfig())
        arguments = TrainingArguments(
            output_dir=str(folder),
            per_device_train_batch_size=8,
            gradient_accumulation_steps=2,
            optim="sgd",
            learning_rate=0.01,
            lr_scheduler_type="constant",
            max_grad_norm=0.0,
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            dataloader_pin_memory=False,
        )
        trainer = mp.trace(Trainer)(model, arguments, train_dataset=Rows())
        return model, mp.TransformersEvaluator(trainer, {"x": torch.ones(1, 1)})

    return made


def _deepspeed(folder: Any) -> tuple[nn.Module, Any]:
    model = zeros()
    config = {"train_micro_batch_size_per_gpu": 8, "gradient_accumulation_steps": 2}
    sgd = mp.trace(torch.optim.SGD)(model.parameters(), lr=0.01)
    return model, mp.DeepspeedTorchEvaluator(_loop(_engine), _training_step, config, sgd)


MAKERS = {
    "torch": _torch(_plain),
    "torch with a scaler": _torch(_scaled),
    "lightning": _lightning,
    "transformers": _transformers(Unaware),
    "transformers with num_items_in_batch": _transformers(Pretrained),
    "deepspeed": _deepspeed,
}


@pytest.mark.parametrize("kind", MAKERS)
def test_a_term_weighs_once_in_accumulated_gradients(kind, tmp_path):
    """Two batches a step: each is seen with its own mean, log 2, and its call; the term's gradient is 3 and not 6."""
    model, evaluator = MAKERS[kind](tmp_path)
    along = Triple()
    evaluator.record_parameter_names(model)
    with training_session(model, evaluator, {}, participants=[along]) as session:
        session.train(max_epochs=1)
    assert along.gradients == [3.0, 3.0]
    assert float(along.own.detach()) == -0.5 * 3 * 2
    assert len(along.losses) == 4
    assert along.losses[:2] == pytest.approx([0.6931472] * 2, rel=1e-6)
    for call in along.calls:
        assert call is not None
        given = call.inputs[0] if call.inputs else call.kwargs["x"]
        assert torch.equal(given, torch.ones(8, 1))
        outputs = call.outputs["logits"] if isinstance(call.outputs, dict) else call.outputs
        assert outputs.shape == (8, 2)
        assert call.earlier == ()
    assert not model._forward_hooks


class Tokens(Pretrained):
    """A loss over tokens; those labelled -100 do not count."""

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None, **told: Any) -> dict[str, torch.Tensor]:
        logits, items = self.fc(x), told["num_items_in_batch"]
        return {"loss": F.cross_entropy(logits.mT, labels, reduction="sum") / items, "logits": logits}


class TokenMean(Triple):
    """Adds its parameter times the mean of x over the tokens that count."""

    def loss(self, call: Any, loss: torch.Tensor) -> torch.Tensor:
        self.losses.append(float(loss.detach()))
        counted = call.kwargs["labels"] != -100
        return loss + self.own * call.kwargs["x"][counted].mean()


def test_ragged_batches_weigh_by_their_tokens(tmp_path):
    """Two batches in a step, of 1 and 3 tokens that count: the gradient is the mean over all four, (8 + 1 + 1 + 2) / 4,
    and not that of both means, (8 + 4 / 3) / 2; each loss is seen as its own batch's mean."""
    rows = [
        {"x": torch.tensor([[8.0], [5.0], [5.0]]), "labels": torch.tensor([0, -100, -100])},
        {"x": torch.tensor([[1.0], [1.0], [2.0]]), "labels": torch.tensor([0, 1, 0])},
    ]
    model = Tokens(PretrainedConfig())
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=1,
        gradient_accumulation_steps=2,
        optim="sgd",
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        dataloader_pin_memory=False,
    )
    trainer = mp.trace(Trainer)(model, arguments, train_dataset=rows)
    evaluator = mp.TransformersEvaluator(trainer, {"x": torch.ones(1, 3, 1)})
    along = TokenMean()
    evaluator.record_parameter_names(model)
    with training_session(model, evaluator, {}, participants=[along]) as session:
        session.train(max_epochs=1)
    assert along.gradients == [pytest.approx(3.0, rel=1e-6)]
    assert along.losses == pytest.approx([0.6931472] * 2, rel=1e-6)


def test_each_of_several_losses_has_what_is_added():
    """Two losses of one step that are not parts of one mean: the term is in both."""

    def both(model, optimizer, losses):
        optimizer.zero_grad()
        sum(loss() for loss in losses).backward()
        optimizer.step()

    model, evaluator = _torch(both)(None)
    along = Triple()
    with training_session(model, evaluator, {}, participants=[along]) as session:
        session.train(max_epochs=1)
    assert along.gradients == [6.0, 6.0]


def test_a_loss_of_several_calls_has_them_all():
    """The last one is the call, with those before it; calls without gradients are none."""
    model = zeros()

    def pair(batch, model):
        with torch.no_grad():
            model(batch[0])
        return (model(batch[0]) - model(2 * batch[0])).square().mean() + model(batch[0]).sum()

    sgd = mp.trace(torch.optim.SGD)(model.parameters(), lr=0.01)
    along = Triple()
    with training_session(model, mp.TorchEvaluator(_loop(_plain), sgd, pair), {}, participants=[along]) as session:
        session.train(max_epochs=1)
    call = along.calls[0]
    assert call is not None
    assert [float(each.inputs[0][0]) for each in (*call.earlier, call)] == [1.0, 2.0, 1.0]


def test_a_loop_of_the_users_own_counts_alike():
    """Callbacks in place of hooks: gradient 3, and the parameter in the loop's optimizer."""
    task = Task()
    sgd = torch.optim.SGD(task.model.parameters(), lr=0.1)
    along, evaluator = Triple(), LoopEvaluator([sgd], [])
    with Participation(task.model, evaluator, [along]) as participation:
        for _ in range(2):
            sgd.zero_grad()
            for _ in range(2):
                loss = participation.loss(F.cross_entropy(task.model(task.x), task.y))
                (loss / 2).backward()
            evaluator.about_to_step()
            sgd.step()
            evaluator.stepped()
    assert along.gradients == [3.0, 3.0]
    assert float(along.own.detach()) == -3.0
    assert along.own.grad is None
    assert all(call is not None and call.inputs[0] is task.x for call in along.calls)
    with (
        pytest.raises(InvalidModelError, match=r"loop's optimizers are not known; give prepare_compression\(\)"),
        Participation(task.model, LoopEvaluator([], []), [Triple()]),
    ):
        pass


def test_a_group_follows_the_schedule_of_the_first():
    """Joined when the first group is at a half of its rate, it is at a half of its own, and goes on alike."""
    first, own = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    sgd = torch.optim.SGD([first], lr=1.0)
    scheduler = lr_scheduler.LambdaLR(sgd, lambda epoch: 0.5**epoch)
    sgd.step()
    scheduler.step()
    join([{"params": [own], "lr": 0.4}], sgd, [scheduler])
    assert [group["lr"] for group in sgd.param_groups] == [0.5, 0.2]
    scheduler.step()
    assert [group["lr"] for group in sgd.param_groups] == [0.25, 0.1]
    assert scheduler.get_last_lr() == [0.25, 0.1]


def test_an_optimizer_that_takes_no_group_says_so():
    """LBFGS knows one group only."""
    lbfgs = torch.optim.LBFGS([nn.Parameter(torch.ones(1))])
    with pytest.raises(InvalidModelError, match="LBFGS takes no further"):
        join([{"params": [nn.Parameter(torch.ones(1))]}], lbfgs, [])
