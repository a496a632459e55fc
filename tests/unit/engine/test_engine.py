"""The engine: recipes as steps, records, and results that do not depend on where a run was cut short."""

from __future__ import annotations

import copy
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

import modelpress as mp
from modelpress.api.v1alpha1 import Stage
from modelpress.store import open_store
from modelpress_runner.engine.checkpoint import Checkpointer
from modelpress_runner.engine.run import run_stages
from modelpress_runner.errors import InvalidSpecError, UserCodeError
from modelpress_runner.process.stopping import Stopped
from modelpress_runner.runtime import rng
from modelpress_runner.subject.subject import Subject

RECIPE = [
    {
        "prune": {
            "algorithm": "level",
            "sparsity": 0.5,
            "configList": [{"opNames": ["0", "3"]}],
            "speedup": False,
            "schedule": {"type": "agp", "rounds": 2, "train": {"epochs": 1}},
        }
    },
    {"name": "tune", "finetune": {"maxSteps": 5}},
]
SHRINKING = [
    {
        "prune": {
            "algorithm": "l1",
            "sparsity": 0.5,
            "configList": [{"opNames": ["0"]}],
            "schedule": {"type": "linear", "rounds": 2, "train": {"epochs": 1}},
        }
    },
    {"finetune": {"epochs": 2}},
]

TAYLOR = [
    {
        "prune": {
            "algorithm": "taylor",
            "sparsity": 0.5,
            "configList": [{"opNames": ["0"]}],
            "speedup": False,
            "scores": {"steps": 3},
            "schedule": {"type": "linear", "rounds": 3, "train": {"epochs": 1}},
        }
    },
]


def stages(recipe):
    return [Stage.model_validate(stage) for stage in recipe]


def noisy(task) -> mp.TorchEvaluator:
    """Training that draws from every global generator, with momentum and a schedule."""

    def training_step(batch, model):
        x, y = batch
        noise = random.random() + np.random.rand() + torch.rand(()).item()
        return task.training_step((x * (1 + 0.01 * noise), y), model)

    adam = mp.trace(torch.optim.Adam)(task.model.parameters(), lr=0.01)
    return task.evaluator(
        training_step=training_step,
        optimizers=adam,
        lr_schedulers=mp.trace(lr_scheduler.StepLR)(adam, step_size=1, gamma=0.7),
    )


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def without_clock(records):
    return [{key: value for key, value in record.items() if key != "seconds"} for record in records]


def test_a_recipe_runs_in_order_and_is_recorded(task):
    """Masks of the pruning hold through finetuning; the records say what was asked, reached and trained."""
    events = []
    outcome = run_stages(Subject(task.model, noisy(task)), stages(RECIPE), seed=0, report=events.append)
    prune, tune = outcome.stages
    assert (prune["name"], prune["method"], prune["algorithm"]) == ("0-prune", "prune", "level")
    assert prune["sparsityAsked"] == [0.5]
    assert prune["parameters"] == 56  # 4*6+6, 2*6, 6*2+2
    # 12 of 24 and 6 of 12 weights are pruned.
    zeros = sum(int((parameter == 0).sum()) for parameter in outcome.model.parameters())
    assert zeros >= 18
    assert tune["sparsity"] == pytest.approx(zeros / 56)
    assert (prune["steps"], tune["steps"], tune["name"]) == (8, 5, "tune")
    assert 0 <= tune["score"]["default"] <= 1
    assert outcome.training == {"steps": 13, "executed": 13, "repeated": 0, "checkpoints": 0}
    assert int(outcome.masks["0"]["weight"].sum()) == 12
    assert task.calls == [(None, 1), (None, 1), (5, None)]
    assert [(event.step, event.total) for event in events][-1] == (13, 0)
    assert events[-1].value == tune["score"]["default"]


def test_equal_seeds_give_equal_models_and_scoring_changes_nothing(task):
    """Scores draw random numbers of their own."""

    def result(seed, scores):
        task.model = copy.deepcopy(dense)
        noisy_scores = {"evaluating_func": lambda model: torch.rand(()).item() + random.random()}
        evaluator = task.evaluator(**noisy_scores)
        random.seed(1)
        torch.manual_seed(1)
        return state(run_stages(Subject(task.model, evaluator), stages(RECIPE), seed=seed, scores=scores).model)

    dense = task.model
    first = result(0, scores=True)
    torch.rand(3)
    assert same(first, result(0, scores=True))
    assert same(first, result(0, scores=False))
    assert not same(first, result(1, scores=True))


class Cut:
    """Raises Stopped from the nth time on that it is asked."""

    def __init__(self, at: int) -> None:
        self.left = at

    def __call__(self) -> None:
        self.left -= 1
        if self.left <= 0:
            raise Stopped


def interrupted(task, recipe, store, cuts):
    """Runs the recipe, cut short at each of `cuts`, until it is through."""
    dense = copy.deepcopy(task.model)
    for attempt, cut in enumerate([*cuts, 10**9], 1):
        task.model = copy.deepcopy(dense)
        checkpointer = Checkpointer(store, "job", "same", attempt)
        try:
            return run_stages(
                Subject(task.model, noisy(task)), stages(recipe), seed=3, checkpointer=checkpointer, stop=Cut(cut)
            )
        except Stopped:
            torch.manual_seed(attempt)
    raise AssertionError("never through")


@pytest.mark.parametrize("cut", range(1, 24, 2))
def test_a_run_cut_anywhere_equals_one_that_was_not(task, cut):
    """Weights, masks and records are the same bit for bit wherever the first attempt ended."""
    dense = copy.deepcopy(task.model)
    whole = run_stages(Subject(task.model, noisy(task)), stages(RECIPE), seed=3)
    task.model = dense
    resumed = interrupted(task, RECIPE, open_store("memory://"), [cut])
    assert same(state(whole.model), state(resumed.model))
    assert same(whole.masks["0"], resumed.masks["0"])
    assert without_clock(whole.stages) == without_clock(resumed.stages)
    assert (resumed.training["steps"], resumed.training["executed"]) == (13, 13)  # nothing was made twice


@pytest.mark.parametrize("cut", [2, 4, 7, 11, 14, 18, 25])
def test_scores_are_collected_alike_after_a_restart(task, cut, tmp_path):
    """Wherever the first attempt ended, within the passes of a round too, the second takes the same masks."""
    dense = copy.deepcopy(task.model)
    whole = run_stages(Subject(task.model, noisy(task)), stages(TAYLOR), seed=3)
    task.model = dense
    resumed = interrupted(task, TAYLOR, open_store(str(tmp_path)), [cut])
    assert same(whole.masks["0"], resumed.masks["0"])
    assert same(state(whole.model), state(resumed.model))


def test_steps_are_counted_behind_the_checkpoint_that_has_them(task, tmp_path, monkeypatch):
    """An attempt that is killed between the two has counted nothing that its checkpoint does not have."""
    store, written = open_store(str(tmp_path)), []
    for name in ("put_file", "put_bytes"):
        original = getattr(store, name)

        def put(path, *args, original=original):
            written.append(path.removeprefix("job/checkpoint/"))
            return original(path, *args)

        monkeypatch.setattr(store, name, put)
    checkpointer = Checkpointer(store, "job", "same", 1, every=2)
    run_stages(
        Subject(task.model, noisy(task)), stages([{"finetune": {"maxSteps": 4}}]), seed=3, checkpointer=checkpointer
    )
    assert written.count("state.pt") == 3
    assert [path for path in written if path in ("state.pt", "made/1-0")] == ["state.pt", "made/1-0"] * 3


def test_a_shrunk_model_is_resumed_by_replaying_its_cuts(task, tmp_path):
    """After the shrink the checkpoint is loaded into the dense model made small again."""
    dense = copy.deepcopy(task.model)
    whole = run_stages(Subject(task.model, noisy(task), task.x[:2]), stages(SHRINKING), seed=3)
    assert whole.model[0].weight.shape == (3, 4)
    task.model = dense
    store = open_store(str(tmp_path))
    # Each training asks once for each of its 4 steps and twice before, each step once before: the first attempt ends in
    # finetuning, behind the shrink.
    resumed = interrupted(task, SHRINKING, store, [23])
    assert resumed.resumed
    assert resumed.training == {"steps": 16, "executed": 16, "repeated": 0, "checkpoints": 1}
    assert same(state(whole.model), state(resumed.model))
    assert whole.edits == resumed.edits
    names = {info.path.rsplit("/", 1)[-1] for info in store.list("job/checkpoint")}
    assert "state.pt" in names


def test_a_checkpoint_of_something_else_is_ignored_with_a_note(task, tmp_path):
    """Another identity, or a damaged file, starts the run afresh and says so."""
    store = open_store(str(tmp_path))
    dense = copy.deepcopy(task.model)

    def run(identity, stop):
        task.model = copy.deepcopy(dense)
        subject = Subject(task.model, noisy(task))
        checkpointer = Checkpointer(store, "", identity)
        return run_stages(subject, stages(RECIPE), seed=3, checkpointer=checkpointer, stop=stop)

    with pytest.raises(Stopped):
        run("old", Cut(15))
    outcome = run("new", lambda: None)
    assert not outcome.resumed
    assert outcome.training == {"steps": 13, "executed": 13, "repeated": 0, "checkpoints": 3}
    assert any("made by another recipe" in note for note in outcome.notes)
    store.put_bytes("checkpoint/state.pt", b"PK nonsense")
    outcome = run("new", lambda: None)
    assert any("unreadable checkpoint was ignored" in note for note in outcome.notes)


def test_what_a_stage_needs_is_checked_before_anything_runs(task):
    """A recipe that cannot be trained fails at its field before the first step."""
    scorer = mp.TorchEvaluator(evaluating_func=task.evaluating_func)
    before = state(task.model)
    with pytest.raises(InvalidSpecError, match=r"^spec\.stages\[1\]\.finetune: this stage trains, but the evaluator"):
        run_stages(
            Subject(task.model, scorer), stages([{"prune": RECIPE[0]["prune"] | {"schedule": {}}}, RECIPE[1]]), seed=0
        )
    with pytest.raises(InvalidSpecError, match="there is no evaluator"):
        run_stages(Subject(task.model), stages(RECIPE), seed=0)
    assert same(before, state(task.model))


def test_an_evaluator_that_cannot_be_cut_trains_each_stage_at_once(task):
    """resumable=False: no checkpoint inside, and a note."""
    evaluator = task.evaluator(resumable=False)
    outcome = run_stages(Subject(task.model, evaluator), stages([{"finetune": {"epochs": 3}}]), seed=0)
    assert task.calls == [(None, 3)]
    assert any("no checkpoints were taken inside" in note for note in outcome.notes)


def test_the_evaluator_is_free_after_an_exception(task):
    """Bound again at once, without error."""
    evaluator = task.evaluator(evaluating_func=lambda model: 1 / 0)
    with pytest.raises(UserCodeError, match="ZeroDivisionError"):
        run_stages(Subject(task.model, evaluator), stages([{"finetune": {"epochs": 3}}]), seed=0)
    evaluator.bind(task.model)


class Module(mp.CompressionModule):
    """A CompressionModule whose trainers note their calls."""

    task = None
    calls: list = []  # noqa: RUF012

    @classmethod
    def model(cls):
        return cls.task.model

    @classmethod
    def evaluator(cls):
        return cls.task.evaluating_func

    @classmethod
    def optimizer_factory(cls):
        return lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9)

    @classmethod
    def criterion(cls):
        return nn.CrossEntropyLoss()

    @classmethod
    def _trainer(cls, name):
        def trainer(model, optimizer, criterion, epoch):
            cls.calls.append((name, epoch))
            optimizer.zero_grad()
            criterion(model(cls.task.x), cls.task.y).backward()
            optimizer.step()

        return trainer

    @classmethod
    def sparsifying_trainer(cls, algorithm_name):
        return cls._trainer(f"sparsify {algorithm_name}")

    @classmethod
    def post_compress_finetuning_trainer(cls, algorithm_name):
        return cls._trainer(f"finetune {algorithm_name}")

    @classmethod
    def post_compress_finetuning_epochs(cls, algorithm_name):
        return 2


def test_a_compression_module_trains_with_its_own_trainers(task):
    """Sparsifying within prune stages, finetuning after the last one for as many epochs as it asks for."""
    from modelpress_runner.subject.compression_module import subject_of

    Module.task, Module.calls = task, []
    outcome = run_stages(subject_of(Module), stages(RECIPE[:1]), seed=0)
    assert Module.calls == [("sparsify level", 0), ("sparsify level", 0), ("finetune level", 0), ("finetune level", 1)]
    assert [record["name"] for record in outcome.stages] == ["0-prune", "post-compress-finetuning"]
    Module.calls = []
    run_stages(subject_of(Module), stages([{"finetune": {"epochs": 1}}]), seed=0)
    assert Module.calls == [("finetune ", 0)]
    with pytest.raises(InvalidSpecError, match="trains by epochs; give epochs instead of maxSteps"):
        run_stages(subject_of(Module), stages(RECIPE), seed=0)
    assert not any(module._forward_hooks for module in task.model.modules())


def test_generators_go_back_to_where_they_were():
    """capture and restore cover Python, NumPy (with a pending gaussian) and torch; aside leaves no trace."""
    rng.seed_all(5)
    np.random.randn()
    random.gauss(0, 1)
    saved = rng.capture()

    def draw():
        return random.gauss(0, 1), random.random(), np.random.randn(), np.random.rand(), torch.rand(2).tolist()

    first = draw()
    rng.restore(saved)
    with rng.fork_rng(9):
        draw()
    assert draw() == first
    assert rng.derive(0, 1) != rng.derive(1, 0)
