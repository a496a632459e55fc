"""A sweep over a two-stage recipe, and trials of it that are finished without running."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable
from typing import Any

import pytest

from modelpress.api.v1alpha1 import (
    CompressionJob,
    CompressionJobStatus,
    CompressionSweepSpec,
    Condition,
    JobMeta,
    MetricsPair,
)
from modelpress.search.resolve import resolve
from modelpress.trials import HISTORY_ANNOTATION, PARAMETERS_ANNOTATION, TRIAL_LABEL, History

SPACE: list[dict[str, Any]] = [
    {"name": "algorithm", "paths": ["/stages/0/prune/algorithm"], "categorical": {"values": ["l1", "l2", "random"]}},
    {
        "name": "sparsity",
        "paths": ["/stages/0/prune/configList/0/sparsity"],
        "float": {"min": 0.1, "max": 0.9, "step": 0.1},
    },
    {
        "name": "epochs",
        "paths": ["/stages/1/finetune/epochs"],
        "int": {"min": 1, "max": 4},
        "when": {"algorithm": ["l1", "l2"]},
    },
]
TEMPLATE: dict[str, Any] = {
    "model": {"entrypoint": "digits:create"},
    "stages": [
        {"prune": {"algorithm": "l1", "configList": [{"opTypes": ["Conv2d"], "sparsity": 0.5}]}},
        {"finetune": {"epochs": 2}},
    ],
    "metrics": {"perplexity": {"goal": "minimize"}},
    "constraints": [{"metric": "macs", "maxRatio": 0.95}],
}


@pytest.fixture
def make_sweep() -> Callable[..., CompressionSweepSpec]:
    """make_sweep(algorithm, objectives=..., **fields): a sweep's spec with seed 3."""

    def make(algorithm: str = "random", *, objectives: tuple[str, ...] = ("default",), **fields: Any) -> Any:
        document = {
            "template": {"spec": TEMPLATE},
            "searchSpace": SPACE,
            "objectives": [{"metric": metric} for metric in objectives],
            "constraints": [{"metric": "default", "maxRelativeLoss": 0.02}],
            "algorithm": {"name": algorithm, "seed": 3},
            "maxTrials": 1000,
        }
        return CompressionSweepSpec.model_validate({**document, **fields})

    return make


@pytest.fixture
def make_trial() -> Callable[..., CompressionJob]:
    """make_trial(spec, number, parameters, ...): a trial of the sweep, succeeded with `compressed` unless told."""

    def make(
        spec: CompressionSweepSpec,
        number: int,
        parameters: dict[str, Any],
        *,
        compressed: dict[str, float] | None = None,
        baseline: dict[str, float] | None = None,
        phase: Any = "Succeeded",
        history: History | None = None,
        met: bool | str | None = None,
    ) -> CompressionJob:
        condition = (
            Condition(
                type="ConstraintsMet",
                status="Unknown" if met == "uncertain" else "True" if met else "False",
                reason="Judged",
                last_transition_time=dt.datetime(2026, 1, 1, tzinfo=dt.UTC),
            )
            if met is not None
            else None
        )
        pair = MetricsPair(
            baseline={"default": 1.0, "macs": 1000.0, "latencyMs": 2.0} if baseline is None else baseline,
            compressed=compressed or {},
        )
        return CompressionJob(
            metadata=JobMeta.model_validate(
                {
                    "name": f"digits-{number:05d}",
                    "labels": {TRIAL_LABEL: str(number)},
                    "annotations": {
                        PARAMETERS_ANNOTATION: json.dumps(parameters, sort_keys=True),
                        HISTORY_ANNOTATION: (history or History()).encode(),
                    },
                }
            ),
            spec=resolve(spec, parameters),
            status=CompressionJobStatus(phase=phase, metrics=pair, conditions=[condition] if condition else []),
        )

    return make
