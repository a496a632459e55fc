"""CompressionModule: what each part is for, which are needed, and what is said when one is wrong."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import modelpress as mp
from modelpress.api.v1alpha1 import Stage
from modelpress_runner.engine.run import run_stages
from modelpress_runner.errors import InvalidModelError, InvalidSpecError, UserCodeError
from modelpress_runner.subject.compression_module import subject_of

X = torch.randn(24, 4, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()


def network() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


def accuracy(model: nn.Module) -> float:
    return (model(X).argmax(1) == Y).float().mean().item()


class Least(mp.CompressionModule):
    """The two parts that are needed."""

    @classmethod
    def model(cls):
        return network()

    @classmethod
    def evaluator(cls):
        return accuracy


def trainer(calls: list, name: str):
    """A trainer as the parts return it; notes the epochs that it is called for."""

    def train(model, optimizer, criterion, current_epoch):
        calls.append((name, current_epoch, model.training))
        optimizer.zero_grad()
        criterion(model(X), Y).backward()
        optimizer.step()

    return train


class Whole(Least):
    """All parts."""

    calls: list = []  # noqa: RUF012

    @classmethod
    def optimizer_factory(cls):
        return lambda parameters: torch.optim.SGD(parameters, lr=0.1)

    @classmethod
    def criterion(cls):
        return nn.functional.cross_entropy

    @classmethod
    def sparsifying_trainer(cls, compress_algorithm_name):
        return trainer(cls.calls, f"sparsify {compress_algorithm_name}")

    @classmethod
    def post_compress_finetuning_trainer(cls, compress_algorithm_name):
        return trainer(cls.calls, f"finetune {compress_algorithm_name}")

    @classmethod
    def post_compress_finetuning_epochs(cls, compress_algorithm_name):
        return 2

    @classmethod
    def example_inputs(cls):
        return X[:1]


PRUNE = {"algorithm": "level", "configList": [{"sparsity": 0.5}], "speedup": False}
ROUNDS = {**PRUNE, "schedule": {"type": "linear", "rounds": 2, "train": {"epochs": 1}}}


def run(module, *stages: dict):
    """The outcome of a recipe on a module's subject."""
    return run_stages(subject_of(module), [Stage.model_validate(stage) for stage in stages], seed=0)


def test_model_and_evaluator_are_enough_to_prune_and_score():
    """Nothing trains; the score is the evaluator's."""
    outcome = run(Least, {"prune": PRUNE})
    (record,) = outcome.stages
    assert record["score"] == {"default": accuracy(outcome.model)}
    assert int((outcome.model[0].weight == 0).sum()) == 16


@pytest.mark.parametrize("part", ["model", "evaluator"])
def test_model_and_evaluator_are_needed(part):
    """Each is asked for by name."""
    other = {"model": Least.evaluator, "evaluator": Least.model}[part].__func__
    module = type("Half", (mp.CompressionModule,), {other.__name__: classmethod(other)})
    with pytest.raises(InvalidModelError, match=rf"Half does not define {part}\(\); add it as a classmethod"):
        subject_of(module)


def test_every_part_is_used():
    """Rounds train with the sparsifying trainer; afterwards the finetuning trainer runs for its epochs."""
    Whole.calls = []
    outcome = run(Whole, {"prune": ROUNDS})
    assert Whole.calls == [
        ("sparsify level", 0, True),
        ("sparsify level", 0, True),
        ("finetune level", 0, True),
        ("finetune level", 1, True),
    ]
    assert [record["name"] for record in outcome.stages] == ["0-prune", "post-compress-finetuning"]
    assert torch.equal(subject_of(Whole).dummy_input, X[:1])


def test_a_finetune_stage_takes_the_place_of_the_modules_epochs():
    """The recipe says how long, the module how."""
    Whole.calls = []
    run(Whole, {"prune": PRUNE}, {"finetune": {"epochs": 3}})
    assert Whole.calls == [("finetune level", epoch, True) for epoch in range(3)]


@pytest.mark.parametrize("alone", ["sparsifying_trainer", "post_compress_finetuning_trainer"])
def test_one_trainer_serves_for_both(alone):
    """Whichever is there trains in rounds and afterwards."""
    other = {"sparsifying_trainer", "post_compress_finetuning_trainer"} - {alone}
    module = type("One", (Whole,), {other.pop(): classmethod(lambda cls, name: None)})
    Whole.calls = module.calls = []
    run(module, {"prune": ROUNDS})
    assert len(module.calls) == 4
    assert len({name for name, *_ in module.calls}) == 1


def test_parts_may_leave_the_algorithm_out():
    """A part that takes no argument says the same for every algorithm; staticmethods will do."""
    calls: list = []

    class Short(Whole):
        @staticmethod
        def sparsifying_trainer():
            return trainer(calls, "any")

        @classmethod
        def post_compress_finetuning_trainer(cls):
            return None

        @classmethod
        def post_compress_finetuning_epochs(cls):
            return 1

    run(Short, {"prune": ROUNDS})
    assert calls == [("any", 0, True)] * 3


def test_an_object_may_have_plain_methods():
    """Parts that need something of their object are methods of it."""

    class WithData(mp.CompressionModule):
        def __init__(self, width: int) -> None:
            self.width = width

        def model(self, bias: bool = True):
            return nn.Linear(4, self.width, bias)

        def evaluator(self):
            return lambda model: float(model.weight.shape[0])

    subject = subject_of(WithData(3), bias=False)
    assert subject.model.weight.shape == (3, 4)
    assert subject.model.bias is None
    assert subject.evaluator.evaluate(subject.model) == {"default": 3.0}
    with pytest.raises(InvalidModelError, match=r"WithData.model is a method of objects; put @classmethod before it"):
        subject_of(WithData)


def test_an_evaluator_that_trains_takes_the_place_of_the_trainers():
    """Either a TorchEvaluator with a training_func or the trainers; both are one too many."""

    class Own(Least):
        @classmethod
        def evaluator(cls):
            return mp.TorchEvaluator(
                lambda *args: None, lambda parameters: torch.optim.SGD(parameters, 0.1), lambda batch, model: None
            )

    assert isinstance(subject_of(Own).evaluator, mp.TorchEvaluator)
    both = type("Both", (Own,), {"sparsifying_trainer": classmethod(lambda cls, name: None)})
    with pytest.raises(InvalidModelError, match=r"an evaluator that trains, and Both defines sparsifying_trainer\(\)"):
        subject_of(both)


@pytest.mark.parametrize("missing", ["optimizer_factory", "criterion", "both trainers"])
def test_training_without_its_parts_is_refused_before_anything_runs(missing):
    """optimizer_factory, criterion and a trainer belong together."""
    names = ["sparsifying_trainer", "post_compress_finetuning_trainer"] if missing == "both trainers" else [missing]
    parts = {name: classmethod(lambda cls, *args: None) for name in names}
    parts["post_compress_finetuning_epochs"] = classmethod(lambda cls, name: 0)
    module = type("Partial", (Whole,), parts)
    with pytest.raises(InvalidSpecError, match="give it optimizer_factory, criterion, and sparsifying_trainer or"):
        run(module, {"prune": ROUNDS})
    wishful = type("Wishful", (module,), {"post_compress_finetuning_epochs": classmethod(lambda cls, name: 3)})
    with pytest.raises(InvalidModelError, match=r"epochs\(\) returned 3, but Wishful cannot train; give it optimizer_"):
        run(wishful, {"prune": PRUNE})


@pytest.mark.parametrize(
    ("part", "value", "error", "message"),
    [
        ("model", 3, InvalidModelError, "the model is a int"),
        ("evaluator", None, InvalidModelError, r"Odd.evaluator\(\) returned None; return a function"),
        ("evaluator", "accuracy", InvalidModelError, "the evaluator is a str"),
        ("optimizer_factory", torch.optim.SGD([X], 0.1), InvalidModelError, r"returned a SGD; return a function param"),
        ("optimizer_factory", lambda parameters: 3, InvalidModelError, r"made a int; it must make"),
        ("optimizer_factory", lambda parameters: 1 / 0, UserCodeError, "ZeroDivisionError"),
        (
            "criterion",
            0.5,
            InvalidModelError,
            r"Odd.criterion\(\) returned a float; return a function \(out",
        ),
        ("sparsifying_trainer", "train", InvalidModelError, r"returned a str; return a function \(model, optimizer"),
        ("post_compress_finetuning_epochs", 1.5, InvalidModelError, "returned 1.5; return 0 or more"),
        ("post_compress_finetuning_epochs", True, InvalidModelError, "returned True"),
        ("post_compress_finetuning_epochs", -1, InvalidModelError, "returned -1"),
    ],
)
def test_parts_of_the_wrong_kind_are_named(part, value, error, message):
    """What a part returned, and what it should return."""
    module = type("Odd", (Whole,), {part: classmethod(lambda cls, *args: value)})
    with pytest.raises(error, match=message):
        run(module, {"prune": ROUNDS})


def test_a_part_that_raises_is_named_with_its_line():
    """As all of the user's code."""
    module = type("Raises", (Whole,), {"criterion": classmethod(lambda cls: {}["loss"])})
    with pytest.raises(InvalidModelError, match=r"Raises.criterion raised KeyError: 'loss' \(.*test_compression_mod"):
        run(module, {"prune": ROUNDS})
