"""Scores collected from training steps: gradients worked out by hand, and what is said where there are none."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import modelpress as mp
from modelpress.api.v1alpha1 import Prune, Stage
from modelpress_runner.engine.run import run_stages
from modelpress_runner.errors import CompressionError, InvalidSpecError
from modelpress_runner.methods.context import StageContext, Transform
from modelpress_runner.methods.prune.selection import select
from modelpress_runner.methods.prune.statistics import collect
from modelpress_runner.process.stopping import Stopped
from modelpress_runner.stages.prune import steps
from modelpress_runner.subject.compression_module import CompressionModule, subject_of
from modelpress_runner.subject.subject import Subject

FIRST, SECOND = torch.tensor([[1.0, 2.0]]), torch.tensor([[2.0, 0.0]])


def layer(bias: bool = False) -> nn.Linear:
    """y = (a + 2b, 3a - b)."""
    linear = nn.Linear(2, 2, bias=bias)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[1.0, 2.0], [3.0, -1.0]]))
        if bias:
            linear.bias.zero_()
    return linear


def evaluator(batches=(FIRST, SECOND), loss=None, **changes) -> mp.TorchEvaluator:
    """Half the square of the outputs, so that dL/dw[i, j] = y[i] x[j]; a step so large that a moved weight shows."""

    def training_func(model, optimizer, training_step, scheduler, max_steps, max_epochs):
        for step in range(max_steps):
            model.train()
            optimizer.zero_grad()
            training_step(batches[step % len(batches)], model).backward()
            optimizer.step()

    given = {
        "training_func": training_func,
        "optimizers": lambda params: torch.optim.SGD(params, lr=1.0, momentum=0.9, weight_decay=0.1),
        "training_step": loss or (lambda batch, model: model(batch).square().sum() / 2),
    }
    return mp.TorchEvaluator(**(given | changes))


def collected(model, given, count=2, **settings):
    """The scores of a stage that prunes every Linear by Taylor."""
    prune = Prune.model_validate({"algorithm": "taylor", "configList": [{"sparsity": 0.5}], **settings})
    context = StageContext(model, given, None, 0)
    return collect(context, select(model, prune, "spec.stages[0].prune"), count, (0, 1), "spec.stages[0].prune")


def pruned(model, given, count, **settings):
    """The masks of one prune stage."""
    (step,) = steps(
        Prune.model_validate(
            {"algorithm": "taylor", "speedup": False, "sparsity": 0.5, "configList": [{}], "scores": {"steps": count}}
            | settings
        ),
        0,
    )
    assert isinstance(step, Transform)
    context = StageContext(model, given, None, 0)
    step.apply(context)
    return context.masks


def test_the_scores_are_the_sums_of_squared_products():
    """Inputs (1, 2): y = (5, 1), g = ((5, 10), (1, 2)), w g = ((5, 20), (3, -2)): 25 + 400 and 9 + 4.

    Inputs (2, 0): y = (2, 6), w g = ((4, 0), (36, 0)): 16 and 1296. Opposite signs within a channel do not cancel.
    """
    assert collected(nn.Sequential(layer()), evaluator(), 1)["0"].tolist() == [425.0, 13.0]
    assert collected(nn.Sequential(layer()), evaluator(), 2)["0"].tolist() == [441.0, 1309.0]
    assert collected(nn.Sequential(layer()), evaluator(), 3)["0"].tolist() == [866.0, 1322.0]


def test_convolutions_are_scored_by_filter():
    """Filters 1 and 3 on four ones: y = 1 and 3 at four places, g = 4 y, (w g)^2 = 16 and 1296."""
    conv = nn.Conv2d(1, 2, 1, bias=False)
    with torch.no_grad():
        conv.weight.copy_(torch.tensor([1.0, 3.0]).view(2, 1, 1, 1))
    assert collected(nn.Sequential(conv), evaluator([torch.ones(1, 1, 2, 2)]), 1)["0"].tolist() == [16.0, 1296.0]


def test_the_number_of_steps_decides_what_is_seen():
    """After one step the second channel matters least, after two the first; the bias is masked with its channel."""
    masks = pruned(nn.Sequential(layer(bias=True)), evaluator(), 1)
    assert masks["0"]["bias"].tolist() == [1.0, 0.0]
    assert masks["0"]["weight"].tolist() == [[1.0, 1.0], [0.0, 0.0]]
    masks = pruned(nn.Sequential(layer(bias=True)), evaluator(), 2)
    assert masks["0"]["bias"].tolist() == [0.0, 1.0]


def test_ten_steps_are_made_if_none_are_asked_for():
    """The default of scores.steps, also where `scores` is left out."""
    counts = []

    def training_func(model, optimizer, training_step, scheduler, max_steps, max_epochs):
        counts.append((max_steps, max_epochs))
        for _ in range(max_steps):
            training_step(FIRST, model).backward()
            optimizer.step()

    for scores in (None, {}):
        pruned(nn.Sequential(layer()), evaluator(training_func=training_func), 1, scores=scores)
    assert counts == [(10, None)] * 2


def test_a_global_ranking_takes_the_scores_as_they_are():
    """A layer that sees ten times the inputs has w g a hundred times as large: the two smallest are the other's.

    Divided by their norms both layers would have the same scores, and lose one channel each.
    """

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.small, self.large = (nn.Linear(2, 3, bias=False) for _ in range(2))
            with torch.no_grad():
                for linear in (self.small, self.large):
                    linear.weight.copy_(torch.tensor([[1.0, 2.0], [3.0, -1.0], [0.0, 1.0]]))

        def forward(self, x):
            return torch.cat([self.small(x), self.large(10 * x)])

    scores = collected(Two(), evaluator([FIRST]), 1)
    assert scores["small"].tolist() == [425.0, 13.0, 16.0]
    assert scores["large"].tolist() == [425.0 * 10**4, 13.0 * 10**4, 16.0 * 10**4]
    masks = pruned(Two(), evaluator([FIRST]), 1, scope="global", sparsity=0.34)
    assert masks["small"]["weight"].tolist() == [[1, 1], [0, 0], [0, 0]]
    assert masks["large"]["weight"].tolist() == [[1, 1], [1, 1], [1, 1]]


def test_entries_may_mix_methods():
    """One layer by its norms, the other by Taylor: |1| + |2| < |3| + |-1|, but 425 > 13."""
    model = nn.Sequential(layer(), layer())
    loss = lambda batch, model: model[0](batch).square().sum() / 2 + model[1](batch).square().sum() / 2  # noqa: E731
    masks = pruned(
        model, evaluator([FIRST], loss), 1, algorithm="l1", configList=[{}, {"opNames": ["1"], "algorithm": "taylor"}]
    )
    assert masks["0"]["weight"].tolist() == [[0, 0], [1, 1]]
    assert masks["1"]["weight"].tolist() == [[1, 1], [0, 0]]


def test_each_round_collects_anew():
    """Two rounds with training between them: the second sees the trained weights, the masks stay."""
    model = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 2))
    calls = []
    batches = [torch.randn(4, 2, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]

    def training_func(model, optimizer, training_step, scheduler, max_steps, max_epochs):
        calls.append((max_steps, max_epochs, model[0].weight.detach().clone()))
        for step in range(max_steps or 3):
            optimizer.zero_grad()
            training_step(batches[step % 3], model).backward()
            optimizer.step()

    given = evaluator(training_func=training_func, optimizers=lambda params: torch.optim.SGD(params, lr=0.01))
    recipe = {
        "prune": {
            "algorithm": "taylor", "speedup": False, "scores": {"steps": 4},
            "configList": [{"opNames": ["0"], "sparsity": 0.5}],
            "schedule": {"type": "linear", "rounds": 2, "train": {"epochs": 1}},
        }
    }  # fmt: skip
    outcome = run_stages(Subject(model, given), [Stage.model_validate(recipe)], seed=0)
    assert [call[:2] for call in calls] == [(4, None), (None, 1), (4, None), (None, 1)]
    assert not torch.equal(calls[0][2], calls[2][2])
    assert int((outcome.masks["0"]["weight"].sum(dim=1) == 0).sum()) == 4


def test_stopped_while_collecting_loses_nothing():
    """The model is as it was, the evaluator is free, and the same step gives the masks of an undisturbed run."""
    expected = pruned(nn.Sequential(layer()), evaluator(), 5)
    model = nn.Sequential(layer())
    given = evaluator()
    (step,) = steps(
        Prune.model_validate(
            {"algorithm": "taylor", "speedup": False, "sparsity": 0.5, "configList": [{}], "scores": {"steps": 5}}
        ),
        0,
    )
    asked = []

    def stop():
        asked.append(None)
        if len(asked) == 6:
            raise Stopped

    with pytest.raises(Stopped):
        step.apply(StageContext(model, given, None, 0, stop=stop))
    assert torch.equal(model[0].weight, layer().weight)
    assert model[0].weight.grad is None
    context = StageContext(model, given, None, 0)
    step.apply(context)
    assert torch.equal(context.masks["0"]["weight"], expected["0"]["weight"])


def test_the_seed_decides_what_is_seen_whatever_was_drawn_before():
    """A loop that draws its batches sees the same ones for one seed, stage and round, and others for another."""

    def training_func(model, optimizer, training_step, scheduler, max_steps, max_epochs):
        for _ in range(max_steps):
            optimizer.zero_grad()
            training_step(torch.randn(1, 2), model).backward()
            optimizer.step()

    def scores(seed=0, stage=0, round_=1):
        torch.rand(3)
        model = nn.Sequential(layer())
        chosen = select(model, Prune.model_validate({"algorithm": "taylor", "configList": [{"sparsity": 0.5}]}), "x")
        context = StageContext(model, evaluator(training_func=training_func), None, seed)
        return collect(context, chosen, 4, (stage, round_), "x")["0"].tolist()

    first = scores()
    assert scores() == first
    assert first not in (scores(seed=1), scores(stage=1), scores(round_=2))


def test_the_order_of_a_sum_decides_nothing():
    """Scores that differ by less than 1e-5 are equal: the lower index goes, whichever is smaller."""
    for less in (0, 1):
        linear = nn.Linear(1, 2, bias=False)
        with torch.no_grad():
            linear.weight.fill_(1.0)
            linear.weight[less] -= 1e-7
        assert pruned(nn.Sequential(linear), evaluator([torch.ones(1, 1)]), 3)["0"]["weight"].tolist() == [[0.0], [1.0]]


def test_an_evaluator_that_trains_by_epochs_serves_too():
    """A CompressionModule's epochs of two steps are repeated until five steps are made, and broken off there."""
    epochs = []

    class Module(CompressionModule):
        @classmethod
        def model(cls):
            return nn.Sequential(layer())

        @classmethod
        def evaluator(cls):
            return lambda model: 0.0

        @classmethod
        def optimizer_factory(cls):
            return lambda params: torch.optim.SGD(params, lr=1.0)

        @classmethod
        def criterion(cls):
            return lambda output, target: output.square().sum() / 2

        @classmethod
        def sparsifying_trainer(cls, algorithm_name):
            def trainer(model, optimizer, criterion, current_epoch):
                epochs.append((algorithm_name, current_epoch))
                for batch in (FIRST, SECOND):
                    optimizer.zero_grad()
                    criterion(model(batch), None).backward()
                    optimizer.step()

            return trainer

    subject = subject_of(Module)
    assert collected(subject.model, subject.evaluator, 5)["0"].tolist() == [2 * 441 + 425.0, 2 * 1309 + 13.0]
    assert epochs == [("taylor", 0), ("taylor", 1), ("taylor", 2)]


# What is said ---------------------------------------------------------------------------------------------------------

WHERE = r"spec\.stages\[0\]\.prune"


def run(given, **settings):
    """Plans and runs a stage."""
    prune = {"algorithm": "taylor", "speedup": False, "configList": [{"sparsity": 0.5}], **settings}
    return run_stages(Subject(nn.Sequential(layer()), given), [Stage.model_validate({"prune": prune})], seed=0)


def test_without_training_the_method_is_refused_before_anything_runs():
    """No evaluator, or one that only scores: an error at the algorithm, of the stage or of the entry."""
    with pytest.raises(InvalidSpecError, match=WHERE + r"\.algorithm: taylor scores by the gradients .* no evaluator"):
        run(None)
    only = mp.TorchEvaluator(evaluating_func=lambda model: pytest.fail("it ran"))
    with pytest.raises(InvalidSpecError, match="cannot train; give it training_func, optimizers and training_step, or"):
        run(only)
    entries = [{"sparsity": 0.5}, {"opNames": ["0"], "algorithm": "taylor"}]
    with pytest.raises(InvalidSpecError, match=WHERE + r"\.configList\[1\]\.algorithm: taylor scores"):
        run(only, algorithm="l1", configList=entries)
    excluded = [{"sparsity": 0.5, "algorithm": "l1"}, {"opNames": ["0"], "exclude": True}, {"sparsity": 0.1}]
    with pytest.raises(InvalidSpecError, match=WHERE + r"\.algorithm"):
        run(only, configList=excluded)


def test_a_frozen_weight_has_no_score():
    """An error at the entry that selects it, before anything is trained."""
    model = nn.Sequential(layer(), layer())
    model[1].weight.requires_grad_(False)
    never = evaluator(training_func=lambda *args: pytest.fail("it ran"))
    with pytest.raises(InvalidSpecError, match=WHERE + r"\.configList\[0\]: .* weight of '1' has none \(requires_grad"):
        collected(model, never)


def test_a_module_that_no_loss_depends_on_has_no_score():
    """The message names the module and the number of steps."""
    model = nn.Sequential(layer(), layer())
    only = evaluator(loss=lambda batch, model: model[0](batch).square().sum())
    with pytest.raises(CompressionError, match=r"no gradient reached '1' in 2 training steps.*exclude"):
        collected(model, only)


def test_a_gradient_that_is_not_finite_is_an_error():
    """The message names module and step, and the model is as it was."""
    model = nn.Sequential(layer())
    with pytest.raises(CompressionError, match="gradient of '0' is NaN or infinite in training step 2"):
        collected(model, evaluator([FIRST, SECOND * float("inf")]))
    assert torch.equal(model[0].weight, layer().weight)


def test_training_without_steps_is_an_error():
    """At the algorithm; a training that stops stepping later is told apart."""
    with pytest.raises(CompressionError, match=r"prune\.algorithm: scores need 2 optimizer steps, but .* none"):
        collected(nn.Sequential(layer()), evaluator(training_func=lambda *args: None))
    left = [1]

    def once(model, optimizer, training_step, scheduler, max_steps, max_epochs):
        if left:
            left.pop()
            training_step(FIRST, model).backward()
            optimizer.step()

    with pytest.raises(CompressionError, match="training made only 1; check"):
        collected(nn.Sequential(layer()), evaluator(training_func=once))
