"""A small task for every evaluator, trained where the device says: images of two classes, a convolutional net."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import modelpress as mp
from gpu_check.rows import NotHere

STEPS = 8
BATCH = 16


def need(package: str) -> None:
    """Raises NotHere if a package is not installed."""
    if importlib.util.find_spec(package) is None:
        raise NotHere(f"{package} is not installed")


class Net(nn.Module):
    """Two convolutions and a linear layer: (n, 3, 8, 8) -> (n, 2)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.conv2, self.fc = nn.Conv2d(16, 32, 3, padding=1), nn.Linear(32, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.norm(self.conv1(x)))
        return self.fc(F.relu(self.conv2(x)).mean(dim=(2, 3)))


class Task:
    """Model and data on a device, and on which devices training and scoring have seen the model.

    Args:
        device: "cpu" or "cuda".
        moves: the model begins on the CPU, and the user's code moves it.
    """

    def __init__(self, device: str, moves: bool = False) -> None:
        self.device = torch.device(device)
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(64, 3, 8, 8, generator=generator)
        self.y = (self.x.mean(dim=(1, 2, 3)) > 0).long()
        self.x, self.y = self.x.to(self.device), self.y.to(self.device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.model: nn.Module = Net()
        if not moves:
            self.model.to(self.device)
        self.moves = moves
        self.seen: set[str] = set()

    def look(self, model: nn.Module) -> None:
        """Notes where the model is."""
        self.seen |= {parameter.device.type for parameter in model.parameters()}

    def step(self, batch: torch.Tensor, model: Any) -> torch.Tensor:
        """The loss of some samples, by their numbers."""
        self.look(model)
        return F.cross_entropy(model(self.x[batch]).float(), self.y[batch])

    def train(
        self, model: Any, optimizer: Any, training_step: Any, scheduler: Any, max_steps: Any, max_epochs: Any
    ) -> None:
        """A plain loop."""
        if self.moves:
            model.to(self.device)
        for batch in self.batches(max_steps, max_epochs):
            optimizer.zero_grad()
            training_step(batch, model).backward()
            optimizer.step()

    def batches(self, max_steps: int | None, max_epochs: int | None) -> list[torch.Tensor]:
        """Numbers of samples."""
        each = len(self.x) // BATCH
        count = max_steps if max_steps is not None else each * (max_epochs or 0)
        out: list[torch.Tensor] = []
        while len(out) < count:
            out += torch.randperm(len(self.x)).split(BATCH)
        return out[:count]

    def evaluate(self, model: Any) -> float:
        """Accuracy."""
        if self.moves and isinstance(model, nn.Module):
            model.to(self.device)
        return float((model(self.x).argmax(1) == self.y).float().mean())

    def evaluator(self, **changes: Any) -> mp.TorchEvaluator:
        """A TorchEvaluator."""
        given = {
            "training_func": self.train,
            "optimizers": lambda parameters: torch.optim.AdamW(parameters, lr=0.01),
            "training_step": self.step,
            "dummy_input": self.x[:1],
            "evaluating_func": self.evaluate,
        }
        return mp.TorchEvaluator(**(given | changes))


def recipe(algorithm: str = "l1", shrink: bool = True, steps: int = STEPS, **prune: Any) -> list[dict[str, Any]]:
    """Half of the channels of every convolution go; then a training."""
    entry = {"op_types": ["Conv2d"], "sparsity": 0.5}
    stage = {"algorithm": algorithm, "config_list": [entry], "speedup": shrink, **prune}
    return [{"prune": stage}, {"finetune": {"max_steps": steps}}]


def plain(device: str, moves: bool) -> tuple[Task, nn.Module, Any, list[dict[str, Any]]]:
    """A TorchEvaluator's task."""
    task = Task(device, moves)
    return task, task.model, task.evaluator(), recipe()


def module(device: str) -> tuple[Task, nn.Module, Any, list[dict[str, Any]]]:
    """A CompressionModule's."""
    from modelpress_runner.subject.compression_module import ModuleEvaluator
    from modelpress_runner.subject.subject import as_evaluator

    task = Task(device)

    class Given(mp.CompressionModule):
        def model(self) -> nn.Module:
            return task.model

        def optimizer_factory(self) -> Any:
            return lambda parameters: torch.optim.AdamW(parameters, lr=0.01)

        def criterion(self) -> Any:
            return F.cross_entropy

        def post_compress_finetuning_trainer(self, algorithm_name: Any) -> Any:
            def trainer(model: Any, optimizer: Any, criterion: Any, epoch: int) -> None:
                task.look(model)
                for batch in task.batches(None, 1):
                    optimizer.zero_grad()
                    criterion(model(task.x[batch]), task.y[batch]).backward()
                    optimizer.step()

            return trainer

        def sparsifying_trainer(self, algorithm_name: Any) -> Any:
            return None

        def evaluator(self) -> Any:
            return task.evaluate

    stages = recipe()
    stages[1] = {"finetune": {"epochs": 2}}
    scorer = as_evaluator(task.evaluate)
    assert scorer is not None
    return task, task.model, ModuleEvaluator(Given(), scorer), stages


def lightning(device: str) -> tuple[Task, nn.Module, Any, list[dict[str, Any]]]:
    """A LightningEvaluator's."""
    need("lightning")
    import lightning.pytorch as pl
    from torch.utils.data import DataLoader, TensorDataset

    task = Task(device)

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = task.model

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(x)

        def training_step(self, batch: Any, number: int) -> torch.Tensor:
            task.look(self)
            return F.cross_entropy(self(batch[0]), batch[1])

        def test_step(self, batch: Any, number: int) -> None:
            self.log("default", (self(batch[0]).argmax(1) == batch[1]).float().mean())

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters(), lr=0.01)

    class Data(pl.LightningDataModule):
        def train_dataloader(self) -> Any:
            return DataLoader(TensorDataset(task.x.cpu(), task.y.cpu()), BATCH, shuffle=True)

        def test_dataloader(self) -> Any:
            return DataLoader(TensorDataset(task.x.cpu(), task.y.cpu()), 64)

    accelerator = "gpu" if task.device.type == "cuda" else "cpu"
    trainer = mp.trace(pl.Trainer)(accelerator=accelerator, devices=1, logger=False)
    task.model.cpu()
    return task, Module(), mp.LightningEvaluator(trainer, mp.trace(Data)(), task.x[:1].cpu()), recipe()


def transformers(device: str) -> tuple[Task, nn.Module, Any, list[dict[str, Any]]]:
    """A TransformersEvaluator's."""
    need("transformers")
    need("accelerate")
    import tempfile

    from transformers import PretrainedConfig, PreTrainedModel, Trainer, TrainingArguments

    task = Task(device)

    class Config(PretrainedConfig):
        model_type = "modelpress-gpu-check"

    class Model(PreTrainedModel):
        config_class = Config

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.net = Net()
            self.post_init()

        def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
            task.look(self)
            logits = self.net(x)
            return {"logits": logits} if labels is None else {"loss": F.cross_entropy(logits, labels), "logits": logits}

    class Samples(torch.utils.data.Dataset):  # type: ignore[type-arg]
        def __len__(self) -> int:
            return len(task.x)

        def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
            return {"x": task.x[index].cpu(), "labels": task.y[index].cpu()}

    model = Model(Config()).to(task.device)
    arguments = TrainingArguments(
        output_dir=tempfile.mkdtemp(prefix="modelpress-gpu-check-"),
        per_device_train_batch_size=BATCH,
        learning_rate=0.01,
        use_cpu=task.device.type == "cpu",
        save_strategy="no",
        report_to="none",
        dataloader_pin_memory=False,
    )
    trainer = mp.trace(Trainer)(
        model,
        arguments,
        train_dataset=Samples(),
        eval_dataset=Samples(),
        compute_metrics=lambda p: {"default": float((p.predictions.argmax(-1) == p.label_ids).mean())},
    )
    return task, model, mp.TransformersEvaluator(trainer, dummy_input={"x": task.x[:1]}), recipe()


def deepspeed(device: str) -> tuple[Task, nn.Module, Any, list[dict[str, Any]]]:
    """A DeepspeedTorchEvaluator's."""
    need("deepspeed")
    task = Task(device)

    def train(engine: Any, optimizer: Any, training_step: Any, scheduler: Any, max_steps: Any, max_epochs: Any) -> None:
        for batch in task.batches(max_steps, max_epochs):
            engine.backward(training_step(batch, engine))
            engine.step()

    evaluator = mp.DeepspeedTorchEvaluator(
        train,
        task.step,
        {"train_micro_batch_size_per_gpu": BATCH, "zero_optimization": {"stage": 1}},
        lambda parameters: torch.optim.AdamW(parameters, lr=0.01),
        dummy_input=task.x[:1],
        evaluating_func=task.evaluate,
    )
    return task, task.model, evaluator, recipe()


EVALUATORS: dict[str, Callable[[str], tuple[Task, nn.Module, Any, list[dict[str, Any]]]]] = {
    "TorchEvaluator": lambda device: plain(device, moves=False),
    "TorchEvaluator, model moved by its code": lambda device: plain(device, moves=True),
    "CompressionModule": module,
    "LightningEvaluator": lightning,
    "TransformersEvaluator": transformers,
    "DeepspeedTorchEvaluator": deepspeed,
}
