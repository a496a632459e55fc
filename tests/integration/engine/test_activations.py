"""A method that looks at activations gets them alike from every evaluator, an own loop and calibration data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from activations import (
    CALIBRATION,
    EVALUATION,
    SCORES,
    STAGE,
    TRAINING,
    Net,
    evaluating_func,
    layers,
    mean_magnitude,
    training_func,
    training_step,
)
from torch import nn
from two_ranks import two_ranks

import modelpress as mp
from modelpress.api.v1alpha1 import Prune
from modelpress_runner.errors import InvalidModelError, InvalidSpecError, UserCodeError
from modelpress_runner.methods.context import StageContext
from modelpress_runner.methods.prune.selection import select
from modelpress_runner.methods.prune.statistics import collect
from modelpress_runner.process.stopping import Stopped
from modelpress_runner.runtime import rng
from modelpress_runner.subject.compression_module import CompressionModule, subject_of


@pytest.fixture(autouse=True, scope="module")
def _method() -> Any:
    with mean_magnitude():
        yield


def scores(model: nn.Module, evaluator: Any, calibration: Any = None, steps: int | None = None, **changes: Any) -> Any:
    """The channels' scores, and the context that they were collected in."""
    context = StageContext(model, evaluator, None, 0, calibration_data=calibration, **changes)
    selection = select(model, Prune.model_validate(STAGE["prune"]), "prune")
    return collect(context, selection, steps, (0, 1), "prune")["first"], context


def silent(result: Any) -> list[int]:
    """The channels that are gone."""
    gone = (result.masks["first"]["weight"] == 0).all(dim=1)
    return torch.nonzero(gone).flatten().tolist()


def lowest(source: str) -> list[int]:
    return [SCORES[source].index(min(SCORES[source]))]


# Evaluators -----------------------------------------------------------------------------------------------------------


def _torch(folder: Path) -> tuple[nn.Module, Any]:
    model = Net()
    return model, mp.TorchEvaluator(evaluating_func=evaluating_func)


def _module(folder: Path) -> tuple[nn.Module, Any]:
    class Module(CompressionModule):
        @classmethod
        def model(cls) -> nn.Module:
            return Net()

        @classmethod
        def evaluator(cls) -> Any:
            return evaluating_func

    subject = subject_of(Module)
    return subject.model, subject.evaluator


def _lightning(folder: Path) -> tuple[nn.Module, Any]:
    import lightning.pytorch as pl

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            layers(self)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(self.first(x))

        def test_step(self, batch: Any, batch_idx: int) -> None:
            self.log("default", self.last(self.first(batch)).sum())  # parts of it, and not the module itself

    class Data(pl.LightningDataModule):
        def test_dataloader(self) -> Any:
            return torch.utils.data.DataLoader(torch.cat(EVALUATION), 2)

    trainer = mp.trace(pl.Trainer)(accelerator="cpu", logger=False)
    return Module(), mp.LightningEvaluator(trainer, mp.trace(Data)())


def _transformers(folder: Path) -> tuple[nn.Module, Any]:
    from transformers import PretrainedConfig, PreTrainedModel, Trainer, TrainingArguments

    class Pretrained(PreTrainedModel):
        config_class = PretrainedConfig

        def __init__(self) -> None:
            super().__init__(PretrainedConfig())
            layers(self)

        def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
            logits = self.last(self.first(x))
            return (
                {"logits": logits} if labels is None else {"loss": (logits - labels).square().mean(), "logits": logits}
            )

    rows = [{"x": row, "labels": row[:1]} for batch in EVALUATION for row in batch]
    arguments = TrainingArguments(
        output_dir=str(folder), per_device_eval_batch_size=2, use_cpu=True, save_strategy="no", report_to=[]
    )
    model = Pretrained()
    trainer = mp.trace(Trainer)(
        model, arguments, eval_dataset=rows, compute_metrics=lambda each: {"default": float(each.predictions.sum())}
    )
    return model, mp.TransformersEvaluator(trainer)


def _deepspeed(folder: Path) -> tuple[nn.Module, Any]:
    model = Net()
    optimizer = mp.trace(torch.optim.SGD)(model.parameters(), lr=0.1)
    config = {"train_micro_batch_size_per_gpu": 2}
    functions = {"evaluating_func": evaluating_func}
    return model, mp.DeepspeedTorchEvaluator(training_func, training_step, config, optimizer, **functions)


MAKERS = {
    "torch": _torch,
    "module": _module,
    "lightning": _lightning,
    "transformers": _transformers,
    "deepspeed": _deepspeed,
}


@pytest.mark.parametrize("kind", MAKERS)
def test_every_evaluator_shows_its_evaluation(kind: str, tmp_path: Path) -> None:
    """The means of |output| over its rows, to the bit; mp.compress takes away the channel that says least."""
    model, evaluator = MAKERS[kind](tmp_path)
    found, context = scores(model, evaluator)
    assert found.tolist() == SCORES["evaluation"]
    assert context.notes == []
    assert not model.first._forward_hooks
    result = mp.compress(model, [STAGE], evaluator, {"x": EVALUATION[0]}, target={"format": "eager"})
    assert silent(result) == lowest("evaluation")


def test_so_many_batches_at_most(tmp_path: Path) -> None:
    """Of each kind of evaluation the first batch: |a| of .5, .5, and |b| of 4, -4."""
    for kind in ("torch", "lightning", "transformers"):
        model, evaluator = MAKERS[kind](tmp_path)
        assert scores(model, evaluator, steps=1)[0].tolist() == [0.5, 4.0, 4.0]
        assert not model.first._forward_hooks
    assert scores(Net(), None, CALIBRATION, steps=2)[0].tolist() == [3.0, 4.0, 1.0]


# Calibration data, and training ---------------------------------------------------------------------------------------


def test_calibration_data_come_first() -> None:
    """Before the evaluation and training; they are called with as example inputs are, and nothing draws lots."""
    loader = torch.utils.data.DataLoader(torch.cat(CALIBRATION), batch_size=3, shuffle=True)
    for data in (CALIBRATION, [(batch,) for batch in CALIBRATION], [{"x": batch} for batch in CALIBRATION], loader):
        model, evaluator = _torch(Path())
        model.train()
        state = rng.capture()
        assert scores(model, evaluator, data)[0].tolist() == SCORES["calibration"]
        assert torch.equal(rng.capture()["torch"], state["torch"])
        assert model.training
    result = mp.compress(Net(), [STAGE], calibration_data=CALIBRATION, target={"format": "eager"})
    assert silent(result) == lowest("calibration")


def test_without_them_training_shows_them_with_a_note() -> None:
    """Two steps over the frozen model."""
    optimizer = {"optimizers": lambda params: torch.optim.SGD(params, lr=0.1)}
    evaluator = mp.TorchEvaluator(training_func, training_step=training_step, **optimizer)
    found, context = scores(Net(), evaluator, steps=2)
    assert found.tolist() == SCORES["training"]
    assert context.notes == [
        "mean_magnitude scored by the activations of training steps, as there is neither calibration data nor an "
        "evaluation"
    ]
    result = mp.compress(Net(), [STAGE], evaluator, TRAINING[0], target={"format": "eager"})
    assert silent(result) == lowest("training")


def test_a_loop_of_ones_own_shows_its_steps() -> None:
    """The last two before pruning; what is evaluated between them does not count."""
    model = Net()
    optimizer = torch.optim.SGD(model.last.parameters(), lr=0.1)
    stage = {"prune": {**STAGE["prune"], "scores": {"steps": 2}, "schedule": {"startStep": 3}}}
    compression = mp.prepare_compression(model, [stage], dummy_input=TRAINING[0])
    callbacks = compression.callbacks
    callbacks.on_train_begin()
    for number, batch in enumerate((EVALUATION[0], *TRAINING)):
        callbacks.on_step_begin(number)
        optimizer.zero_grad()
        training_step(batch, model).backward()
        callbacks.on_before_optimizer_step()
        optimizer.step()
        assert not (model.first.weight == 0).all(dim=1).any()
        callbacks.on_after_optimizer_step()
        with torch.no_grad():
            evaluating_func(model)
    gone = (model.first.weight == 0).all(dim=1)
    assert torch.nonzero(gone).flatten().tolist() == lowest("training")
    callbacks.on_train_end()
    assert not model.first._forward_hooks


# What is refused ------------------------------------------------------------------------------------------------------


def test_nothing_to_look_at_is_refused_before_anything_runs() -> None:
    """With the path, and what can be given."""
    for evaluator, words in (
        (None, "there is neither calibration data nor an evaluator; give calibration_data"),
        (mp.TorchEvaluator(), "the evaluator can neither evaluate nor train; give calibration_data"),
    ):
        with pytest.raises(InvalidSpecError, match=words) as raised:
            mp.compress(Net(), [STAGE], evaluator, CALIBRATION[0])
        assert raised.value.path == "spec.stages[0].prune.algorithm"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (iter(CALIBRATION), "is a list_iterator, which can be gone through only once; give a list or a DataLoader"),
        (3, "is a int; give batches: a list, or a DataLoader"),
        ([], "has no batches"),
        (["text"], r"does not take batch 1 of calibration_data: it holds no tensor \(it is a str\)"),
        ([CALIBRATION[0], torch.zeros(1, 9)], "does not take batch 2 of calibration_data: RuntimeError"),
        ([(CALIBRATION[0], torch.zeros(2))], "batch 1 of calibration_data: TypeError.* without labels"),
    ],
)
def test_data_that_are_of_no_use_are_named(data: Any, words: str) -> None:
    """What is wrong, in which batch, and what to give."""
    model = Net()
    with pytest.raises(InvalidModelError, match=words):
        mp.compress(model, [STAGE], None, CALIBRATION[0], calibration_data=data)
    assert not model.first._forward_hooks


def test_what_the_users_data_raise_is_the_users() -> None:
    """A generator function that fails amid its batches."""

    class Failing:
        def __iter__(self) -> Any:
            yield CALIBRATION[0]
            raise OSError("gone")

    model = Net()
    with pytest.raises(UserCodeError, match="calibration_data raised OSError: gone"):
        scores(model, None, Failing())
    assert not model.first._forward_hooks


def test_a_pass_stops_at_a_batch() -> None:
    """Asked before the second batch, of calibration data and of an evaluation; nothing stays on the model."""
    for evaluator, data in ((None, CALIBRATION), (_torch(Path())[1], None)):
        model, asked = Net(), []

        def stop(asked: list[None] = asked) -> None:
            asked.append(None)
            if len(asked) == 2:
                raise Stopped

        with pytest.raises(Stopped):
            scores(model, evaluator, data, stop=stop)
        assert len(asked) == 2
        assert not model.first._forward_hooks
        assert model.training


# Ranks ----------------------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_two_ranks_score_as_one(tmp_path: Path) -> None:
    """Three batches of unequal size in two shares; an evaluation that each rank goes through; an error on one rank."""
    with two_ranks(Path(__file__).with_name("activation_worker.py"), tmp_path) as left:
        pass
    for seen in left:
        assert seen["calibration"].tolist() == SCORES["calibration"]
        assert seen["evaluation"].tolist() == SCORES["evaluation"]
        assert "does not take batch 2 of calibration_data" in seen["error"]
        assert seen["stopped"]
