"""A stage whose steps depend on scores, in one file: as worked out by hand, and wherever it is interrupted."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml

from modelpress.api import stages
from modelpress.store import open_store
from modelpress_runner.engine.checkpoint import Checkpointer
from modelpress_runner.engine.outcome import RecipeOutcome
from modelpress_runner.engine.run import run_stages
from modelpress_runner.errors import InvalidSpecError
from modelpress_runner.process.progress import Event
from modelpress_runner.process.stopping import Stopped
from modelpress_runner.runtime import rng
from modelpress_runner.subject.subject import Subject

CODE = Path(__file__).parent / "procedure"
BLOCK = {"layers": ["0", "2"], "bisections": 2, "within": 0.05, "earlySteps": 2, "maxSteps": 2}
SEED = 3
PLACES = 37  # at which an undisturbed run asks whether it should stop
BEFORE = 4  # of them are before its first checkpoint, if it keeps one behind each step; else it may end before 2

_UNDISTURBED: list[RecipeOutcome] = []  # the same for all of them


class Killed(BaseException):
    """The process is gone from one moment to the next."""


@dataclass
class Block:
    """A stage of a recipe, without the type that the API has for it."""

    method: str
    block: Any
    name: str | None = None


@pytest.fixture
def bumps(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The user's code; the plug-in is known meanwhile."""
    monkeypatch.setattr(stages, "register", lambda kind: monkeypatch.setitem(stages._KINDS, kind.name, kind))
    loaded = {}
    for name in ("search_plugin", "bumps"):
        spec = importlib.util.spec_from_file_location(name, CODE / f"{name}.py")
        loaded[name] = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, loaded[name])
        spec.loader.exec_module(loaded[name])
    return loaded["bumps"]


def run(
    bumps: ModuleType, folder: Path | None = None, attempt: int = 1, every: int | None = None, **options: Any
) -> RecipeOutcome:
    """One run of the stage."""
    block = sys.modules["search_plugin"].Search.model_validate(BLOCK)
    keeper = None if folder is None else Checkpointer(open_store(str(folder)), "", "same", attempt, every)
    with rng.fork_rng(attempt):
        return run_stages(
            Subject(*bumps.create()), [Block("search", block)], seed=SEED, scores=False, checkpointer=keeper, **options
        )


def by_hand(bumps: ModuleType) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """The weights that come out, and the sparsities that are found."""
    model = bumps.net()
    index = 0

    def train(steps: int) -> None:
        optimizer = bumps.optimizer(model.parameters())
        bumps.training_func(model, optimizer, bumps.training_step, None, steps, None)
        with torch.no_grad():
            for name, mask in masks.items():
                model.get_submodule(name).weight.mul_(mask)

    def score() -> float:
        with torch.no_grad():
            return bumps.evaluating_func(model)

    def put(weights: dict[str, torch.Tensor]) -> None:
        with torch.no_grad():
            for name, value in model.named_parameters():
                value.copy_(weights[name])
            for name, mask in masks.items():
                model.get_submodule(name).weight.mul_(mask)

    def mask(name: str, sparsity: float) -> None:
        weight = trained[f"{name}.weight"]
        order = sorted(range(weight.numel()), key=lambda each: abs(float(weight.flatten()[each])))
        kept = torch.ones(weight.numel())
        kept[order[: int(sparsity * weight.numel())]] = 0
        masks[name] = kept.view_as(weight)
        put(trained)

    masks: dict[str, torch.Tensor] = {}
    found: dict[str, float] = {}
    with rng.fork_rng(rng.derive(SEED, index)):
        train(2)
    early = {name: value.detach().clone() for name, value in model.named_parameters()}
    index += 2
    with rng.fork_rng(rng.derive(SEED, index)):
        train(2)
    trained = {name: value.detach().clone() for name, value in model.named_parameters()}
    reference = score()
    index += 3
    for name in BLOCK["layers"]:
        low, high = 0.0, 1.0
        for _ in range(2):
            mask(name, (low + high) / 2)
            if score() >= reference - BLOCK["within"]:
                low = (low + high) / 2
            else:
                high = (low + high) / 2
            index += 2
        mask(name, low)
        found[name] = low
        index += 1
    put(early)
    index += 1
    with rng.fork_rng(rng.derive(SEED, index)):
        optimizer = bumps.optimizer(model.parameters())
        for _ in range(2):
            bumps.training_func(model, optimizer, bumps.training_step, None, 1, None)
            put({name: value.detach().clone() for name, value in model.named_parameters()})
    return dict(model.state_dict()), found


def same(one: RecipeOutcome, two: RecipeOutcome) -> bool:
    """Weights, masks and steps."""
    weights = all(torch.equal(a, b) for a, b in zip(one.model.parameters(), two.model.parameters(), strict=True))
    masks = all(torch.equal(one.masks[name]["weight"], two.masks[name]["weight"]) for name in ("0", "2"))
    return weights and masks and one.steps == two.steps


def test_it_is_what_one_would_do_by_hand(bumps: ModuleType, tmp_path: Path) -> None:
    """Weights to the bit, and the sparsities of both layers; progress counts the steps of the trainings to come."""
    events: list[Event] = []
    asked: list[None] = []
    outcome = run(bumps, tmp_path, report=events.append, stop=lambda: asked.append(None))
    weights, found = by_hand(bumps)
    assert {name: float((mask["weight"] == 0).double().mean()) for name, mask in outcome.masks.items()} == found
    assert min(found.values()) > 0
    assert len(set(found.values())) == 2  # else a search of one layer would do
    assert all(torch.equal(weights[name], value) for name, value in outcome.model.state_dict().items())
    assert outcome.steps == 6
    assert {event.total for event in events} == {6}
    assert [event.value for event in events if event.message == "reference: done"] == [pytest.approx(-0.2, abs=0.2)]
    assert len(asked) == PLACES


@pytest.mark.parametrize("killed", [False, True])
@pytest.mark.parametrize("place", range(1, PLACES + 1))
def test_it_goes_on_from_any_place(
    bumps: ModuleType, tmp_path: Path, undisturbed: RecipeOutcome, place: int, killed: bool
) -> None:
    """Asked to stop, or gone at once while it keeps a checkpoint behind each step, wherever a run asks whether it
    should stop: what comes out is the same."""
    every = 1 if killed else None
    asked = 0

    def stop() -> None:
        nonlocal asked
        asked += 1
        if asked >= place:
            raise Killed if killed else Stopped

    with pytest.raises((Stopped, Killed)):
        run(bumps, tmp_path, 1, every, stop=stop)
    outcome = run(bumps, tmp_path, 2, every)
    assert same(outcome, undisturbed)
    assert outcome.notes == []
    assert outcome.resumed is (place > (BEFORE if killed else 2))


@pytest.fixture
def undisturbed(bumps: ModuleType) -> RecipeOutcome:
    if not _UNDISTURBED:
        _UNDISTURBED.append(run(bumps))
    return _UNDISTURBED[0]


def test_an_evaluation_that_was_kept_is_not_taken_again(bumps: ModuleType, tmp_path: Path) -> None:
    """Asked to stop in the last evaluation, it goes on behind it: of 1 + 2 * 2 evaluations none comes twice."""
    counts = [0, 0]
    evaluate = bumps.evaluating_func
    attempt = 0

    def counting(model: Any) -> float:
        counts[attempt] += 1
        return evaluate(model)

    def stop() -> None:
        if counts[0] == 4:
            raise Stopped

    bumps.evaluating_func = counting
    with pytest.raises(Stopped):
        run(bumps, tmp_path, stop=stop)
    attempt = 1
    run(bumps, tmp_path, 2)
    assert counts == [4, 1]


def test_what_it_needs_is_asked_for_before_anything_runs(bumps: ModuleType) -> None:
    """An evaluator that trains and one that evaluates; with the path of the stage."""
    import modelpress as mp

    block = sys.modules["search_plugin"].Search.model_validate(BLOCK)
    optimizer = {"optimizers": bumps.optimizer, "training_step": bumps.training_step}
    for evaluator, words in (
        (None, "this stage trains, but there is no evaluator"),
        (mp.TorchEvaluator(evaluating_func=bumps.evaluating_func), "this stage trains, but the evaluator cannot"),
        (mp.TorchEvaluator(bumps.training_func, **optimizer), "goes by scores, but nothing here evaluates"),
    ):
        with pytest.raises(InvalidSpecError, match=words) as raised:
            run_stages(Subject(bumps.net(), evaluator), [Block("search", block)], seed=0)
        assert raised.value.path == "spec.stages[0].search"


def test_a_job_runs_it(modelpress: Callable[..., Any], bumps: ModuleType, tmp_path: Path) -> None:
    """As a CompressionJob: what mp.compress would give, in the record of the stage and in the weights."""
    document: dict[str, Any] = {
        "apiVersion": "modelpress.dev/v1alpha1",
        "kind": "CompressionJob",
        "metadata": {"name": "bumps"},
        "spec": {
            "model": {"entrypoint": "bumps:create"},
            "code": {"path": str(CODE)},
            "stages": [{"search": BLOCK}],
            "benchmark": {"warmup": 0, "iterations": 1},
            "seed": SEED,
        },
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")
    done = modelpress("run", "job.yaml", "--no-progress", plugin=CODE)
    assert done.returncode == 0, done.stderr
    manifest = json.loads(next(tmp_path.glob("modelpress-runs/default/bumps-*/manifest.json")).read_text())
    (stage,) = manifest["metrics"]["stages"]
    assert (stage["method"], stage["layers"], stage["steps"]) == ("search", ["0", "2"], 6)
    weights, found = by_hand(bumps)
    zeros = sum(round(found[name] * weights[f"{name}.weight"].numel()) for name in found)
    assert stage["sparsity"] == pytest.approx(zeros / sum(value.numel() for value in weights.values()))
    assert stage["score"]["default"] == pytest.approx(_score(bumps, weights), abs=1e-6)


def _score(bumps: ModuleType, weights: dict[str, torch.Tensor]) -> float:
    model = bumps.net()
    model.load_state_dict(weights)
    with torch.no_grad():
        return bumps.evaluating_func(model)
