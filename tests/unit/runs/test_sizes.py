"""prune.budgets: several sizes in one job, each an artifact, nested, and one of them the job's own."""

from __future__ import annotations

import copy
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import modelpress as mp
from modelpress.api.errors import SpecError
from modelpress.api.v1alpha1 import CompressionJobSpec
from modelpress.request import RunRequest
from modelpress.store import manifest, open_store
from modelpress_runner.errors import InvalidSpecError
from modelpress_runner.process.progress import silent
from modelpress_runner.process.stopping import StopFlag
from modelpress_runner.runs import trial
from modelpress_runner.runtime import rng

CODE = """
import torch
from torch import nn
import modelpress as mp

def create():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2))
    x = torch.randn(16, 4)
    evaluate = lambda model: float(sum(parameter.numel() for parameter in model.parameters()))
    return mp.Subject(model, mp.TorchEvaluator(evaluating_func=evaluate, dummy_input=x))
"""
RATIOS = (0.75, 0.5, 0.25)
BUDGETS = [{"metric": "parameters", "maxRatio": ratio} for ratio in RATIOS]


def run(folder: Path, budgets: list[dict[str, Any]], attempt: int = 1, **spec: Any) -> Any:
    (folder / "several_sizes.py").write_text(CODE)
    given = {
        "model": {"entrypoint": "several_sizes:create"},
        "stages": [{"prune": {"budgets": budgets, "configList": [{"opNames": ["0", "2"]}]}}],
        "benchmark": {"warmup": 0, "iterations": 1},
        "store": {"uri": str(folder / "store")},
        **spec,
    }
    request = RunRequest(
        purpose="trial",
        namespace="default",
        name="sizes",
        uid="0" * 8,
        run_uid=f"{attempt}" * 8,
        attempt=attempt,
        root="root",
        prefix="root",
        spec=CompressionJobSpec.model_validate(given),
        code_path=str(folder),
    )
    with rng.fork_rng():
        return trial.run(request, open_store(str(folder / "store")), silent, StopFlag())


def widths(model: nn.Module) -> list[int]:
    return [model[0].out_features, model[2].out_features]


def test_each_size_is_an_artifact_and_the_smallest_that_is_good_enough_is_the_jobs(tmp_path: Path) -> None:
    """The score is the number of parameters, 1282; the constraint lets the first two be. A second attempt, to which two
    sizes were left, makes the third alone, to the same bytes."""
    constraint = {"metric": "default", "min": 0.4 * 1282}
    result = run(tmp_path, BUDGETS, constraints=[constraint])
    assert result.message.startswith("size 2 of 3")
    assert result.constraints_met
    dense = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2))
    uri = tmp_path / "store" / "root"
    models = [mp.load(uri / "sizes" / f"{number:02d}", into=copy.deepcopy(dense)) for number in range(3)]
    for model, ratio in zip(models, RATIOS, strict=True):
        assert sum(parameter.numel() for parameter in model.parameters()) <= ratio * 1282
    for larger, smaller in itertools.pairwise(models):
        rows = {tuple(row.tolist()) for row in larger[0].weight}
        assert {tuple(row.tolist()) for row in smaller[0].weight} <= rows
        assert widths(smaller) < widths(larger)
    own = mp.load(uri, into=copy.deepcopy(dense))
    assert all(torch.equal(a, b) for a, b in zip(own.parameters(), models[1].parameters(), strict=True))
    store = open_store(str(tmp_path / "store"))
    standing, digest = manifest.read(store, "root")
    assert result.manifest_digest == digest
    record = json.loads(store.get_bytes(f"root/{standing.find('sizes.json').path}"))["sizes"]
    assert [each["best"] for each in record] == [False, True, False]
    assert [each["budget"] for each in record] == BUDGETS
    assert [each["constraintsMet"] for each in record] == [True, True, False]
    assert record[0]["manifestDigest"] == manifest.read(store, "root/sizes/00")[1]
    before = manifest.read(store, "root/sizes/02")[0]
    store.delete("root/manifest.json")
    store.delete_prefix("root/sizes/02")
    kept = manifest.read(store, "root/sizes/01")[1]
    again = run(tmp_path, BUDGETS, attempt=2, constraints=[constraint])
    assert again.compressed["parameters"] == result.compressed["parameters"]
    assert manifest.read(store, "root/sizes/01")[1] == kept
    after = manifest.read(store, "root/sizes/02")[0]
    assert after.find("model.safetensors").sha256 == before.find("model.safetensors").sha256


@pytest.mark.parametrize(
    ("prune", "message"),
    [
        ({"budgets": [*BUDGETS[1:], BUDGETS[0]]}, r"budgets\[2\]: it is not below budgets\[1\]"),
        ({"budgets": [BUDGETS[0], {"metric": "macs", "maxRatio": 0.5}]}, "give a maxRatio of parameters"),
        ({"budgets": BUDGETS, "budget": BUDGETS[0]}, "budget and budgets are two ways to say how much"),
        ({"budgets": BUDGETS, "sparsity": 0.5}, "the budget says how much goes"),
    ],
)
def test_what_is_wrong_in_a_recipe_is_said(prune: dict[str, Any], message: str) -> None:
    """Before anything runs; and a call in this process has one result."""
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    with pytest.raises(SpecError, match=message):
        mp.compress(net, [{"prune": {**prune, "configList": [{"opNames": ["0"]}]}}], None, torch.ones(2, 4))


def test_a_call_has_one_result() -> None:
    """mp.compress takes one budget."""
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    stage = {"prune": {"budgets": BUDGETS, "configList": [{"opNames": ["0"]}]}}
    with pytest.raises(InvalidSpecError, match="several sizes are artifacts of a job"):
        mp.compress(net, [stage], None, torch.ones(2, 4))
