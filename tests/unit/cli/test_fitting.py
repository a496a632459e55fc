"""Whether a trial fits a node: the measured memory beside what nodes have, in sentences that name the field."""

from __future__ import annotations

from typing import Any

import pytest

from modelpress.api.v1alpha1 import CompressionJobSpec
from modelpress.cli.fitting import unplaced
from modelpress.local.estimate import Estimate

GIB = 2**30


def node(memory: str, cpu: str = "8", gpus: str | None = None, **spec: Any) -> dict[str, Any]:
    """A node as the API server has it."""
    device = {"nvidia.com/gpu": gpus} if gpus else {}
    return {
        "metadata": {"name": "n", "labels": {"pool": "gpu" if gpus else "cpu"}},
        "spec": spec,
        "status": {"allocatable": {"memory": memory, "cpu": cpu, **device}},
    }


NODES = [node("16384Mi"), node("32Gi", cpu="7900m", gpus="1"), node("512Gi", unschedulable=True)]


@pytest.mark.parametrize(
    ("takes", "runner", "expected"),
    [
        (20 * GIB, {}, []),
        (
            40 * GIB,
            {},
            [
                "spec.runner.resources.requests.memory: a trial takes 40.0Gi of memory, and no node has more than "
                "32.0Gi of memory; use a smaller batch or model, or a larger node"
            ],
        ),
        (
            GIB,
            {"resources": {"requests": {"memory": "48Gi", "cpu": "9"}}},
            [
                "spec.runner.resources.requests.memory: a trial takes 48.0Gi of memory, and no node has more than "
                "32.0Gi of memory; use a smaller batch or model, or a larger node",
                "spec.runner.resources.requests.cpu: a trial takes 9 processors, and no node has more than 8 "
                "processors; ask for less",
            ],
        ),
        (GIB, {"gpus": 2}, ["spec.runner.gpus: a trial takes 2 GPUs, and no node has more than 1 GPUs; ask for less"]),
        (
            20 * GIB,
            {"resources": {"requests": {"cpu": "8"}}},
            ["spec.runner: no node has 8 processors and 20.0Gi of memory together; ask for less of one, or add a node"],
        ),
        (
            GIB,
            {"nodeSelector": {"pool": "tpu"}},
            ["spec.runner.nodeSelector: no node of the cluster that takes pods has these labels; correct it"],
        ),
        (20 * GIB, {"nodeSelector": {"pool": "cpu"}}, ["spec.runner.resources.requests.memory: a trial takes 20.0Gi"]),
    ],
)
def test_a_trial_that_no_node_takes_is_refused(takes: int, runner: dict[str, Any], expected: list[str]) -> None:
    """Memory as measured or asked for, processors and GPUs as asked for, on nodes that take pods."""
    spec = CompressionJobSpec.model_validate(
        {
            "model": {"entrypoint": "digits:create"},
            "stages": [{"prune": {"configList": [{"opTypes": ["Conv2d"], "sparsity": 0.5}]}}],
            "runner": runner,
        }
    )
    told = Estimate(1.0, 0.0, takes, None, (), {}, {}, ())
    found = unplaced("spec", spec, told, NODES)
    assert len(found) == len(expected)
    assert all(sentence.startswith(start) for sentence, start in zip(found, expected, strict=True)), found
