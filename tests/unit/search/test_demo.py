"""The example's sweep: 20 seeds of it try no recipe twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from modelpress.api.load import load_dict
from modelpress.api.v1alpha1 import CompressionJob, CompressionSweep
from modelpress.search import strategy_for
from modelpress.trials import HISTORY_ANNOTATION, PARAMETERS_ANNOTATION, TRIAL_LABEL, History

SWEEP = Path(__file__).parents[3] / "examples" / "digits" / "sweep.yaml"
BASELINE = {"default": 0.98, "macs": 1000.0}


def finished(spec: CompressionJob, number: int, parameters: dict[str, Any], history: History) -> CompressionJob:
    """A trial with metrics as the example's come out: the more is gone, the lower the score."""
    sparsity, rounds = float(parameters["sparsity"]), int(parameters["rounds"])
    score = 0.98 - 0.02 * sparsity**3 + 0.001 * rounds + (0.001 if parameters["algorithm"] == "l2" else 0.0)
    compressed = {"default": score, "macs": 1000.0 * (1 - sparsity) ** 1.5}
    meta = {
        "name": f"digits-{number:05d}",
        "labels": {TRIAL_LABEL: str(number)},
        "annotations": {
            PARAMETERS_ANNOTATION: json.dumps(parameters, sort_keys=True),
            HISTORY_ANNOTATION: history.encode(),
        },
    }
    status = {"phase": "Succeeded", "metrics": {"baseline": BASELINE, "compressed": compressed}}
    return CompressionJob.model_validate({"metadata": meta, "spec": spec.to_dict(), "status": status})


@pytest.mark.parametrize("algorithm", ["tpe", "random", "grid"])
def test_no_recipe_comes_twice_on_twenty_seeds(algorithm: str) -> None:
    """10 trials, two at a time, and 54 of the space's 54 where they are asked for."""
    document = yaml.safe_load(SWEEP.read_text())
    for seed in range(20):
        document["spec"]["algorithm"] = {"name": algorithm, "seed": seed}
        sweep = load_dict(document)
        assert isinstance(sweep, CompressionSweep)
        strategy = strategy_for(sweep.spec)
        trials: dict[int, CompressionJob] = {}
        recipes = set()
        for number in range(10 if seed else 60):
            history = History(tuple(range(number - 1)), tuple(range(max(0, number - 1), number)))
            found = strategy.suggest(number, history, trials)
            if found.exhausted:
                break
            assert found.spec is not None
            recipes.add(json.dumps(found.spec.to_dict(), sort_keys=True))
            trials[number] = finished(found.spec, number, dict(found.parameters), history)
        assert len(recipes) == len(trials) == (10 if seed else 54)
