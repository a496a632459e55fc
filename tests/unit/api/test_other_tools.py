"""Keys and names of other tools: the error says what they are here, and never to remove what was to be spared."""

from __future__ import annotations

from typing import Any

import pytest

import modelpress as mp
from modelpress.api.errors import SpecError
from modelpress.api.load import load_dict
from modelpress.api.v1alpha1 import PYTHON_SPELLING, Prune


def _problem(stage: dict[str, Any], *, python: bool) -> str:
    spec = {"model": {"entrypoint": "a:b"}, "stages": [{"prune": stage}]}
    job = {"apiVersion": "modelpress.dev/v1alpha1", "kind": "CompressionJob", "metadata": {"name": "a"}, "spec": spec}
    with pytest.raises(SpecError) as raised:
        load_dict(job, python_spelling=python)
    [problem] = raised.value.problems
    return str(problem)


@pytest.mark.parametrize("python", [True, False])
@pytest.mark.parametrize(
    ("key", "value", "fix"),
    [
        ("excluded_op_names", ["a.*"], "an entry of its own in configList: {opNamesRe: [...], exclude: true}"),
        ("exclude_op_names", ["a"], "an entry of its own in configList: {opNames: [...], exclude: true}"),
        ("start_step", 1, "it belongs into schedule: {startStep, endStep, frequency}"),
        ("sparsity_decay_type", "exp", "schedule: {type: exp}"),
        ("total_sparsity", 0.5, "write it as sparsity, with scope: global"),
        ("expand_op_names", True, "write one entry for each layer"),
    ],
)
@pytest.mark.parametrize("of_entry", [True, False])
def test_keys(key: str, value: Any, fix: str, python: bool, of_entry: bool) -> None:
    """Of an entry and of the stage, in Python and in YAML."""
    stage: dict[str, Any] = {"configList": [{"sparsity": 0.5}]}
    (stage["configList"][0] if of_entry else stage)[key] = value
    text = _problem(stage, python=python)
    assert fix in text
    assert "remove it" not in text


@pytest.mark.parametrize("of_entry", [True, False])
@pytest.mark.parametrize(
    ("name", "fix"),
    [
        ("l1_filter", "did you mean l1?"),
        ("L2Filter_Pruner", "did you mean l2?"),
        ("taylorfo", "did you mean taylor?"),
        ("taylor_fo_weight_filter", "did you mean taylor?"),
        ("agp", "schedule: {type: agp}"),
        ("Activation-APoZ-Rank-Filter", "did you mean apoz?"),
        ("sensitivity_pruner", "write search: {type: sensitivity}"),
        ("lottery_ticket", "write schedule: {type: exp, rounds: 5, rewindTo: 0, train: {epochs: 1}}"),
        ("admm", "write sparsify: {penalty: admm, epochs: 3}"),
        ("snip_momentum_progressive", "write algorithm: snip_momentum, and progressiveSteps: 4 in its schedule"),
        ("foo", "write one of them"),
    ],
)
def test_algorithms(name: str, fix: str, of_entry: bool) -> None:
    """What other tools call the algorithms."""
    entry = {"sparsity": 0.5, **({"algorithm": name} if of_entry else {})}
    stage = {"configList": [entry], **({} if of_entry else {"algorithm": name})}
    assert _problem(stage, python=False).endswith(fix) or fix in _problem(stage, python=False)


def test_a_search_space_is_sent_where_it_belongs() -> None:
    """A mapping in a number's place."""
    for value in ({"_type": "uniform", "_value": [0.01, 0.99]}, {"range": [0.1, 0.9], "type": "float"}):
        assert "searchSpace of a CompressionSweep" in _problem({"configList": [{"sparsity": value}]}, python=False)


def test_an_entry_takes_pruning_type_as_the_stage_does() -> None:
    """In Python."""
    import torch

    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    entry = {"pruning_type": "l2", "op_names": ["0"], "target_sparsity": 0.5}
    assert mp.compress(model, [{"prune": {"config_list": [entry]}}], None, torch.ones(1, 4)).model[0].out_features == 2


@pytest.mark.parametrize(
    ("spelled", "name"),
    [("taylorfo", "taylor"), ("L1Filter_Pruner", "l1"), ("activation_apoz_rank_filter", "apoz"), ("level", "level")],
)
def test_python_takes_them_for_ours(spelled: str, name: str) -> None:
    """Of the stage and of an entry; what is kept has the name."""
    block = {"algorithm": spelled, "config_list": [{"sparsity": 0.5, "pruning_type": spelled}]}
    prune = Prune.model_validate(block, context=PYTHON_SPELLING)
    assert prune.to_dict()["algorithm"] == prune.to_dict()["configList"][0]["algorithm"] == name


@pytest.mark.parametrize("key", ["max_sparsity_ratio_per_op", "max_sparsity_ratio_per_layer", "max_sparse_ratio"])
def test_bounds_of_other_tools(key: str) -> None:
    """In Python they are taken, of the stage and of an entry; YAML is told the name."""
    prune = Prune.model_validate({key: 0.9, "config_list": [{"sparsity": 0.5, key: 0.8}]}, context=PYTHON_SPELLING)
    assert (prune.max_sparsity, prune.config_list[0].max_sparsity) == (0.9, 0.8)
    stage = {"configList": [{"sparsity": 0.5}], key: 0.9}
    assert "write maxSparsity" in _problem(stage, python=False)
