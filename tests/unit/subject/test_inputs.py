"""Example inputs: states of recurrent layers, and those that the first call of a model gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import modelpress as mp
from modelpress.api.v1alpha1 import CompressionJobSpec
from modelpress_runner.engine.outcome import RecipeOutcome
from modelpress_runner.measure.counts import macs
from modelpress_runner.measure.measuring import Measuring
from modelpress_runner.subject.compression_module import subject_of
from modelpress_runner.subject.subject import Subject


class Stream(nn.Module):
    """Takes the state of an LSTM as inputs: (layers, batch, hidden)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 6)
        self.rnn, self.head = nn.LSTM(6, 5, batch_first=True), nn.Linear(5, 2)

    def forward(self, x: torch.Tensor, hidden: torch.Tensor, cell: torch.Tensor) -> Any:
        x, (hidden, cell) = self.rnn(self.second(torch.relu(self.first(x))), (hidden, cell))
        return self.head(x), hidden, cell


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_a_state_has_its_batch_in_dimension_1(rows: int, tmp_path: Path) -> None:
    """As many MACs whatever the rows are; the program's reason names the input."""
    inputs = (torch.rand(rows, 7, 4), torch.zeros(1, rows, 5), torch.zeros(1, rows, 5))
    # 7 steps: 4*6 and 6*6 of the first two, (6 + 5) * 4*5 of the LSTM, 5*2 of the head.
    assert macs(Stream(), inputs) == 7 * (24 + 36 + 220 + 10)
    entry = {"op_names": ["first"], "sparsity": 0.5}
    bench = {"warmup": 0, "iterations": 1, "batch_size": 2}
    result = mp.compress(Stream(), [{"prune": {"config_list": [entry]}}], None, inputs, benchmark=bench)
    [measured] = Path(result.save(tmp_path / "a")).rglob("metrics.json")
    reason = "the batch of the input 'hidden' is dimension 1; a program's batch is dimension 0"
    assert json.loads(measured.read_text())["portableReason"] == reason


def _net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2))


BATCHES = [torch.rand(8, 4) for _ in range(3)]


def _training(model, optimizer, training_step, lr_scheduler, max_steps, max_epochs):
    done = 0
    for _ in range(max_epochs or max_steps):
        for batch in BATCHES:
            optimizer.zero_grad()
            training_step(batch, model).backward()
            optimizer.step()
            done += 1
            if done == max_steps:
                return
        lr_scheduler.step()


def test_four_arguments_are_enough() -> None:
    """Without dummy_input and evaluating_func: the first call that training makes shows what the model takes."""
    model = _net()
    optimizer = mp.trace(torch.optim.Adam)(model.parameters(), lr=0.001)
    scheduler = mp.trace(torch.optim.lr_scheduler.LambdaLR)(optimizer, lr_lambda=lambda epoch: 1 / (epoch + 1))
    evaluator = mp.TorchEvaluator(_training, optimizer, lambda batch, model: model(batch).square().mean(), scheduler)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    subject = Subject(model, evaluator)
    state = torch.get_rng_state()
    subject.find_inputs()
    assert torch.equal(subject.dummy_input, BATCHES[0][:2])
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    entry = {"op_names": ["0"], "sparsity": 0.5}
    result = mp.compress(model, [{"prune": {"config_list": [entry]}}, {"finetune": {"epochs": 1}}], evaluator)
    assert result.model[0].out_features == 3
    assert "macs" in result.metrics["compressed"]


def test_a_module_of_two_methods_is_enough() -> None:
    """Scoring shows what the model takes."""

    class Module(mp.CompressionModule):
        @classmethod
        def model(cls):
            return _net()

        @classmethod
        def evaluator(cls):
            return lambda model: float(model(BATCHES[1]).mean())

    subject = subject_of(Module)
    subject.find_inputs()
    assert torch.equal(subject.dummy_input, BATCHES[1][:2])


def test_forms_of_calls() -> None:
    """Keywords, positions and both together."""

    class Two(nn.Module):
        def forward(self, x: torch.Tensor, scale: torch.Tensor | None = None, *, shift: float = 0.0) -> torch.Tensor:
            return x * (1.0 if scale is None else scale) + shift

    a, b = torch.rand(1, 3), torch.rand(1, 3)
    for call, wanted in (
        (lambda model: model(a), a),
        (lambda model: model(a, b), (a, b)),
        (lambda model: model(x=a, scale=b), {"x": a, "scale": b}),
        (lambda model: model(a, scale=b), {"x": a, "scale": b}),
    ):
        subject = Subject(Two(), lambda model, call=call: float(call(model).sum()))
        subject.find_inputs()
        torch.testing.assert_close(subject.dummy_input, wanted, rtol=0, atol=0)


def test_what_no_call_shows_is_not_asked_for(tmp_path: Path) -> None:
    """Single weights without example inputs: scored and counted, no MACs; a job, too, where latency is a default."""
    stage = {"prune": {"algorithm": "level", "speedup": False, "config_list": [{"sparsity": 0.5}]}}
    result = mp.compress(_net(), [stage], lambda model: float(model[0].weight.sum()))
    assert "macs" not in result.metrics["compressed"]
    assert result.notes == []
    spec = CompressionJobSpec.model_validate(
        {"model": {"entrypoint": "a:b"}, "stages": [stage]}, context={"spelling": "python"}
    )
    measuring = Measuring(spec, Subject(_net()), timed=True)
    outcome = RecipeOutcome(_net(), {}, [], [], [], 0, 0)
    measured = measuring.compressed(outcome, _net(), measuring.dense(_net()), tmp_path)
    assert "latencyMs" not in measured.compressed
    [note] = outcome.notes
    assert note.startswith("Latency was not measured, as there is no example input; give")
