"""Trainings as users write them, in plain scripts: nothing in here knows of modelpress.

Each has dropout, a shuffled loader, accumulated gradients and a rate that changes, and notes what it trained on: for
each micro batch the numbers of its samples and the learning rate. `plain` is the user's own script.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

ROWS, BATCH, PARTS = 48, 8, 2  # samples, those of a micro batch, micro batches to a step: three steps an epoch


def first(make: Callable[[], Any]) -> Any:
    """What `make` gives, each time with the same random numbers."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make()


def layers() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 2))


class Script:
    """A model, data, and what was trained on.

    Args:
        net: makes the network; each time the same one.
        data: x, y and the samples' numbers.
        batch: samples of a micro batch.
    """

    def __init__(
        self, net: Callable[[], nn.Module] = layers, data: TensorDataset | None = None, batch: int = BATCH
    ) -> None:
        self.model = self.made_of(first(net))
        x = torch.randn(ROWS, 4, generator=torch.Generator().manual_seed(0))
        self.data = data or TensorDataset(x, (x[:, 0] > 0).long(), torch.arange(ROWS))
        self.batch = batch
        self.trace: list[tuple[list[int], float]] = []

    def made_of(self, net: nn.Module) -> nn.Module:
        """The model around a network."""
        return net

    def loader(self) -> DataLoader[Any]:
        return DataLoader(self.data, self.batch, shuffle=True)

    def saw(self, samples: torch.Tensor, optimizer: Any) -> None:
        self.trace.append((samples.tolist(), optimizer.param_groups[0]["lr"]))

    def accuracy(self, model: nn.Module) -> torch.Tensor:
        x, y = self.data.tensors[:2]
        return (model(x).argmax(1) == y).float().mean()

    def plain(self, steps: int | None, epochs: int | None) -> None:
        """The user's script: trains `model`, for so many optimizer steps or epochs."""
        raise NotImplementedError


class LoopScript(Script):
    """A loop of PyTorch's."""

    def training_step(self, batch: Any, model: nn.Module) -> torch.Tensor:
        self.saw(batch[2], self.optimizer)
        return F.cross_entropy(model(batch[0]), batch[1]) / PARTS

    def training_func(
        self, model: Any, optimizer: Any, training_step: Any, scheduler: Any, max_steps: Any, max_epochs: Any
    ) -> None:
        self.optimizer = optimizer
        loader, steps = self.loader(), 0
        for _ in range(max_epochs or 10**6):
            for number, batch in enumerate(loader, 1):
                training_step(batch, model).backward()
                if number % PARTS == 0:
                    optimizer.step()
                    optimizer.zero_grad()
                    steps += 1
                    if steps == max_steps:
                        return
            scheduler.step()

    def made(self, model: nn.Module, trace: Callable[[Any], Any] = lambda kind: kind) -> tuple[Any, Any]:
        """Optimizer and scheduler."""
        optimizer = trace(torch.optim.SGD)(model.parameters(), lr=0.1, momentum=0.9)
        return optimizer, trace(torch.optim.lr_scheduler.ExponentialLR)(optimizer, gamma=0.9)

    def plain(self, steps: int | None, epochs: int | None) -> None:
        self.model.train()
        optimizer, scheduler = self.made(self.model)
        self.training_func(self.model, optimizer, self.training_step, scheduler, steps, epochs)


class EpochScript(Script):
    """A function that trains one epoch, and a rate that it sets itself."""

    def factory(self, params: Any) -> torch.optim.Optimizer:
        return torch.optim.Adam(params, lr=0.05)

    def trainer(self, model: nn.Module, optimizer: Any, criterion: Any, epoch: int) -> None:
        for group in optimizer.param_groups:
            group["lr"] = 0.05 * 0.9**epoch
        for number, (x, y, samples) in enumerate(self.loader(), 1):
            self.saw(samples, optimizer)
            (criterion(model(x), y) / PARTS).backward()
            if number % PARTS == 0:
                optimizer.step()
                optimizer.zero_grad()

    def plain(self, steps: int | None, epochs: int | None) -> None:
        self.model.train()
        optimizer = self.factory(self.model.parameters())
        for epoch in range(epochs or 0):
            self.trainer(self.model, optimizer, F.cross_entropy, epoch)


class OwnLoopScript(LoopScript):
    """A loop of the user's own that prunes with callbacks: single weights of the first layer, by magnitude."""

    def train(self, callbacks: Any, epochs: Iterable[int], optimizer: Any, scheduler: Any) -> None:
        """Trains; the scheduler moves behind each epoch."""
        loader = self.loader()
        self.model.train()
        callbacks.on_train_begin()
        for _ in epochs:
            for number, (x, y, samples) in enumerate(loader, 1):
                callbacks.on_step_begin(number)
                self.saw(samples, optimizer)
                (F.cross_entropy(self.model(x), y) / PARTS).backward()
                if number % PARTS == 0:
                    callbacks.on_before_optimizer_step()
                    optimizer.step()
                    callbacks.on_after_optimizer_step()
                    optimizer.zero_grad()
            scheduler.step()
        callbacks.on_train_end()

    def plain(self, steps: int | None, epochs: int | None) -> None:
        self.train(ByHand(self.model), range(epochs or 0), *self.made(self.model))


class ByHand:
    """What callbacks do, written by hand: the smaller half of the first layer's weights goes, and stays away."""

    def __init__(self, model: Any) -> None:
        self.weight = model[0].weight

    def on_train_begin(self) -> None:
        size = self.weight.detach().abs().flatten()
        self.kept = torch.ones_like(size, dtype=torch.bool)
        self.kept[size.argsort()[: len(size) // 2]] = False
        self.on_after_optimizer_step()

    def on_step_begin(self, batch: Any) -> None:
        """Nothing."""

    def on_before_optimizer_step(self) -> None:
        """Nothing."""

    def on_after_optimizer_step(self) -> None:
        self.weight.data.mul_(self.kept.view_as(self.weight))

    def on_train_end(self) -> None:
        """Nothing."""


class EngineScript(Script):
    """A loop over a DeepSpeed engine, in one process."""

    def __init__(self, stage: int, **options: Any) -> None:
        super().__init__(**options)
        self.config = {
            "train_micro_batch_size_per_gpu": self.batch,
            "gradient_accumulation_steps": PARTS,
            "gradient_clipping": 1.0,
            "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0},
        }

    def training_step(self, batch: Any, engine: Any) -> torch.Tensor:
        self.saw(batch[2], self.optimizer)
        return F.cross_entropy(engine(batch[0]), batch[1])

    def training_func(
        self, engine: Any, optimizer: Any, training_step: Any, scheduler: Any, max_steps: Any, max_epochs: Any
    ) -> None:
        self.optimizer = optimizer
        loader, begun = self.loader(), engine.global_steps
        for _ in range(max_epochs or 10**6):
            for batch in loader:
                engine.backward(training_step(batch, engine))
                engine.step()
                if engine.global_steps - begun == max_steps:
                    return
            scheduler.step()

    def factory(self, params: Any) -> torch.optim.Optimizer:
        return torch.optim.AdamW(params, lr=0.05)

    def schedule(self, optimizer: Any) -> Any:
        return torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.9)

    def plain(self, steps: int | None, epochs: int | None) -> None:
        import deepspeed

        self.model.train()
        with warnings.catch_warnings(), _alone():
            warnings.simplefilter("ignore", FutureWarning)
            params = list(self.model.parameters())
            optimizer = self.factory(params)
            config = {**self.config, "zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False}
            engine, *_ = deepspeed.initialize(
                model=self.model, optimizer=optimizer, model_parameters=params, config=config, dist_init_required=False
            )
            schedule = self.schedule(optimizer)
            self.begin()
            self.training_func(engine, engine.optimizer, self.training_step, schedule, steps, epochs)
            with deepspeed.zero.GatheredParameters(params):
                self.trained = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
            engine.destroy()

    def begin(self) -> None:
        """The training begins; for a test that seeds it there."""


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """A process group of this process, and torch's own functions afterwards."""
    from deepspeed import comm, ops

    ops.__compatible_ops__["deepspeed_shm_comm"] = False  # would be compiled
    os.environ["LOCAL_RANK"] = "0"
    linear = F.linear
    with tempfile.TemporaryDirectory() as folder:
        torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
        try:
            yield
        finally:
            comm.destroy_process_group()
            comm.comm.cdb = None
            F.linear = linear
            del os.environ["LOCAL_RANK"]
