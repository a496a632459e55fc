"""A CNN for scikit-learn's handwritten digits as a Hugging Face model, trained and scored by a Trainer."""

from __future__ import annotations

import tempfile

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from transformers import EvalPrediction, PretrainedConfig, PreTrainedModel, Trainer, TrainingArguments
from transformers.modeling_outputs import ImageClassifierOutput

import modelpress as mp


class DigitsConfig(PretrainedConfig):
    """Settings of DigitsModel: the number of channels of its first layer."""

    model_type = "digits"

    def __init__(self, width: int = 32, **kwargs) -> None:
        super().__init__(**kwargs)
        self.width = width


class DigitsModel(PreTrainedModel):
    """Images (batch, 1, 8, 8) with pixels from 0 to 1 -> logits (batch, 10), and the loss where there are labels."""

    config_class = DigitsConfig

    def __init__(self, config: DigitsConfig) -> None:
        super().__init__(config)
        width = config.width
        self.conv1 = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(2 * width)
        self.classifier = nn.Linear(2 * width, 10)
        self.post_init()

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None) -> ImageClassifierOutput:
        x = F.relu(self.bn1(self.conv1(pixel_values)))
        x = F.relu(self.bn2(self.conv2(x)))
        logits = self.classifier(x.mean(dim=(2, 3)))
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return ImageClassifierOutput(loss=loss, logits=logits)


class Digits(torch.utils.data.Dataset):
    """Images and labels as the model's forward names them."""

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        self.images = torch.tensor(images / 16.0, dtype=torch.float32).reshape(-1, 1, 8, 8)
        self.labels = torch.tensor(labels)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"pixel_values": self.images[index], "labels": self.labels[index]}


def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """Share of the images that the model names rightly; modelpress takes the metric called `default` as the score."""
    return {"default": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def create(width: int = 32, epochs: int = 12, train: bool = True) -> mp.Subject:
    """The dense model and its Trainer; `train=False` leaves the model untrained."""
    images, labels = load_digits(return_X_y=True)
    split = train_test_split(images, labels, test_size=0.3, stratify=labels, random_state=0)
    training, held_back = Digits(split[0], split[2]), Digits(split[1], split[3])
    model = DigitsModel(DigitsConfig(width=width))
    arguments = TrainingArguments(
        output_dir=tempfile.mkdtemp(prefix="digits-"),
        per_device_train_batch_size=64,
        per_device_eval_batch_size=256,
        num_train_epochs=epochs,  # of the dense model; a recipe says itself how long it trains
        learning_rate=1e-2,
        lr_scheduler_type="cosine",
        save_strategy="no",
        dataloader_pin_memory=False,
        disable_tqdm=True,
    )
    trainer = mp.trace(Trainer)(
        model, arguments, train_dataset=training, eval_dataset=held_back, compute_metrics=compute_metrics
    )
    if train:
        trainer.train()
    example = {"pixel_values": held_back.images[:1]}
    return mp.Subject(model, mp.TransformersEvaluator(trainer), example_inputs=example)
