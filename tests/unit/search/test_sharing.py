"""How many first stages trials are bound to have alike."""

from __future__ import annotations

from typing import Any

import pytest

from modelpress.api.v1alpha1 import CompressionSweepSpec
from modelpress.search import strategy_for
from modelpress.search.sharing import shared_stages
from modelpress.trials import History


def sweep(*space: dict[str, Any], trials: int = 10, **fields: Any) -> CompressionSweepSpec:
    """Three stages, of which the parameters change what they name."""
    template = {
        "model": {"entrypoint": "digits:create", "args": {"width": 8}},
        "stages": [
            {"prune": {"algorithm": "l1", "configList": [{"opTypes": ["Conv2d"], "sparsity": 0.5}]}},
            {"finetune": {"epochs": 2}},
            {"finetune": {"epochs": 3}},
        ],
    }
    document = {
        "template": {"spec": template},
        "searchSpace": [{"name": f"p{number}", **parameter} for number, parameter in enumerate(space)],
        "objectives": [{"metric": "default"}],
        "maxTrials": trials,
        **fields,
    }
    return CompressionSweepSpec.model_validate(document)


PRUNE = {"paths": ["/stages/0/prune/algorithm"], "categorical": {"values": ["l1", "l2", "fpgm"]}}
SPARSITY = {"paths": ["/stages/0/prune/configList/0/sparsity"], "float": {"min": 0.1, "max": 0.9}}
MIDDLE = {"paths": ["/stages/1/finetune/epochs"], "int": {"min": 1, "max": 4}}
LAST = {"paths": ["/stages/2/finetune/epochs"], "int": {"min": 1, "max": 9}}
WIDTH = {"paths": ["/model/args/width"], "categorical": {"values": [4, 8]}}


@pytest.mark.parametrize(
    ("space", "trials", "shared"),
    [
        ([LAST], 2, 2),  # nothing changes the first two
        ([MIDDLE], 10, 2),
        ([MIDDLE], 4, 1),  # four forms of the second, one for each trial
        ([PRUNE, LAST], 4, 2),
        ([PRUNE, LAST], 3, 0),
        ([PRUNE, MIDDLE], 12, 1),
        ([PRUNE, MIDDLE], 13, 2),
        ([SPARSITY, LAST], 1000, 0),  # no two trials have one sparsity
        ([WIDTH, LAST], 3, 2),
        ([WIDTH, LAST], 2, 0),
        ([{**LAST, "paths": [*LAST["paths"], *MIDDLE["paths"]]}], 9, 1),
    ],
)
def test_first_stages_with_fewer_forms_than_trials_are_shared(space, trials, shared) -> None:
    assert shared_stages(sweep(*space, trials=trials)) == shared


def test_a_suggestion_says_how_many_unless_the_sweep_keeps_none() -> None:
    assert strategy_for(sweep(LAST)).suggest(0, History(), {}).shared_stages == 2
    assert strategy_for(sweep(LAST, stageCache=False)).suggest(0, History(), {}).shared_stages == 0
