"""Weights of a recipe from a real S3 server, by the endpoint of the recipe's store, and a large object in parts."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from modelpress.api.v1alpha1 import CompressionJobSpec
from modelpress.store import open_store
from modelpress_runner.errors import InvalidModelError, InvalidSpecError
from modelpress_runner.export import state
from modelpress_runner.process.stopping import StopFlag
from modelpress_runner.runs.dense import Dense, DenseCache
from modelpress_runner.subject.entrypoint import Entrypoint


def create() -> tuple[nn.Module, Any]:
    """A layer of random weights and its score."""
    return nn.Linear(3, 2), lambda model: float(model.weight.sum())


def obtain(s3: Any, bucket: str, uri: str, **weights: str) -> Dense:
    """The dense model of a job that writes to the bucket; no other place says where the server is."""
    spec = CompressionJobSpec.model_validate(
        {
            "model": {"entrypoint": "m:create", "weights": {"uri": uri, **weights}},
            "stages": [{"finetune": {"epochs": 1}}],
            "store": {"uri": f"s3://{bucket}/out", "endpoint": s3.endpoint},
        }
    )
    store = open_store(f"s3://{bucket}/out", endpoint=s3.endpoint)
    cache = DenseCache(store, "team/job-01234567", "0" * 64)
    return cache.obtain(spec, Entrypoint("m:create", create, False), None, StopFlag(), timed=False)


@pytest.fixture
def bucket(s3: Any, tmp_path: Path) -> str:
    """A bucket with weights of ones."""
    name = str(s3.new_bucket())
    model = nn.Linear(3, 2)
    nn.init.constant_(model.weight, 1.0)
    state.save(model, tmp_path / "ones.safetensors")
    open_store(f"s3://{name}", endpoint=s3.endpoint).put_file("models/ones.safetensors", tmp_path / "ones.safetensors")
    return name


def test_weights_come_from_the_store_s_server(s3: Any, bucket: str, tmp_path: Path) -> None:
    """By endpoint; the sha256 of the file is checked; the dense model then comes from the cache."""
    digest = hashlib.sha256((tmp_path / "ones.safetensors").read_bytes()).hexdigest()
    built = obtain(s3, bucket, f"s3://{bucket}/models/ones.safetensors", sha256=digest)
    assert torch.equal(built.subject.model.weight, torch.ones(2, 3))
    assert built.baseline["default"] == 6.0
    again = obtain(s3, bucket, f"s3://{bucket}/models/ones.safetensors", sha256=digest)
    assert (built.cached, again.cached, again.digest) == (False, True, built.digest)


def test_wrong_weights_are_named(s3: Any, bucket: str) -> None:
    """Another digest, and an object that is not there."""
    with pytest.raises(InvalidModelError, match=r"^spec\.model\.weights\.sha256: "):
        obtain(s3, bucket, f"s3://{bucket}/models/ones.safetensors", sha256="0" * 64)
    with pytest.raises(InvalidSpecError, match=r"^spec\.model\.weights\.uri: there is no object"):
        obtain(s3, bucket, f"s3://{bucket}/models/none.safetensors")
