"""First stages that several runs have alike: run once, equal for all, passed over where they are of no use."""

from __future__ import annotations

import pytest
import torch
from small_task import Task

from modelpress.api.v1alpha1 import Stage
from modelpress.store import open_store
from modelpress_runner.engine.checkpoint import Checkpointer
from modelpress_runner.engine.run import run_stages
from modelpress_runner.engine.stage_cache import StageCache
from modelpress_runner.process.stopping import Stopped
from modelpress_runner.subject.subject import Subject

PRUNE = {
    "prune": {
        "algorithm": "l1",
        "sparsity": 0.5,
        "configList": [{"opNames": ["0"]}],
        "schedule": {"type": "linear", "rounds": 2, "train": {"epochs": 1}},
    }
}


def recipe(last: int, first: int = 2) -> list[Stage]:
    """Prune and train in two rounds, finetune for two epochs, and once more for `last`."""
    found = [PRUNE, {"finetune": {"epochs": first}}, {"name": "more", "finetune": {"epochs": last}}]
    return [Stage.model_validate(stage) for stage in found]


class Runs:
    """Runs on fresh models of one store, and what their training functions were asked for."""

    def __init__(self, folder) -> None:
        self.store = open_store(folder)

    def run(self, stages, *, shared: int = 2, identity: str = "dense", cached: bool = True, **fields):
        task = Task()
        cache = StageCache(self.store, "sweep", identity, shared) if cached else None
        outcome = run_stages(
            Subject(task.model, task.evaluator(), task.x[:1]), stages, seed=5, cache=cache, scores=True, **fields
        )
        return outcome, task.calls


@pytest.fixture
def runs(tmp_path) -> Runs:
    return Runs(str(tmp_path / "store"))


def weights(outcome) -> dict[str, torch.Tensor]:
    return dict(outcome.model.state_dict())


def without_times(outcome) -> list[dict[str, object]]:
    return [{k: v for k, v in record.items() if k not in ("seconds", "cached")} for record in outcome.stages]


def test_a_stage_runs_once_and_what_follows_is_the_same_as_without_a_cache(runs) -> None:
    _, calls = runs.run(recipe(last=1))
    assert [epochs for _, epochs in calls] == [1, 1, 2, 1]
    second, calls = runs.run(recipe(last=3))
    assert [epochs for _, epochs in calls] == [3]
    alone, _ = runs.run(recipe(last=3), cached=False)
    torch.testing.assert_close(weights(second), weights(alone), rtol=0, atol=0)
    assert [type(edit) for edit in second.edits] == [type(edit) for edit in alone.edits]
    assert [edit.to_plain() for edit in second.edits] == [edit.to_plain() for edit in alone.edits]
    assert without_times(second) == without_times(alone)
    assert [record.get("cached") for record in second.stages] == [True, True, None]
    assert (second.steps, second.executed, second.resumed) == (alone.steps, 12, False)


def test_the_longest_beginning_that_is_there_counts(runs) -> None:
    runs.run(recipe(last=1, first=2))
    other, calls = runs.run(recipe(last=1, first=3))
    assert [epochs for _, epochs in calls] == [3, 1]
    assert [record.get("cached") for record in other.stages] == [True, None, None]


@pytest.mark.parametrize("change", [{"identity": "another dense model"}, {"shared": 0}, {"cached": False}])
def test_what_it_is_not_good_for_runs_as_ever(runs, change) -> None:
    runs.run(recipe(last=1))
    _, calls = runs.run(recipe(last=1), **change)
    assert [epochs for _, epochs in calls] == [1, 1, 2, 1]


def test_only_what_others_have_use_for_is_kept(runs) -> None:
    runs.run(recipe(last=1), shared=2)
    assert len({info.path.split("/")[2] for info in runs.store.list("sweep/stages")}) == 2
    before = runs.store.list("")
    runs.run(recipe(last=1), shared=1)
    assert runs.store.list("") == before
    runs.run(recipe(last=1), shared=3)  # trials of a second rung go on behind the whole recipe
    assert len({info.path.split("/")[2] for info in runs.store.list("sweep/stages")}) == 3


def test_a_state_that_cannot_be_read_is_passed_over(runs) -> None:
    runs.run(recipe(last=1))
    for info in runs.store.list("sweep/stages"):
        if info.path.endswith(".pt"):
            runs.store.put_bytes(info.path, b"no tensors")
    _, calls = runs.run(recipe(last=1))
    assert [epochs for _, epochs in calls] == [1, 1, 2, 1]


def test_a_run_goes_on_from_its_own_checkpoint_where_that_is_further(runs) -> None:
    """Stopped in its last stage, a run begins behind what both have, and within its own training."""
    runs.run(recipe(last=1))
    asked = 0

    def stop() -> None:
        nonlocal asked
        asked += 1
        if asked > 6:
            raise Stopped

    with pytest.raises(Stopped):
        runs.run(recipe(last=3), checkpointer=Checkpointer(runs.store, "trial", "same", 1, every=1), stop=stop)
    again, _ = runs.run(recipe(last=3), checkpointer=Checkpointer(runs.store, "trial", "same", 2, every=1))
    alone, _ = runs.run(recipe(last=3), cached=False)
    assert again.resumed
    assert again.training["repeated"] == 0
    torch.testing.assert_close(weights(again), weights(alone), rtol=0, atol=0)
