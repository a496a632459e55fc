"""A training by Hugging Face's Trainer as its users write it; nothing in here knows of modelpress."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from plain_scripts import PARTS, Script, first
from torch import nn
from torch.utils.data import Dataset, TensorDataset
from transformers import PretrainedConfig, PreTrainedModel, Trainer, TrainingArguments


class Config(PretrainedConfig):
    model_type = "plain-task"


class Model(PreTrainedModel):
    """Features (batch, 4), labels or none -> {"loss", "logits": (batch, 2)}; the samples' numbers are left alone."""

    config_class = Config

    def __init__(self, config: Config, net: nn.Module) -> None:
        super().__init__(config)
        self.net = net
        self.post_init()

    def forward(self, x: torch.Tensor, labels: Any = None, samples: Any = None) -> dict[str, torch.Tensor]:
        logits = self.net(x)
        return {"logits": logits} if labels is None else {"loss": F.cross_entropy(logits, labels), "logits": logits}


class Rows(Dataset):  # type: ignore[type-arg]
    """Samples as dicts."""

    def __init__(self, data: TensorDataset) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        x, y, sample = self.data[index]
        return {"x": x, "labels": y, "samples": sample}


class TrainerScript(Script):
    """The Trainer's own schedule, or one by steps with an optimizer of the user's own.

    Args:
        folder: for what the Trainer may write.
        own: whether the optimizer and its schedule are given.
        arguments: more of the Trainer's.
    """

    def __init__(self, folder: Any, own: bool = False, arguments: dict[str, Any] | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.folder, self.own, self.arguments = str(folder), own, arguments or {}

    def made_of(self, net: nn.Module) -> nn.Module:
        return first(lambda: Model(Config(), net))

    def kind(self) -> type[Trainer]:
        script = self

        class Noting(Trainer):
            """Notes what it trains on."""

            def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
                script.saw(inputs["samples"], self.optimizer)
                return super().training_step(model, inputs, *args, **kwargs)

        return Noting

    def trainer(self, model: Any = None, make: Any = None, **limits: Any) -> Trainer:
        model, make = model or self.model, make or self.kind()
        given = {
            "output_dir": self.folder,
            "per_device_train_batch_size": self.batch,
            "gradient_accumulation_steps": PARTS,
            "learning_rate": 0.05,
            "use_cpu": True,
            "dataloader_pin_memory": False,
            "save_strategy": "no",
            "logging_strategy": "no",
            "disable_tqdm": True,
        }
        more = {}
        if self.own:
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
            more["optimizers"] = (optimizer, torch.optim.lr_scheduler.StepLR(optimizer, step_size=3, gamma=0.5))
        args = TrainingArguments(**{**given, **self.arguments, **limits})
        data = Rows(self.data)
        return make(model, args, train_dataset=data, eval_dataset=data, compute_metrics=_accuracy, **more)

    def begin(self) -> None:
        """The training begins; for a test that seeds it there, behind the Trainer, which seeds when it is made."""

    def plain(self, steps: int | None, epochs: int | None) -> None:
        limits = {"max_steps": -1 if steps is None else steps, "num_train_epochs": epochs or 1}
        trainer = self.trainer(**limits)
        self.begin()
        trainer.train()


def _accuracy(prediction: Any) -> dict[str, float]:
    return {"default": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}
