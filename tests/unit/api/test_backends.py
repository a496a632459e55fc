"""What backends do not make is refused before anything runs, with the field and what to write."""

from __future__ import annotations

from typing import Any

import pytest

from modelpress.api.load import load_dict
from modelpress.api.semantic import job_problems
from modelpress.api.v1alpha1 import CompressionJob, algorithms, backends

ROWS = algorithms.algorithms("quantize")


def said(block: dict[str, Any], **spec: Any) -> list[str]:
    """`path | message | fix` of every problem of a job with one quantize stage."""
    stage = {"quantize": {"configList": [{"opTypes": ["default"]}], **block}}
    document = {
        "apiVersion": "modelpress.dev/v1alpha1",
        "kind": "CompressionJob",
        "metadata": {"name": "few-bits"},
        "spec": {"model": {"entrypoint": "digits:create"}, "stages": [stage], **spec},
    }
    job = load_dict(document)
    assert isinstance(job, CompressionJob)
    return [f"{each.path} | {each.message} | {each.fix}" for each in job_problems(job.spec)]


@pytest.mark.parametrize(
    "backend", [each for each in backends.backends() if each.name != "torch"], ids=lambda b: b.name
)
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_method_that_a_backend_does_not_make(backend: backends.Backend, row: algorithms.Algorithm) -> None:
    """Those of the table are taken as they stand there; all others are refused, and something is told that works."""
    block = {"backend": backend.name, "algorithm": row.name} | ({"epochs": 1} if row.trains else {})
    found = said(block, target={"format": backend.format})
    if backend.way(row) is not None:
        assert [each for each in found if "quantize" in each and "huggingFace" not in each] == []
        return
    first = f"spec.stages[0].quantize.algorithm | {backend.name} makes nothing of {row.name} | use "
    assert [each for each in found if each.startswith(first)] != []
    assert "backend torch" in found[0]


@pytest.mark.parametrize(
    ("block", "spec", "expected"),
    [
        (
            {"backend": "onnxruntime"},
            {},
            "stages[0].quantize.backend | what onnxruntime makes is measured as onnxruntime",
        ),
        (
            {"backend": "onnxruntime"},
            {"target": {"format": "onnxruntime"}, "export": {"formats": ["openvino"]}},
            "export.formats | what onnxruntime makes of ptq_static has no form as openvino | leave openvino out, or "
            "use backend torch or openvino",
        ),
        (
            {"algorithm": "ptq_dynamic"},
            {"target": {"format": "onnxruntime"}},
            "target.format | what torch makes of ptq_dynamic has no form as onnxruntime | use eager or pt2, or use "
            "backend onnxruntime",
        ),
        (
            {"algorithm": "bnn", "epochs": 1},
            {"export": {"formats": ["onnx"]}},
            "export.formats | what torch makes of bnn has no form as onnx | leave onnx out",
        ),
        (
            {"backend": "openvino", "quantBits": 4},
            {"target": {"format": "openvino"}},
            "quantize.quantBits | openvino takes 8 bits for the weight of ptq_static, not 4 | write 8",
        ),
        (
            {"backend": "openvino", "algorithm": "weight_only", "granularity": "tensor"},
            {"target": {"format": "openvino"}},
            "quantize.granularity | openvino has no scale for each tensor of weight_only | write channel or group",
        ),
        (
            {"backend": "onnxruntime", "quantDtype": {"weight": "uint8"}},
            {"target": {"format": "onnxruntime"}},
            "quantize.quantDtype | onnxruntime takes symmetric numbers for the weight of ptq_static | write int8",
        ),
        (
            {"backend": "onnxruntime", "calibration": {"observer": "mse"}},
            {"target": {"format": "onnxruntime"}},
            "calibration.observer | onnxruntime knows no mse | write minMax, ema, percentile or kl, or use backend",
        ),
        (
            {"backend": "onnxruntime", "configList": [{"opTypes": ["Linear"], "quantBits": 8}]},
            {"target": {"format": "onnxruntime"}},
            "configList[0].quantBits | onnxruntime quantizes all layers that are selected alike | say it of the whole",
        ),
        (
            {"backend": "compressed-tensors", "algorithm": "weight_only"},
            {"target": {"format": "transformers"}},
            "quantize.backend | only a model that is given as huggingFace has the folder",
        ),
    ],
)
def test_what_does_not_go_together(block: dict[str, Any], spec: dict[str, Any], expected: str) -> None:
    """A format that does not hold the result, numbers that the backend does not know."""
    found = said(block, **spec)
    assert [each for each in found if expected in each] != [], found


def test_what_a_runtime_quantizes_comes_last() -> None:
    """It takes the model as it is at the end."""
    block = {"backend": "onnxruntime", "configList": [{"opTypes": ["Linear"]}]}
    half = {"mixedPrecision": {"dtype": "bf16"}}
    document = {
        "apiVersion": "modelpress.dev/v1alpha1",
        "kind": "CompressionJob",
        "metadata": {"name": "few-bits"},
        "spec": {
            "model": {"entrypoint": "digits:create"},
            "stages": [{"quantize": block}, half],
            "target": {"format": "onnxruntime"},
        },
    }
    job = load_dict(document)
    assert isinstance(job, CompressionJob)
    assert any("put this stage last" in each.fix for each in job_problems(job.spec))
