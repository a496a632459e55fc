"""Searches that begin with what earlier sweeps found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from simulation import World, run_once, sweep_dict

from modelpress.api.semantic import sweep_problems
from modelpress.search import replay

BEST = 0.3


def warm(trials: int = 12, **changes: Any) -> dict[str, Any]:
    """Trials along the range of sparsities, the best of them at 0.3."""
    points = [round(0.1 + 0.7 * n / (trials - 1), 3) for n in range(trials)]
    metrics = [{"default": round(1 - abs(point - BEST), 6), "macs": 1000 * (1 - point)} for point in points]
    listed = [{"parameters": {"sparsity": p}, "metrics": m} for p, m in zip(points, metrics, strict=True)]
    return {"baseline": {"default": 1.0, "macs": 1000.0}, "trials": listed, **changes}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


@pytest.mark.parametrize("name", ["tpe", "nsga2", "cmaes"])
def test_the_first_trials_are_where_earlier_ones_were_good(tmp_path: Path, name: str) -> None:
    """Six trials lie near the best of earlier ones by their mean; they replay, and with constraints keep to them."""
    given = {"algorithm": {"name": name, "seed": 7, "warmStart": warm(32)}}
    cluster = run_once(World(tmp_path), sweep_dict(trials=6, parallelism=1, **given))
    points = [trial.spec.stages[0].prune.config_list[0].sparsity for trial in cluster.trials]
    cold = run_once(World(tmp_path / "cold"), sweep_dict(trials=6, parallelism=1, algorithm={"name": name, "seed": 7}))
    others = [trial.spec.stages[0].prune.config_list[0].sparsity for trial in cold.trials]
    assert sum(abs(point - BEST) for point in points) < sum(abs(point - BEST) for point in others)
    assert replay(cluster.root.spec, cluster.trials) == []


@pytest.mark.parametrize(
    ("name", "given", "path", "part"),
    [
        ("qmc", {}, "spec.algorithm.warmStart", "qmc does not learn"),
        (
            "tpe",
            {"trials": [{"parameters": {"other": 1}, "metrics": {"default": 1}}]},
            "spec.algorithm.warmStart",
            "none",
        ),
    ],
)
def test_what_teaches_nothing_is_refused(
    make_sweep: Callable[..., Any], name: str, given: dict[str, Any], path: str, part: str
) -> None:
    """A sampler that does not learn, and trials of which none is a point of the space."""
    spec = make_sweep("random")
    document = yaml.safe_load(yaml.safe_dump(spec.to_dict()))
    trial = {"parameters": {"algorithm": "l1", "sparsity": 0.5, "epochs": 1}, "metrics": {"default": 0.9}}
    document["algorithm"] = {"name": name, "warmStart": {"trials": [trial], **given}}
    problems = sweep_problems(type(spec).model_validate(document))
    assert [problem.path for problem in problems] == [path]
    assert part in str(problems[0])
