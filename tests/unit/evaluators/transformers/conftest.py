"""A small task for the Trainer's tests: four features, two classes, a network with dropout in a PreTrainedModel."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel, Trainer, TrainingArguments

import modelpress as mp


class TaskConfig(PretrainedConfig):
    model_type = "modelpress-task"


class TaskModel(PreTrainedModel):
    """Features (batch, 4), labels (batch,) or none -> {"loss", "logits": (batch, 2)}."""

    config_class = TaskConfig

    def __init__(self, config: TaskConfig, dropout: float = 0.0) -> None:
        super().__init__(config)
        self.fc1, self.drop, self.fc2 = nn.Linear(4, 6), nn.Dropout(dropout), nn.Linear(6, 2)
        self.post_init()

    def forward(self, x, labels=None):
        logits = self.fc2(self.drop(F.relu(self.fc1(x))))
        if labels is None:
            return {"logits": logits}
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


class Samples(torch.utils.data.Dataset):
    """40 samples; the first feature's sign is the label."""

    def __init__(self, size: int = 40) -> None:
        self.x = torch.randn(size, 4, generator=torch.Generator().manual_seed(0))
        self.y = (self.x[:, 0] > 0).long()

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return {"x": self.x[index], "labels": self.y[index]}


def accuracy(prediction):
    return {"default": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean()), "other": 3}


class Task:
    """Model, data and Trainers."""

    def __init__(self, folder, dropout: float = 0.0) -> None:
        self.folder, self.data = folder, Samples()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.model = TaskModel(TaskConfig(), dropout)

    def arguments(self, **changes) -> TrainingArguments:
        given = {
            "output_dir": str(self.folder / "trainer"),
            "per_device_train_batch_size": 8,
            "per_device_eval_batch_size": 16,
            "learning_rate": 0.05,
            "use_cpu": True,
            "dataloader_pin_memory": False,
            "save_strategy": "no",
        }
        return TrainingArguments(**(given | changes))

    def trainer(self, model=None, cls=Trainer, arguments=None, **changes):
        given = {"train_dataset": self.data, "eval_dataset": self.data, "compute_metrics": accuracy}
        model = self.model if model is None else model
        return cls(model, self.arguments(**(arguments or {})), **(given | changes))

    def evaluator(self, arguments=None, cls=Trainer, options=None, **changes) -> mp.TransformersEvaluator:
        trainer = self.trainer(cls=mp.trace(cls), arguments=arguments, **changes)
        return mp.TransformersEvaluator(trainer, dummy_input=(self.data.x[:1],), **(options or {}))


@pytest.fixture
def task(tmp_path) -> Task:
    return Task(tmp_path)


@pytest.fixture
def new_task(tmp_path):
    """Makes equal tasks that share nothing."""
    return lambda dropout=0.0: Task(tmp_path, dropout)
