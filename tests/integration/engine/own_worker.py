"""One rank that trains with parameters of its own beside the model: own_worker.py OUT [PLACE...].

With every kind of evaluator, first without a break; then, for each PLACE, killed on every rank before its optimizer
step of that number, and begun again. Writes weights and parameters to OUT/<kind>-<rank>-<world>.pt.
"""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import modelpress as mp
from modelpress.api import stages
from modelpress.store import open_store
from modelpress_runner.engine.checkpoint import Checkpointer
from modelpress_runner.engine.run import run_stages
from modelpress_runner.runtime import distributed as ranks
from modelpress_runner.runtime import rng
from modelpress_runner.subject.compression_module import CompressionModule, subject_of
from modelpress_runner.subject.subject import Subject
from modelpress_runner.testing.evaluators import AlongKind, AlongRules, along_stage

warnings.simplefilter("error")
X = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()


class Killed(BaseException):
    """The process is gone from one moment to the next."""


def network() -> nn.Sequential:
    """The same weights each time, on every rank."""
    with rng.fork_rng(1):
        return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))


def share(index: torch.Tensor) -> torch.Tensor:
    """This rank's rows of a batch."""
    return index[ranks.rank() :: ranks.world_size()]


def batches() -> Any:
    """Four batches in random order, the same on every rank."""
    yield from (share(index) for index in torch.randperm(32).split(8))


def plain(out: Path) -> Subject:
    """Functions of plain PyTorch."""

    def training_func(model, optimizer, training_step, lr_scheduler, max_steps, max_epochs):
        for _ in range(max_epochs):
            for index in batches():
                optimizer.zero_grad()
                training_step(index, model).backward()
                optimizer.step()

    def training_step(index, model):
        return F.cross_entropy(model(X[index]), Y[index])

    return Subject(network(), mp.TorchEvaluator(training_func, _adam, training_step))


def module(out: Path) -> Subject:
    """A CompressionModule."""

    class Module(CompressionModule):
        @classmethod
        def model(cls):
            return network()

        @classmethod
        def evaluator(cls):
            return lambda model: 0.0

        @classmethod
        def optimizer_factory(cls):
            return _adam

        @classmethod
        def criterion(cls):
            return F.cross_entropy

        @classmethod
        def post_compress_finetuning_trainer(cls, algorithm_name):
            def trainer(model, optimizer, criterion, epoch):
                for index in batches():
                    optimizer.zero_grad()
                    criterion(model(X[index]), Y[index]).backward()
                    optimizer.step()

            return trainer

    return subject_of(Module)


def engine(out: Path) -> Subject:
    """A DeepSpeed engine, nothing of it in parts."""
    model = network()

    def training_func(engine, optimizer, training_step, lr_scheduler, max_steps, max_epochs):
        for _ in range(max_epochs):
            for index in batches():
                engine.backward(training_step(index, engine))
                engine.step()

    def training_step(index, engine):
        return F.cross_entropy(engine(X[index]), Y[index])

    config = {"train_batch_size": 8, "gradient_clipping": 0.0}
    optimizer = mp.trace(torch.optim.Adam)(model.parameters(), lr=0.01)
    return Subject(model, mp.DeepspeedTorchEvaluator(training_func, training_step, config, optimizer))


def trainer(out: Path) -> Subject:
    """A Trainer of transformers."""
    from transformers import PretrainedConfig, PreTrainedModel, Trainer, TrainingArguments

    class Pretrained(PreTrainedModel):
        config_class = PretrainedConfig

        def __init__(self) -> None:
            super().__init__(PretrainedConfig())
            self.net = network()

        def forward(self, x, labels=None):
            logits = self.net(x)
            return {"logits": logits} if labels is None else {"loss": F.cross_entropy(logits, labels), "logits": logits}

    arguments = TrainingArguments(
        output_dir=str(out / "trainer"),
        per_device_train_batch_size=8 // ranks.world_size(),
        learning_rate=0.01,
        max_grad_norm=0.0,
        save_strategy="no",
        use_cpu=True,
        dataloader_pin_memory=False,
        ddp_find_unused_parameters=False,
        report_to=[],
    )
    model = Pretrained()
    rows = [{"x": x, "labels": y} for x, y in zip(X, Y, strict=True)]
    return Subject(model, mp.TransformersEvaluator(mp.trace(Trainer)(model, arguments, train_dataset=rows)))


def lightning(out: Path) -> Subject:
    """A LightningModule."""
    import lightning.pytorch as pl
    from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

    class Data(pl.LightningDataModule):
        def train_dataloader(self):
            data = TensorDataset(X, Y)
            sampler = DistributedSampler(data, shuffle=False) if ranks.is_distributed() else None
            return DataLoader(data, 8 // ranks.world_size(), sampler=sampler)

    class Net(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def training_step(self, batch, batch_idx):
            return F.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self):
            return _adam(self.parameters())

    options = {"devices": ranks.world_size()} if ranks.is_distributed() else {}
    return Subject(
        Net(), mp.LightningEvaluator(mp.trace(pl.Trainer)(accelerator="cpu", logger=False, **options), mp.trace(Data)())
    )


def _adam(params: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(params, lr=0.01)


# accelerate takes every Trainer of a process for one with DeepSpeed once there has been one: that comes last.
MAKERS = {"plain": plain, "module": module, "lightning": lightning, "trainer": trainer, "engine": engine}


def run(kind: str, out: Path, store: str, attempt: int, dies: int | None = None) -> dict[str, Any]:
    """Weights and parameters of three epochs; `dies` before so many steps."""
    subject = MAKERS[kind](out)
    steps = 0
    bind = subject.evaluator.bind

    def count() -> None:
        nonlocal steps
        steps += 1
        if steps == dies:
            raise Killed

    def bound(model: nn.Module) -> None:
        bind(model)
        subject.evaluator.before_optimizer_step(count)

    subject.evaluator.bind = bound
    AlongKind.made = []
    keeper = Checkpointer(open_store(store), "", "same", attempt, every=1)
    with rng.fork_rng(attempt):
        outcome = run_stages(subject, [along_stage(epochs=3)], seed=5, scores=False, checkpointer=keeper)
    weights = {name: value.detach().clone() for name, value in outcome.model.state_dict().items()}
    return {"weights": weights, "own": AlongKind.made[-1].own.detach().clone(), "notes": outcome.notes}


def main(out: Path, kind: str, places: list[int]) -> None:
    """What is written."""
    mine = f"{kind}-{ranks.world_size()}"
    seen: dict[str, Any] = {"whole": run(kind, out, str(out / f"{mine}-whole"), 1)}
    for place in places:
        store = str(out / f"{mine}-{place}")
        try:
            run(kind, out, store, 1, place)
        except Killed:
            seen[f"killed-{place}"] = run(kind, out, store, 2)
    torch.save(seen, out / f"{kind}-{ranks.rank()}-{ranks.world_size()}.pt")


if __name__ == "__main__":
    if "WORLD_SIZE" in os.environ:
        ranks.init_process_group()
    stages._KINDS[AlongRules.name] = AlongRules()
    for kind in MAKERS:
        main(Path(sys.argv[1]), kind, [int(place) for place in sys.argv[2:]])
    ranks.destroy_process_group()
