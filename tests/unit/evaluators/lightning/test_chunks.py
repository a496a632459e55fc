"""Training in chunks is what one fit by Lightning itself is: weights, counters, schedules and hooks."""

from __future__ import annotations

import io
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning_task import Clouds, Net, evaluator, net
from torch.utils.data import DataLoader

import modelpress as mp
from modelpress_runner.evaluators.lightning.package import Package, quiet
from modelpress_runner.runtime import rng


@pytest.fixture(autouse=True)
def _seeded() -> Any:
    with rng.fork_rng(0):
        yield


def one_fit(model: pl.LightningModule, data: pl.LightningDataModule | None = None, **arguments: Any) -> pl.Trainer:
    """What Lightning does without us."""
    arguments = {"accelerator": "cpu", "logger": False, "num_sanity_val_steps": 0, **arguments}
    for name in ("enable_checkpointing", "enable_progress_bar", "enable_model_summary"):
        arguments.setdefault(name, False)
    with quiet(Package("lightning.pytorch")), rng.fork_rng(7):
        trainer = pl.Trainer(**arguments)
        trainer.fit(model, datamodule=data or Clouds())
    return trainer


def in_chunks(
    model: pl.LightningModule,
    chunks: list[int],
    unit: str = "epochs",
    data: Any = None,
    resume_at: int | None = None,
    **arguments: Any,
) -> mp.LightningEvaluator:
    """The same, cut into chunks; from `resume_at` on by another evaluator that has loaded the first one's state."""

    def begin() -> mp.LightningEvaluator:
        made = evaluator(data=data() if data else None, **arguments)
        made.record_parameter_names(model)
        made.on_training_begin(*((None, sum(chunks)) if unit == "epochs" else (sum(chunks), None)))
        made.bind(model)
        return made

    with rng.fork_rng(7):
        ours = begin()
        for number, size in enumerate(chunks):
            if number == resume_at:
                buffer = io.BytesIO()
                torch.save({"state": ours.state_dict(), "generators": rng.capture()}, buffer)
                ours.unbind()
                rng.seed_all(99)
                ours = begin()
                saved = torch.load(io.BytesIO(buffer.getvalue()), weights_only=True)
                ours.load_state_dict(saved["state"])
                rng.restore(saved["generators"])
            ours.train(max_epochs=size) if unit == "epochs" else ours.train(max_steps=size)
            for parameter in model.parameters():
                parameter.grad = None
    return ours


def same(one: pl.LightningModule, two: pl.LightningModule) -> bool:
    mine, other = one.state_dict(), two.state_dict()
    return all(torch.equal(mine[name], other[name]) for name in mine)


class Scheduled(Net):
    """A schedule of the whole length, per step; the rates that it gave are noted."""

    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        total = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=total)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.seen.append((self.trainer.max_epochs, self.optimizers().param_groups[0]["lr"]))
        return self.loss(batch)


@pytest.mark.parametrize("resume_at", [None, 1])
@pytest.mark.parametrize("kind", [Net, Scheduled])
def test_epochs_in_chunks_are_one_fit(kind, resume_at):
    """Three chunks of an epoch give the weights, counters, rates and batches of Trainer(max_epochs=3), bit for bit."""
    alone, cut = net(kind), net(kind)
    one_fit(alone, max_epochs=3)
    in_chunks(cut, [1, 1, 1], resume_at=resume_at)
    assert cut.seen == alone.seen
    assert same(alone, cut)


@pytest.mark.parametrize("resume_at", [None, 1, 2])
@pytest.mark.parametrize("arguments", [{}, {"accumulate_grad_batches": 2}], ids=["plain", "accumulated"])
def test_steps_in_chunks_are_one_fit(arguments, resume_at):
    """Chunks of 4 steps in epochs of 6 batches go on within the epoch: Trainer(max_steps=12), bit for bit."""
    alone, cut = net(), net()
    one_fit(alone, max_steps=12, max_epochs=-1, **arguments)
    in_chunks(cut, [4, 4, 4], "steps", resume_at=resume_at, **arguments)
    assert cut.seen == alone.seen
    assert same(alone, cut)


def test_the_trainer_shows_the_length_of_the_whole():
    """max_epochs, as the user's code sees it in every chunk, is the stage's."""
    cut = net(Scheduled)
    in_chunks(cut, [1, 1, 1])
    assert {epochs for epochs, _ in cut.seen} == {3}


def test_a_loader_of_its_own_generator_goes_on_shuffling():
    """DataLoader(generator=g), with g made in the data module, shuffles the second epoch in another order than the
    first, as in one fit, and after a restart as well."""

    class Own(Clouds):
        def train_dataloader(self) -> Any:
            return DataLoader(self.train, 8, shuffle=True, generator=torch.Generator().manual_seed(3))

    class Watching(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.seen.append(float(batch[0].sum()))
            return self.loss(batch)

    alone, cut, resumed = (net(Watching) for _ in range(3))
    one_fit(alone, Own(), max_epochs=3)
    in_chunks(cut, [1, 1, 1], data=lambda: mp.trace(Own)())
    in_chunks(resumed, [1, 1, 1], data=lambda: mp.trace(Own)(), resume_at=2)
    assert alone.seen[:6] != alone.seen[6:12]
    assert cut.seen == alone.seen == resumed.seen
    assert same(alone, cut)
    assert same(alone, resumed)


def test_a_random_split_in_setup_is_the_same_every_time():
    """What trains in one chunk is never tested in another, whatever the global generators are at."""
    members: list[set[float]] = []

    class Split(Clouds):
        def setup(self, stage: str) -> None:
            super().setup(stage)
            self.train, _ = torch.utils.data.random_split(self.train, [24, 24])
            members.append({float(x[0]) for x, _ in self.train})

    model = net()
    ours = evaluator(data=lambda: Split())
    for seed in (1, 2):
        with rng.fork_rng(seed):
            ours.bind(model)
            ours.train(max_epochs=1)
            ours.train(max_epochs=1)
            ours.evaluate()
            ours.unbind()
    assert len(members) == 4  # per binding once for training and once for testing
    assert all(each == members[0] for each in members)


def test_the_data_module_is_set_up_once_per_binding():
    """prepare_data and setup do not run again in each chunk, and teardown runs on unbinding."""
    made: list[Clouds] = []

    def make() -> Clouds:
        made.append(Clouds())
        return made[-1]

    model = net()
    ours = evaluator(data=make)
    ours.bind(model)
    ours.train(max_epochs=1)
    ours.evaluate()
    ours.train(max_epochs=1)
    assert [data.set_up for data in made] == [["fit", "test"]]
    assert [data.torn_down for data in made] == [[]]
    ours.unbind()
    assert [data.torn_down for data in made] == [["fit", "test"]]
    ours.bind(model)
    ours.unbind()
    assert len(made) == 2


def test_loaders_are_made_again_as_often_as_the_trainer_says():
    """reload_dataloaders_every_n_epochs=2 counts over the chunks."""

    class Counting(Clouds):
        epochs: list[int] = []  # noqa: RUF012

        def train_dataloader(self) -> Any:
            self.epochs.append(self.trainer.current_epoch)
            return super().train_dataloader()

    in_chunks(net(), [1] * 5, data=lambda: mp.trace(Counting)(), reload_dataloaders_every_n_epochs=2)
    assert Counting.epochs == [0, 2, 4]


def test_a_plateau_schedule_follows_the_validation():
    """ReduceLROnPlateau with a monitor reduces as it does in one fit."""

    class Plateau(Net):
        def configure_optimizers(self) -> Any:
            optimizer = super().configure_optimizers()
            schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.1, patience=0, threshold=10.0)
            return {"optimizer": optimizer, "lr_scheduler": schedule, "monitor": "val_loss"}

    alone, cut = net(Plateau), net(Plateau)
    trainer = one_fit(alone, max_epochs=4)
    ours = in_chunks(cut, [1, 1, 1, 1], resume_at=2)
    [mine] = ours.optimizers()
    assert mine.param_groups[0]["lr"] == trainer.optimizers[0].param_groups[0]["lr"] < 0.05 / 100
    assert same(alone, cut)


def test_early_stopping_counts_over_the_chunks():
    """Patience of one epoch: after the second nothing more is trained, neither here nor in the restarted run."""
    for resume_at in (None, 2, 3):
        cut, kept = net(), pl.callbacks.EarlyStopping("val_loss", patience=1, min_delta=100.0)
        in_chunks(cut, [1, 1, 1, 1, 1], resume_at=resume_at, callbacks=[kept])
        assert [epoch for epoch, batch, _ in cut.seen if batch == 0] == [0, 1]


def test_callbacks_and_module_hooks_run():
    """The user's own callback object hears of every epoch, with epochs that go on."""

    class Listening(pl.Callback):
        def __init__(self) -> None:
            self.heard: list[tuple[str, int]] = []

        def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
            self.heard.append(("start", trainer.current_epoch))

        def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
            self.heard.append(("end", module.current_epoch))

        def on_exception(self, trainer: Any, module: Any, exception: BaseException) -> None:
            self.heard.append(("exception", -1))

    mine = Listening()
    in_chunks(net(), [1, 1], callbacks=mine)
    assert mine.heard == [("start", 0), ("end", 0), ("start", 1), ("end", 1)]


class Stream(torch.utils.data.IterableDataset):
    """Rows in an order of the global generator; nobody knows how many."""

    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def __iter__(self) -> Any:
        return iter([self.rows[index] for index in torch.randperm(len(self.rows)).tolist()])


class Streaming(Clouds):
    def train_dataloader(self) -> Any:
        return DataLoader(Stream(self.train), 8)


class Several(Clouds):
    def train_dataloader(self) -> Any:
        return {"a": DataLoader(self.train, 8, shuffle=True), "b": DataLoader(self.train, 16, shuffle=True)}


class Persistent(Clouds):
    def train_dataloader(self) -> Any:
        return DataLoader(self.train, 8, shuffle=True, num_workers=1, persistent_workers=True)


class OfSeveral(Net):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.loss(batch["a"]) + self.loss(batch["b"])


@pytest.mark.parametrize(
    ("data", "kind", "exact"),
    [(Streaming, Net, True), (Several, OfSeveral, True), (Persistent, Net, False)],
    ids=["of no length", "several", "persistent workers"],
)
def test_chunks_within_an_epoch_for_other_loaders(data, kind, exact):
    """4 of 6 batches at a time, the last chunk in another process: one fit; persistent workers are begun anew with each
    epoch, which draws other random numbers than one fit, but the same ones in a run that was interrupted."""
    alone, cut, resumed = net(kind), net(kind), net(kind)
    if exact:
        one_fit(alone, data(), max_steps=12, max_epochs=-1)
    in_chunks(cut, [4, 4, 4], "steps", data=lambda: lambda: data())
    in_chunks(resumed, [4, 4, 4], "steps", data=lambda: lambda: data(), resume_at=2)
    assert same(cut, resumed)
    assert same(alone, cut) or not exact
