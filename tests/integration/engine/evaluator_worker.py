"""One rank that prunes by Taylor scores and finetunes: evaluator_worker.py OUT KIND:STAGE...; KIND: trainer or engine.

Writes what it saw to OUT/<kind>:<stage>-<rank>-<world>.pt: losses, masks, weights.
"""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

import modelpress as mp
from modelpress_runner.runtime import distributed as ranks

warnings.simplefilter("error")
BATCH, SIZE = 8, 32


class Net(nn.Module):
    """Images (batch, 1, 5, 5), labels or none -> logits (batch, 2), with the loss where there are labels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.fc = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 6, 3), nn.Linear(6, 2)

    def forward(self, x, labels=None):
        logits = self.fc(self.conv2(F.relu(self.conv1(x))).mean((2, 3)))
        return {"logits": logits} if labels is None else {"loss": F.cross_entropy(logits, labels), "logits": logits}


class Images(torch.utils.data.Dataset):
    def __init__(self) -> None:
        self.x = torch.randn(SIZE, 1, 5, 5, generator=torch.Generator().manual_seed(1))
        self.labels = (self.x.mean((1, 2, 3)) > 0).long()

    def __len__(self) -> int:
        return SIZE

    def __getitem__(self, index):
        return {"x": self.x[index], "labels": self.labels[index]}


def zero(stage: int) -> dict:
    return {"zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0}, "gradient_clipping": 0.0}


def trainer(model: nn.Module, data: Images, stage: int, out: Path) -> mp.TransformersEvaluator:
    """A Trainer; stage -1 is without DeepSpeed."""
    from transformers import Trainer, TrainingArguments

    auto = {"train_micro_batch_size_per_gpu": "auto", "zero_allow_untested_optimizer": True}
    arguments = TrainingArguments(
        output_dir=str(out / "trainer"),
        per_device_train_batch_size=BATCH // ranks.world_size(),
        learning_rate=0.01,
        max_grad_norm=0.0,
        train_sampling_strategy="sequential",
        save_strategy="no",
        use_cpu=True,
        dataloader_pin_memory=False,
        ddp_find_unused_parameters=False,
        deepspeed=None if stage < 0 else {**zero(stage), **auto, "zero_force_ds_cpu_optimizer": False},
    )
    return mp.TransformersEvaluator(mp.trace(Trainer)(model, arguments, train_dataset=data))


def engine(model: nn.Module, data: Images, stage: int, out: Path) -> mp.DeepspeedTorchEvaluator:
    """A loop over an engine that takes this rank's share of each batch."""

    def training_step(batch, engine):
        x, labels = batch
        return engine(x, labels)["loss"]

    def training_func(engine, optimizer, training_step, lr_scheduler, max_steps, max_epochs):
        steps = 0
        for _ in range(max_epochs or 10**6):
            for index in torch.arange(SIZE).split(BATCH):
                if max_steps is not None and steps >= max_steps:
                    return
                share = index[ranks.rank() :: ranks.world_size()]
                engine.backward(training_step((data.x[share], data.labels[share]), engine))
                engine.step()
                steps += 1

    config = {"train_batch_size": BATCH, **zero(stage)}
    optimizer = mp.trace(torch.optim.AdamW)(model.parameters(), lr=0.01)
    return mp.DeepspeedTorchEvaluator(training_func, training_step, config, optimizer)


def run(kind: str, stage: int, out: Path) -> dict:
    """Losses, masks and weights of one evaluator's run."""
    torch.manual_seed(0)
    model, data = Net(), Images()
    evaluator = {"trainer": trainer, "engine": engine}[kind](model, data, stage, out)
    losses: list[float] = []
    bind = evaluator.bind

    def noting(bound: nn.Module) -> None:
        bind(bound)
        evaluator.patch_loss(lambda loss, batch: (losses.append(float(ranks.all_reduce_mean(loss.detach()))), loss)[1])

    evaluator.bind = noting
    prune = {"algorithm": "taylor", "config_list": [{"op_types": ["Conv2d"], "sparsity": 0.5}], "scores": {"steps": 3}}
    stages = [{"prune": {**prune, "speedup": False}}, {"finetune": {"epochs": 2}}]
    result = mp.compress(model, stages, evaluator, {"x": data.x[:1]}, seed=0)
    return {"losses": losses, "masks": result.masks, "weights": result.model.state_dict()}


if __name__ == "__main__":
    together = "WORLD_SIZE" in os.environ
    if together:
        ranks.init_process_group()
    for case in sys.argv[2:]:
        kind, _, stage = case.partition(":")
        seen = run(kind, int(stage), Path(sys.argv[1]))
        torch.save(seen, Path(sys.argv[1], f"{case}-{ranks.rank()}-{ranks.world_size()}.pt"))
    if together:
        ranks.destroy_process_group()
