"""What may be given, under both names of Lightning, and what is said of the rest."""

from __future__ import annotations

import logging
import subprocess
import sys
from typing import Any

import lightning.pytorch as pl
import pytest
import pytorch_lightning as other
import torch
import torch.nn.functional as F
from lightning_task import Clouds, Net, evaluator, net
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import modelpress as mp
from modelpress_runner.errors import InvalidModelError
from modelpress_runner.evaluators.trace import call_of
from modelpress_runner.runtime import rng


@pytest.fixture(autouse=True)
def _seeded() -> Any:
    with rng.fork_rng(0):
        yield


def _trainer(**arguments: Any) -> Any:
    return mp.trace(pl.Trainer)(**{"accelerator": "cpu", "logger": False, **arguments})


def test_traced_classes_are_still_classes():
    """Instances, subclasses, class attributes, a decorated class; each made object has its call."""
    traced = mp.trace(Net)

    class Deeper(traced):
        def __init__(self) -> None:
            super().__init__(lr=0.5)

    assert Deeper.__mro__[1] is Net
    assert issubclass(Deeper, traced)
    assert not issubclass(Clouds, traced)
    assert isinstance(Deeper(), traced)
    assert call_of(Deeper()) is None
    model = traced(lr=0.25)
    assert (type(model), call_of(model).kwargs) == (Net, {"lr": 0.25})
    assert mp.trace(pl.Trainer).fit is pl.Trainer.fit

    @mp.trace
    class Decorated(pl.LightningDataModule):
        def __init__(self, size: int) -> None:
            super().__init__()
            self.save_hyperparameters()

    data = Decorated(3)
    assert data.hparams["size"] == 3
    assert call_of(data).args == (3,)


def test_a_traced_model_is_trained():
    """The LightningModule may come from a traced class, too."""
    model = mp.trace(Net)()
    before = model.fc1.weight.detach().clone()
    ours = mp.LightningEvaluator(_trainer(), mp.trace(Clouds)())
    ours.bind(model)
    ours.train(max_epochs=1)
    ours.unbind()
    assert not torch.equal(model.fc1.weight, before)


@pytest.mark.filterwarnings("ignore:Starting from v1.9.0, `tensorboardX`")  # the Trainer's own default logger
@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda: pl.Trainer(accelerator="cpu"), r"the Trainer was not traced.*mp.trace\(Trainer\)"),
        (lambda: pl.Trainer, r"trainer is the class Trainer; give mp.trace\(Trainer\)\(...\)"),
        (lambda: mp.trace(pl.Trainer), r"trainer is mp.trace\(Trainer\), not called"),
        (lambda: net(), "trainer is a Net;"),
        (lambda: None, "trainer is a NoneType"),
        (lambda: mp.trace(Clouds)(), "trainer is a Clouds"),
        (lambda: _trainer(fast_dev_run=True), "fast_dev_run"),
        (lambda: _trainer(devices=2), r"devices=2.*spec.runner.processesPerNode: 2"),
        (lambda: _trainer(strategy="ddp", num_nodes=2), r"num_nodes=2.*spec.runner.nodes: 2"),
        (lambda: _trainer(callbacks=[pl.callbacks.StochasticWeightAveraging(1e-2)]), "resumable=False"),
        (lambda: _trainer(callbacks=pl.callbacks.LearningRateFinder()), "LearningRateFinder fits the model itself"),
        (lambda: _trainer(logger=None, callbacks=[pl.callbacks.LearningRateMonitor()]), "needs a logger"),
    ],
)
def test_other_trainers_are_refused(given, message):
    """One sentence that says what was expected."""
    with pytest.raises(InvalidModelError, match=message):
        mp.LightningEvaluator(given(), mp.trace(Clouds)())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda: Clouds(), r"the Clouds was not traced.*mp.trace\(Clouds\)"),
        (lambda: Clouds, "data is the class Clouds"),
        (lambda: mp.trace(Clouds), r"data is mp.trace\(Clouds\), not called"),
        (lambda: DataLoader([1]), r"data is a DataLoader; give mp.trace\(MyDataModule\)\(...\)"),
        (lambda: mp.trace(DataLoader)([1]), "data is a DataLoader"),
        (lambda: None, "data is a NoneType"),
    ],
)
def test_other_data_are_refused(given, message):
    """A DataLoader is no data module: one sentence that says what was expected."""
    with pytest.raises(InvalidModelError, match=message):
        mp.LightningEvaluator(_trainer(), given())


@pytest.mark.parametrize(
    ("trainer", "data", "model", "message"),
    [
        (lambda: 3, Clouds, net, "the trainer is a int while the model is a LightningModule"),
        (lambda: pl.Trainer, Clouds, net, "the trainer is the class Trainer"),
        (_trainer, lambda: DataLoader([1]), net, "data is a DataLoader while the model is a LightningModule"),
        (_trainer, Clouds, lambda: nn.Linear(4, 2), "the model is a Linear; .* must be a LightningModule"),
        (lambda: other.Trainer(logger=False), Clouds, net, "make both with lightning.pytorch"),
    ],
    ids=["number", "class", "loader", "module", "mixed"],
)
def test_functions_that_make_something_else_are_found_out(trainer, data, model, message):
    """When it is first used."""
    ours = mp.LightningEvaluator(lambda: trainer(), lambda: data())
    with pytest.raises(InvalidModelError, match=message):
        ours.bind(model())


def test_a_function_must_make_a_new_trainer():
    """One that hands out the same Trainer each time would train without the recipe's limits."""
    trainer = pl.Trainer(accelerator="cpu", logger=False)
    ours = mp.LightningEvaluator(lambda: trainer, lambda: Clouds())
    with pytest.raises(InvalidModelError, match="returned a Trainer that was there before"):
        ours.bind(net())


def test_a_strategy_for_one_device_is_kept():
    """An object is copied for each Trainer; one for many processes gives way where there is one."""
    single = pl.strategies.SingleDeviceStrategy(device="cpu")
    seen = []

    class Noting(pl.Callback):
        def on_train_start(self, trainer: Any, module: Any) -> None:
            seen.append(trainer.strategy)

    for strategy in (single, pl.strategies.DDPStrategy(), "ddp"):
        ours = evaluator(strategy=strategy, callbacks=Noting(), accelerator="auto")
        ours.bind(net())
        ours.train(max_steps=1)
        ours.unbind()
    assert [type(each).__name__ for each in seen] == ["SingleDeviceStrategy"] * 3
    assert single not in seen
    assert single.model is None


def test_sharding_strategies_are_refused():
    """Parameters that are spread over processes cannot be pruned through Lightning."""
    ours = mp.LightningEvaluator(lambda: pl.Trainer(strategy="fsdp", accelerator="cpu"), lambda: Clouds())
    with pytest.raises(InvalidModelError, match="strategy 'fsdp' spreads parameters"):
        ours.bind(net())


class OtherClouds(other.LightningDataModule):
    def train_dataloader(self) -> Any:
        x = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))
        return DataLoader(TensorDataset(x, (x[:, 0] > 0).long()), 8)

    test_dataloader = train_dataloader


class OtherNet(other.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return F.cross_entropy(self(batch[0]), batch[1])

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("default", (self(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.05)


def test_pytorch_lightning_works_alike():
    """The older name is a package of its own; mixing the two is refused."""
    trainer = mp.trace(other.Trainer)(accelerator="cpu", logger=False)
    ours, model = mp.LightningEvaluator(trainer, mp.trace(OtherClouds)()), OtherNet()
    before = ours.evaluate(model)["default"]
    ours.bind(model)
    ours.train(max_epochs=2)
    ours.train(max_steps=3)
    after = ours.evaluate()["default"]
    ours.unbind()
    assert after > before
    with pytest.raises(InvalidModelError, match=r"Trainer is of pytorch_lightning .* lightning.pytorch"):
        ours.bind(net())


@pytest.mark.filterwarnings("ignore:Starting from v1.9.0, `tensorboardX`")
@pytest.mark.parametrize("form", ["traced", "function"])
def test_no_files_and_no_words(tmp_path, monkeypatch, capfd, form):
    """A Trainer with its defaults leaves no logs, checkpoints or bars here, and its loggers are as loud as before."""
    monkeypatch.chdir(tmp_path)
    trainer = mp.trace(pl.Trainer)() if form == "traced" else (lambda: pl.Trainer())
    capfd.readouterr()
    level = logging.getLogger("lightning.pytorch").level
    original = pl.Trainer.__init__
    ours, model = mp.LightningEvaluator(trainer, mp.trace(Clouds)()), net()
    ours.bind(model)
    ours.train(max_epochs=1)
    ours.evaluate()
    ours.unbind()
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")
    assert logging.getLogger("lightning.pytorch").level == level
    assert pl.Trainer.__init__ is original


def test_loggers_and_checkpoints_that_are_asked_for_are_written(tmp_path):
    """An explicit logger sees the steps of all chunks, and a ModelCheckpoint saves."""

    class Logging(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = super().training_step(batch, batch_idx)
            self.log("loss", loss)
            return loss

    logger = pl.loggers.CSVLogger(tmp_path, name="", version="")
    saving = pl.callbacks.ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    ours = evaluator(logger=logger, callbacks=[saving], log_every_n_steps=1)
    ours.bind(net(Logging))
    ours.train(max_epochs=1)
    ours.evaluate()
    ours.train(max_epochs=1)
    ours.unbind()
    rows = [line.split(",") for line in (tmp_path / "metrics.csv").read_text().splitlines()]
    step, loss = rows[0].index("step"), rows[0].index("loss")
    assert [int(row[step]) for row in rows[1:] if row[loss]] == list(range(12))
    assert sorted(path.name for path in tmp_path.glob("*.ckpt")) == ["epoch=0.ckpt", "epoch=1.ckpt"]


def test_a_whole_fit_may_have_callbacks_that_need_it():
    """resumable=False: one call trains all epochs, and the averaged weights are those of the fit."""
    averaging = pl.callbacks.StochasticWeightAveraging(1e-2, swa_epoch_start=1)
    ours, model = evaluator(resumable=False, callbacks=[averaging]), net()
    assert not ours.resumable
    ours.on_training_begin(None, 3)
    ours.bind(model)
    ours.train(max_epochs=3)
    ours.unbind()
    assert [epoch for epoch, batch, _ in model.seen if batch == 0] == [0, 1, 2]


def test_importing_the_evaluator_does_not_import_lightning():
    """Lightning takes seconds; whoever uses it has imported it."""
    code = "import sys, modelpress as mp; mp.LightningEvaluator; print([n for n in sys.modules if 'lightning' in n])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    names = eval(out)
    assert all(name.startswith("modelpress_runner.") for name in names)
    assert names
