"""One CNN, one recipe, four evaluators: they cut the same channels and end with the same score."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.utils.data import DataLoader, Dataset
from transformers import PretrainedConfig, PreTrainedModel, Trainer, TrainingArguments

import modelpress as mp
from modelpress.api.v1alpha1 import Prune
from modelpress_runner.methods.context import StageContext
from modelpress_runner.methods.prune.registry import method
from modelpress_runner.methods.prune.selection import select
from modelpress_runner.methods.prune.statistics import collect
from modelpress_runner.runtime import rng

pytestmark = pytest.mark.long

BATCH, LR, MOMENTUM = 32, 0.02, 0.9
STEPS = 20  # of scoring, half an epoch
STAGES = [{"finetune": {"epochs": 2}}]


class Digits(Dataset):
    """Images and labels in a fixed order."""

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        self.x = torch.tensor(images / 16.0, dtype=torch.float32).reshape(-1, 1, 8, 8)
        self.y = torch.tensor(labels)

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"x": self.x[index], "labels": self.y[index]}


def _split() -> tuple[Digits, Digits]:
    images, labels = load_digits(return_X_y=True)
    parts = train_test_split(images, labels, test_size=0.3, stratify=labels, random_state=0)
    return Digits(parts[0], parts[2]), Digits(parts[1], parts[3])


TRAIN, TEST = _split()


def _layers(model: nn.Module) -> None:
    model.conv1, model.bn1 = nn.Conv2d(1, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
    model.conv2, model.bn2 = nn.Conv2d(12, 24, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(24)
    model.fc = nn.Linear(24, 10)


def _logits(model: Any, x: torch.Tensor) -> torch.Tensor:
    x = F.relu(model.bn1(model.conv1(x)))
    return model.fc(F.relu(model.bn2(model.conv2(x))).mean(dim=(2, 3)))


def _share(logits: torch.Tensor, labels: torch.Tensor) -> float:
    return (logits.argmax(1) == labels).float().mean().item()


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        _layers(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _logits(self, x)


class Module(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        _layers(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _logits(self, x)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return F.cross_entropy(self(batch["x"]), batch["labels"])

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("default", _share(self(batch["x"]), batch["labels"]))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=LR, momentum=MOMENTUM)


class Data(pl.LightningDataModule):
    def train_dataloader(self) -> Any:
        return DataLoader(TRAIN, BATCH)

    def test_dataloader(self) -> Any:
        return DataLoader(TEST, 1000)


class Pretrained(PreTrainedModel):
    config_class = PretrainedConfig

    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__(config)
        _layers(self)
        self.post_init()

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        logits = _logits(self, x)
        return {"logits": logits} if labels is None else {"loss": F.cross_entropy(logits, labels), "logits": logits}


def _loop(step: Callable[[Any, Any, Callable[[], torch.Tensor]], None]) -> Callable[..., None]:
    def training_func(model, optimizer, training_step, scheduler, max_steps, max_epochs):
        steps = 0
        for _ in range(max_epochs or 1000):
            for start in range(0, len(TRAIN), BATCH):
                if max_steps is not None and steps >= max_steps:
                    return
                batch = TRAIN.x[start : start + BATCH], TRAIN.y[start : start + BATCH]
                step(model, optimizer, lambda batch=batch: training_step(batch, model))
                steps += 1

    return training_func


def _plain_step(model: nn.Module, optimizer: torch.optim.Optimizer, loss: Callable[[], torch.Tensor]) -> None:
    optimizer.zero_grad()
    loss().backward()
    optimizer.step()


def _engine_step(engine: Any, optimizer: Any, loss: Callable[[], torch.Tensor]) -> None:
    engine.backward(loss())
    engine.step()


def _training_step(batch, model):
    return F.cross_entropy(model(batch[0]), batch[1])


def _evaluating_func(model) -> float:
    return _share(model(TEST.x), TEST.y)


def _sgd(model: nn.Module) -> Any:
    return mp.trace(torch.optim.SGD)(model.parameters(), lr=LR, momentum=MOMENTUM)


def _torch(folder: Any) -> tuple[nn.Module, Any]:
    model = Plain()
    return model, mp.TorchEvaluator(_loop(_plain_step), _sgd(model), _training_step, None, TEST.x[:1], _evaluating_func)


def _lightning(folder: Any) -> tuple[nn.Module, Any]:
    trainer = mp.trace(pl.Trainer)(accelerator="cpu", logger=False)
    return Module(), mp.LightningEvaluator(trainer, mp.trace(Data)(), TEST.x[:1])


def _transformers(folder: Any) -> tuple[nn.Module, Any]:
    model = Pretrained(PretrainedConfig())
    arguments = TrainingArguments(
        output_dir=str(folder / "trainer"),
        per_device_train_batch_size=BATCH,
        per_device_eval_batch_size=1000,
        train_sampling_strategy="sequential",
        optim="sgd",
        optim_args=f"momentum={MOMENTUM}",
        learning_rate=LR,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        dataloader_pin_memory=False,
    )

    def metrics(prediction: Any) -> dict[str, float]:
        return {"default": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}

    trainer = mp.trace(Trainer)(model, arguments, train_dataset=TRAIN, eval_dataset=TEST, compute_metrics=metrics)
    return model, mp.TransformersEvaluator(trainer, {"x": TEST.x[:1]})


def _deepspeed(folder: Any) -> tuple[nn.Module, Any]:
    model = Plain()
    config = {"train_micro_batch_size_per_gpu": BATCH, "gradient_clipping": 0.0}
    functions = {"evaluating_func": _evaluating_func, "dummy_input": TEST.x[:1]}
    return model, mp.DeepspeedTorchEvaluator(_loop(_engine_step), _training_step, config, _sgd(model), **functions)


MAKERS = {"torch": _torch, "lightning": _lightning, "transformers": _transformers, "deepspeed": _deepspeed}


@dataclass
class Outcome:
    scores: dict[str, torch.Tensor]
    kept: dict[str, torch.Tensor]
    final: float


@pytest.fixture(scope="module")
def dense() -> dict[str, torch.Tensor]:
    """The weights that all begin with: 15 epochs of plain training."""
    with rng.fork_rng(0):
        model = Plain()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=MOMENTUM)
        for _ in range(15):
            for index in torch.arange(len(TRAIN)).split(BATCH):
                optimizer.zero_grad()
                _training_step((TRAIN.x[index], TRAIN.y[index]), model).backward()
                optimizer.step()
        return model.state_dict()


def _outcome(kind: str, algorithm: str, dense: dict[str, torch.Tensor], folder: Any) -> Outcome:
    """What the recipe gives: scores of channels, which of them are kept, the score after finetuning."""
    model, evaluator = MAKERS[kind](folder)
    model.load_state_dict(dense)
    prune = {
        "algorithm": algorithm,
        "configList": [{"opTypes": ["Conv2d"], "sparsity": 0.5}],
        "speedup": False,
    }
    if algorithm == "taylor":
        prune["scores"] = {"steps": STEPS}
    selection = select(model, Prune.model_validate(prune), "prune")
    context = StageContext(model=model, evaluator=evaluator, dummy_input=None, seed=0)
    scores = dict(collect(context, selection, STEPS, (0, 0), "prune"))
    for name in set(selection.choices) - scores.keys():
        scores[name] = method(algorithm).score(model.get_submodule(name), torch.Generator())
    result = mp.compress(model, [{"prune": prune}, *STAGES], evaluator, target={"format": "eager"})
    kept = {name: mask["weight"].flatten(1).amax(1) for name, mask in result.masks.items()}
    return Outcome(scores, kept, result.metrics["compressed"]["default"])


@pytest.mark.parametrize("algorithm", ["l1", "taylor"])
def test_masks_and_final_scores_agree(algorithm, dense, tmp_path):
    """Scores of channels agree to rounding, so the same half is masked, but where two of them are as good as equal; two
    epochs of finetuning then end within half a point of each other."""
    outcomes = {kind: _outcome(kind, algorithm, dense, tmp_path) for kind in MAKERS}
    first = outcomes["torch"]
    assert first.final > 0.85
    assert {name: int(mask.sum()) for name, mask in first.kept.items()} == {"conv1": 6, "conv2": 12}
    for kind, other in outcomes.items():
        assert abs(other.final - first.final) <= 0.005, kind
        assert other.kept.keys() == first.kept.keys(), kind
        for name, scores in first.scores.items():
            torch.testing.assert_close(other.scores[name], scores, rtol=1e-5, atol=0, msg=f"{kind} {name}")
            differing = scores[other.kept[name] != first.kept[name]]
            if len(differing):
                assert float(differing.max() - differing.min()) <= 1e-5 * float(differing.max()), (kind, name)
