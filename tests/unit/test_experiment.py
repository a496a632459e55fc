"""mp.SearchSpace and mp.Experiment: what they write is a sweep like one written by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import modelpress as mp
from modelpress.api.errors import SpecError
from modelpress.api.load import load_file
from modelpress.api.semantic import sweep_problems

PRUNE = {"prune": {"algorithm": "l1", "config_list": [{"op_types": ["Conv2d"], "sparsity": 0.5}]}}
QUANTIZE = {"quantize": {"algorithm": "weight_only", "configList": [{"opTypes": ["Linear"], "quantBits": 8}]}}
TEMPLATE: dict[str, Any] = {"model": {"entrypoint": "digits:create"}, "stages": [PRUNE, {"finetune": {"epochs": 1}}]}


def space() -> mp.SearchSpace:
    """One of two recipes, each with parameters of its own, one of them within a condition."""
    found = mp.SearchSpace()
    parts = found.add_choice("recipe", "/stages", {"pruned": [*TEMPLATE["stages"]], "quantized": [QUANTIZE]})
    pruned = parts["pruned"].add_float("sparsity", "/stages/0/prune/configList/0/sparsity", 0.2, 0.8, step=0.1)
    pruned.add_categorical("algorithm", ["/stages/0/prune/algorithm"], ["l1", "l2"])
    pruned.where("algorithm", "l2").add_int("epochs", "/stages/1/finetune/epochs", 1, 8, log=True)
    parts["quantized"].add_categorical("bits", "/stages/0/quantize/configList/0/quantBits", [4, 8])
    return found


def test_conditions_come_from_where_a_parameter_is_added() -> None:
    """Branches of a choice, and conditions within them, all hold together."""
    assert [(item["name"], item.get("when")) for item in space()] == [
        ("recipe", None),
        ("sparsity", {"recipe": ["pruned"]}),
        ("algorithm", {"recipe": ["pruned"]}),
        ("epochs", {"recipe": ["pruned"], "algorithm": ["l2"]}),
        ("bits", {"recipe": ["quantized"]}),
    ]


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    """dumps gives a file whose sweep is the experiment's, valid in every respect."""
    made = mp.Experiment(
        "digits",
        TEMPLATE,
        space(),
        objectives=["default", {"metric": "macs", "goal": "minimize"}],
        max_trials=12,
        concurrency=3,
        tuner="nsga2",
        seed=7,
        constraints=[{"metric": "default", "max_relative_loss": 0.02}],
    )
    (tmp_path / "sweep.yaml").write_text(made.dumps())
    (loaded,) = load_file(tmp_path / "sweep.yaml")
    spec = loaded.obj.spec
    assert sweep_problems(spec) == []
    assert (spec.parallelism, spec.max_trials, spec.algorithm.name, spec.algorithm.seed) == (3, 12, "nsga2", 7)
    assert [item.metric for item in spec.objectives] == ["default", "macs"]
    assert spec.constraints[0].max_relative_loss == 0.02
    assert spec.search_space[3].int.log
    assert spec.template.spec.stages[0].prune.config_list[0].op_types == ["Conv2d"]
    assert loaded.obj.to_dict()["spec"] == made.to_dict()["spec"]


def test_what_is_wrong_is_said_at_once() -> None:
    """With the field, as for a file."""
    with pytest.raises(SpecError, match=r"spec\.algorithm\.name"):
        mp.Experiment("digits", TEMPLATE, space(), tuner="bayes")
