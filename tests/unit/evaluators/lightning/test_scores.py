"""test_step as the score: of the bound model, of another LightningModule, and of a program in its place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
import torchmetrics
from lightning_task import Clouds, Net, evaluator, net
from torch import nn
from torch.utils.data import DataLoader

import modelpress as mp
from modelpress_runner.errors import InvalidModelError
from modelpress_runner.export.pt2.program import export_program, open_program
from modelpress_runner.runtime import rng


def expected(model: Any) -> float:
    """The share of the 16 test points that a model gets right, by hand."""
    data = Clouds()
    data.setup("test")
    x, y = data.test.tensors
    training = model.training
    model.eval()
    with torch.no_grad():
        share = (model(x).argmax(1) == y).float().mean().item()
    model.train(training)
    return share


def test_numbers_are_what_test_step_logs(capsys):
    """The share of right answers, and the other number beside it; nothing is printed and no file is left."""
    model = net()
    score = evaluator().evaluate(model)
    assert score.keys() == {"default", "test_loss"}
    assert score["default"] == expected(model)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("logged", "message"),
    [
        ({"acc": 0.5, "f1": 0.5}, "Logging.test_step logged 'acc', 'f1' but no 'default'; log the score with self.log"),
        ({}, "Logging.test_step logged nothing but no 'default'"),
        ({"default": float("nan")}, "metric 'default', logged nan"),
        ({"default": 1.0, "sparsity": 0.5}, "modelpress measures itself"),
    ],
    ids=["no default", "nothing", "nan", "reserved"],
)
def test_what_is_no_score_is_said(logged, message):
    """One sentence that names what was logged and what to do."""

    class Logging(Net):
        def test_step(self, batch: Any, batch_idx: int) -> None:
            self.log_dict(logged)

    with pytest.raises(InvalidModelError, match=message):
        evaluator().evaluate(net(Logging))


def test_several_test_loaders_count_alike():
    """default is the mean of the loaders' values; each stays under its own name."""

    class Two(Clouds):
        def test_dataloader(self) -> Any:
            return [DataLoader(self.test, 16), DataLoader(torch.utils.data.Subset(self.test, range(4)), 4)]

    class Counting(Net):
        def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int) -> None:
            self.log("default", float(len(batch[0])))

    score = evaluator(data=lambda: Two()).evaluate(net(Counting))
    assert score == {"default": 10.0, "default/dataloader_idx_0": 16.0, "default/dataloader_idx_1": 4.0}


def test_a_model_without_test_step_cannot_be_scored():
    """It says so before, and the error says what to do."""

    class Untested(pl.LightningModule):
        training_step, configure_optimizers = Net.training_step, Net.configure_optimizers

    ours = evaluator()
    assert ours.can_evaluate
    ours.attach_model(Untested())
    assert ours.can_train
    assert not ours.can_evaluate
    with pytest.raises(InvalidModelError, match="Untested has no test_step; define it"):
        ours.evaluate(Untested())


def test_a_data_module_without_test_data_is_named():
    """Lightning's own words say what is missing."""

    class Untested(pl.LightningDataModule):
        def train_dataloader(self) -> Any:
            return []

    with pytest.raises(InvalidModelError, match=r"testing Net: Lightning says: .*test_dataloader"):
        evaluator(data=lambda: Untested()).evaluate(net())


class Wrapper(pl.LightningModule):
    """As many write it: the network is an attribute, and forward hands on to it."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
        self.criterion = nn.CrossEntropyLoss(weight=torch.ones(2))
        self.through = "self"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network(x)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        out = {"self": self, "network": self.network}[self.through](x)
        self.log("default", (out.argmax(1) == y).float().mean())
        self.log("test_loss", self.criterion(out, y))


def _program(model: nn.Module, folder: Path) -> nn.Module:
    export_program(model.eval(), torch.randn(1, 4), folder / "model.pt2")
    return open_program(folder / "model.pt2")


@pytest.mark.parametrize("through", ["self", "network"])
def test_a_program_is_scored_in_place_of_the_forward(tmp_path, through):
    """The program of one network is scored by the test_step of another: the score is the program's."""
    right, wrong = net(Wrapper), net(Wrapper)
    with torch.no_grad():
        wrong.network[2].weight.neg_()
        wrong.network[2].bias.neg_()
    wrong.through = through
    program = _program(right, tmp_path)
    ours = evaluator()
    ours.attach_model(wrong)
    before = {name: value.clone() for name, value in wrong.state_dict().items()}
    assert ours.evaluate(program)["default"] == pytest.approx(expected(right))
    assert ours.evaluate(wrong)["default"] == pytest.approx(1 - expected(right))
    assert not program.training
    assert vars(wrong).keys() == vars(net(Wrapper)).keys() | {"_hparams"}
    assert all(torch.equal(value, before[name]) for name, value in wrong.state_dict().items())


@pytest.mark.parametrize("case", ["part", "none"])
def test_a_score_that_is_not_the_programs_is_refused(tmp_path, case):
    """test_step that calls a part of the model, or no model at all, would score what it is not asked for."""

    class Parts(Net):
        def test_step(self, batch: Any, batch_idx: int) -> None:
            if case == "part":
                self.fc2(F.relu(self.fc1(batch[0])))
            self.log("default", 1.0)

    model = net(Parts)
    program = _program(model, tmp_path)
    ours = evaluator()
    ours.attach_model(model)
    message = "test_step uses self.fc1 itself" if case == "part" else r"Parts.test_step does not call self\(...\)"
    with pytest.raises(InvalidModelError, match=rf"{message}.*spec.target.format: eager"):
        ours.evaluate(program)
    assert ours.evaluate(model) == {"default": 1.0}


def test_a_program_needs_a_lightning_module_to_be_scored(tmp_path):
    """Without one there is no test_step."""
    with pytest.raises(InvalidModelError, match=r"the model is a Linear; .* it must be a LightningModule"):
        evaluator().evaluate(nn.Linear(4, 2))


@pytest.mark.parametrize(
    ("batch", "expected"),
    [
        (lambda x, y: [x, y], (1, 4)),
        (lambda x, y: x, (1, 4)),
        (lambda x, y: {"x": x, "label": y}, {"x": (1, 4)}),
    ],
    ids=["pair", "tensor", "dict"],
)
def test_the_example_input_comes_from_the_first_batch(batch, expected):
    """Its first part, or what forward names, one row; no random numbers are used up."""

    class Batches(Clouds):
        def train_dataloader(self) -> Any:
            return DataLoader(self.train, 8, shuffle=True, collate_fn=lambda rows: batch(*map(torch.stack, zip(*rows))))  # noqa: B905

    ours = evaluator(data=mp.trace(Batches)())
    assert ours.dummy_input is None
    mp.Subject(net(), ours)
    state = torch.get_rng_state()
    found = ours.dummy_input
    assert torch.equal(torch.get_rng_state(), state)
    shapes = {name: tuple(value.shape) for name, value in found.items()} if isinstance(found, dict) else found.shape
    assert shapes == expected
    assert ours.dummy_input is found


@pytest.mark.parametrize("batch", [{"pixels": torch.zeros(2, 4)}, ["text"]], ids=["dict", "text"])
def test_a_batch_that_does_not_tell_asks_for_a_dummy_input(batch):
    """One sentence says what there is, and to give one."""

    class Odd(pl.LightningDataModule):
        def train_dataloader(self) -> Any:
            return DataLoader([0], batch_size=1, collate_fn=lambda rows: batch)

    ours = evaluator(data=lambda: Odd())
    mp.Subject(net(), ours)
    with pytest.raises(InvalidModelError, match=r"the first training batch .* give LightningEvaluator a dummy_input"):
        _ = ours.dummy_input


def test_metrics_of_torchmetrics_are_computed_over_the_whole(tmp_path):
    """A metric that is a module of the model: its value over all batches, and its state is empty again."""

    class Measured(Net):
        def __init__(self) -> None:
            super().__init__()
            self.accuracy = torchmetrics.classification.MulticlassAccuracy(2, average="micro")

        def test_step(self, batch: Any, batch_idx: int) -> None:
            self.accuracy(self(batch[0]), batch[1])
            self.log("default", self.accuracy, on_epoch=True)

    class Small(Clouds):
        def test_dataloader(self) -> Any:
            return DataLoader(self.test, 5)

    model = net(Measured)
    ours = evaluator(data=lambda: Small())
    assert ours.evaluate(model)["default"] == pytest.approx(expected(model))
    assert ours.evaluate(_program(model, tmp_path))["default"] == pytest.approx(expected(model))
    assert not model.accuracy.update_called


def test_a_score_uses_up_no_numbers_of_the_users_generator():
    """One generator shuffles training and test data: a score between two epochs changes nothing in the second."""

    class Shuffled(Clouds):
        def test_dataloader(self) -> Any:
            return DataLoader(self.test, 4, shuffle=True, generator=self.generator)

    weights = []
    for scored in (False, True):
        model = net()
        ours = evaluator(data=mp.trace(Shuffled)(generator=torch.Generator().manual_seed(1)))
        with rng.fork_rng(0):
            ours.bind(model)
            ours.train(max_epochs=1)
            if scored:
                ours.evaluate()
            ours.train(max_epochs=1)
            ours.unbind()
        weights.append(model.fc1.weight.detach().clone())
    assert torch.equal(*weights)
