"""Source and data of a recipe from a real S3 server, by the endpoint of the recipe's store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from modelpress.api.v1alpha1 import CompressionJobSpec
from modelpress.store import open_store
from modelpress_runner.errors import InvalidSpecError
from modelpress_runner.inputs.gather import digest_of, gathered


def recipe(s3: Any, bucket: str, task: str, **data: Any) -> CompressionJobSpec:
    """A job whose model, data and results are in one bucket."""
    return CompressionJobSpec.model_validate(
        {
            "model": {"huggingFace": {"source": {"uri": f"s3://{bucket}/models/tiny"}, "task": task}},
            "data": data,
            "stages": [{"prune": {"algorithm": "l1", "configList": [{"opTypes": ["Linear"], "sparsity": 0.5}]}}],
            "store": {"uri": f"s3://{bucket}/out", "endpoint": s3.endpoint},
        }
    )


@pytest.fixture
def bucket(s3: Any, tmp_path: Path) -> str:
    """A model's folder, a file of rows and a folder of images."""
    name = s3.new_bucket()
    store = open_store(f"s3://{name}", endpoint=s3.endpoint)
    for path in ("config.json", "model.safetensors", "deep/vocab.txt"):
        store.put_bytes(f"models/tiny/{path}", path.encode())
    store.put_bytes("data/texts.jsonl", b'{"text": "red"}\n{"text": "blue"}\n')
    Image.new("RGB", (2, 2)).save(tmp_path / "image.png")
    for path in ("cat/1.png", "dog/2.png", "dog/3.png"):
        store.put_file(f"data/photos/{path}", tmp_path / "image.png")
    return name


def test_a_folder_and_a_file_come_from_a_bucket(s3: Any, bucket: str, tmp_path: Path) -> None:
    """Byte for byte; another object below the source's prefix is another digest."""
    spec = recipe(s3, bucket, "causal-lm", train={"uri": f"s3://{bucket}/data/texts.jsonl"})
    for path in ("config.json", "model.safetensors", "deep/vocab.txt"):
        (tmp_path / "local" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "local" / path).write_bytes(path.encode())
    with gathered(spec, None) as first:
        assert [row["text"] for row in first.data["train"]] == ["red", "blue"]
        assert first.source is not None
        assert digest_of(first.source) == digest_of(tmp_path / "local")
    assert not first.source.exists()
    open_store(f"s3://{bucket}", endpoint=s3.endpoint).put_bytes("models/tiny/added.txt", b"x")
    with gathered(spec, None) as second:
        assert second.digest != first.digest


def test_images_of_a_bucket_are_labelled_by_their_folder(s3: Any, bucket: str) -> None:
    """A prefix without a suffix is an imageFolder."""
    spec = recipe(s3, bucket, "image-classification", validation={"uri": f"s3://{bucket}/data/photos/"})
    with gathered(spec, None) as inputs:
        assert inputs.data["validation"].column("label") == ["cat", "dog", "dog"]
        assert inputs.data["validation"][0]["image"].size == (2, 2)


def test_what_is_not_in_the_bucket_is_named(s3: Any, bucket: str) -> None:
    """An object that is missing, at its field."""
    spec = recipe(s3, bucket, "causal-lm", train={"uri": f"s3://{bucket}/data/none.jsonl"})
    with pytest.raises(InvalidSpecError, match=r"^spec\.data\.train\.uri: there is no object"), gathered(spec, None):
        pass
