"""All files of an artifact, its model card, and its commit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from modelpress.api.v1alpha1 import CompressionJob, CompressionJobSpec
from modelpress.store import manifest, open_store
from modelpress_runner.artifact import files as artifact
from modelpress_runner.errors import ArtifactError
from modelpress_runner.export import weights
from modelpress_runner.export.pt2.equivalence import NotPortableError
from modelpress_runner.export.pt2.program import export_program, open_program

SPEC = CompressionJobSpec.model_validate(
    {
        "model": {"entrypoint": "digits:create"},
        "stages": [
            {"prune": {"algorithm": "l1", "configList": [{"opTypes": ["Conv2d"], "sparsity": 0.5}]}},
            {"finetune": {"epochs": 1}},
        ],
    }
)
METRICS = {
    "baseline": {
        "default": 0.98,
        "parameters": 1000.0,
        "macs": 20000.0,
        "sizeBytes": 4500.0,
        "latencyMs": 2.0,
        "throughput": 12345.6,
        "f1": 0.9,
    },
    "compressed": {
        "default": 0.97,
        "parameters": 500.0,
        "macs": 5000.0,
        "sizeBytes": 2500.0,
        "latencyMs": 1.0,
        "f1": 0.81,
        "sparsity": 0.5,
        "speedup": 2.0,
        "compressionRatio": 1.8,
    },
}
TIMING = {
    "dense": {"medianMs": 2.0, "p10Ms": 1.9, "p90Ms": 2.25, "minMs": 1.8, "iqrMs": 0.1, "iterations": 50},
    "compressed": {"medianMs": 1.0, "p10Ms": 0.9, "p90Ms": 1.25, "minMs": 0.8, "iqrMs": 0.1, "iterations": 50},
    "target": "eager",
    "batchSize": 1,
    "threads": 1,
    "warmup": 5,
}
VERSIONS = {"python": "3.11.7", "torch": "2.14.1"}


def files(**change: Any) -> dict[str, Any]:
    torch.manual_seed(0)
    return {
        "model": nn.Linear(4, 3),
        "dummy_input": torch.ones(1, 4),
        "edits": [],
        "masks": {"": {"weight": torch.ones(3, 4)}},
        "metrics": METRICS,
        "spec": SPEC,
        "stages": [{"name": "prune", "seconds": 1.5}],
        "notes": ["Planned in-process."],
        "name": "digits-l1",
        "timing": TIMING,
        "versions": VERSIONS,
        **change,
    }


def test_every_file_is_there_and_says_what_it_should(tmp_path: Path) -> None:
    """Seven files; metrics and job are read back, the program runs."""
    written = artifact.write_files(tmp_path, **files())
    assert written.portable
    assert written.portable_reason is None
    assert [path.name for path in written.files] == [
        *(
            "README.md",
            "job.yaml",
            "masks.safetensors",
            "metrics.json",
            "model.pt2",
            "model.safetensors",
            "shrink.json",
        ),
    ]
    found = json.loads((tmp_path / "metrics.json").read_text())
    assert found["baseline"] == METRICS["baseline"]
    assert found["compressed"] == METRICS["compressed"]
    assert found["stages"] == [{"name": "prune", "seconds": 1.5}]
    assert found["timing"] == TIMING
    assert found["portable"] is True
    job = CompressionJob.model_validate(yaml.safe_load((tmp_path / "job.yaml").read_text()))
    assert job.metadata.name == "digits-l1"
    assert job.spec == SPEC
    assert open_program(tmp_path / "model.pt2")(torch.ones(5, 4)).shape == (5, 3)
    assert list(weights.load_masks(tmp_path / "masks.safetensors")[""]) == ["weight"]


def test_the_same_artifact_has_the_same_bytes(tmp_path: Path) -> None:
    """Written twice, every file is equal."""
    first = artifact.write_files(tmp_path / "a", **files())
    second = artifact.write_files(tmp_path / "b", **files())
    assert [path.read_bytes() for path in first.files] == [path.read_bytes() for path in second.files]


def test_the_card_shows_what_each_of_several_stages_did(tmp_path: Path) -> None:
    """Score and counts behind each stage, under those of the dense model; one stage needs no table."""
    stages = [
        {
            "name": "prune",
            "score": {"default": 0.5},
            "parameters": 500,
            "macs": 5_000,
            "steps": 0,
            "seconds": 1.5,
            "sizeBytes": 2_500,
            "latencyMs": 1.25,
        },
        {"name": "tune", "score": {"default": 0.97}, "parameters": 500, "macs": 5_000, "steps": 20, "seconds": 30.0},
    ]
    artifact.write_files(tmp_path / "two", **files(stages=stages))
    table = """## Stage by stage

| Stage | Score | Parameters | MACs | Bytes | Latency ms | Steps | Time |
|---|---:|---:|---:|---:|---:|---:|---:|
| dense | 0.98 | 1k | 20k | 4.5k | 2 |  |  |
| prune | 0.5 | 500 | 5k | 2.5k | 1.25 |  | 1.5 s |
| tune | 0.97 | 500 | 5k |  |  | 20 | 30.0 s |
"""
    assert table in (tmp_path / "two" / "README.md").read_text()
    artifact.write_files(tmp_path / "one", **files())
    assert "Stage by stage" not in (tmp_path / "one" / "README.md").read_text()


def test_the_card_shows_before_and_after(tmp_path: Path) -> None:
    """Front matter, a table with changes in percent and the spread of latency, both ways to load, versions, notes."""
    artifact.write_files(tmp_path, **files())
    text = (tmp_path / "README.md").read_text()
    front = yaml.safe_load(text.split("---")[1])
    assert front["tags"] == ["modelpress", "model-compression", "pytorch", "finetune", "prune"]
    for line in (
        "# digits-l1",
        "pruned with l1 to 50% sparsity, then finetuned for 1 epoch.",
        "| Score | 0.98 | 0.97 | -1.0% |",
        "| f1 | 0.9 | 0.81 | -10.0% |",
        "| Parameters | 1,000 | 500 | -50.0% |",
        "| MACs (batch 1) | 20,000 | 5,000 | -75.0% |",
        "| Size on disk | 4.50 kB | 2.50 kB | -44.4% |",
        "| Latency | 2 ms (p10 1.9, p90 2.25) | 1 ms (p10 0.9, p90 1.25) | -50.0% |",
        "| Throughput (rows/s) | 12,346 | - |  |",
        "| Sparsity | - | 50.0% |  |",
        "| Speed-up | - | 2.00x |  |",
        "model = mp.load(uri)  # the folder with manifest.json",
        "model = mp.load(uri, into=build_model())",
        "  - opTypes:",
        "- torch 2.14.1",
        "- Planned in-process.",
    ):
        assert line in text, line


class Fixed(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(1, 4)


def test_what_is_not_portable_says_so_everywhere(tmp_path: Path) -> None:
    """Without a program there is no model.pt2, and result, metrics and card give the reason."""
    written = artifact.write_files(tmp_path, **files(model=Fixed(), masks=None))
    assert not written.portable
    assert written.portable_reason is not None
    assert "fixes the batch size" in written.portable_reason
    assert not (tmp_path / "model.pt2").exists()
    assert not (tmp_path / "masks.safetensors").exists()
    assert json.loads((tmp_path / "metrics.json").read_text())["portableReason"] == written.portable_reason
    card = (tmp_path / "README.md").read_text()
    assert f"There is no program: {written.portable_reason}." in card
    assert "mp.load(uri)  #" not in card


def test_without_example_inputs_there_is_no_program(tmp_path: Path) -> None:
    """A program cannot be traced without dummy_input; the weights are still written."""
    written = artifact.write_files(tmp_path, **files(dummy_input=None))
    assert written.portable_reason == "there is no dummy_input to trace it with"
    assert (tmp_path / "model.safetensors").exists()


def test_a_ready_program_is_taken(tmp_path: Path) -> None:
    """A program that was exported for measuring is copied, byte by byte."""
    given = files()
    export_program(given["model"], given["dummy_input"], tmp_path / "ready.pt2")
    artifact.write_files(tmp_path / "out", **given, ready={"model.pt2": tmp_path / "ready.pt2"})
    assert (tmp_path / "out" / "model.pt2").read_bytes() == (tmp_path / "ready.pt2").read_bytes()


def test_custom_operators_are_required_imports(tmp_path: Path) -> None:
    """A model that calls an operator of a package names the module that registers it, in card and result."""

    @torch.library.custom_op("modelpress_test::twice", mutates_args=())
    def twice(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    twice.register_fake(torch.empty_like)

    class Twice(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return twice(x)

    written = artifact.write_files(tmp_path, **files(model=Twice(), masks=None))
    assert written.portable_reason is None
    assert written.required_imports == [__name__]
    assert f"import {__name__}\n" in (tmp_path / "README.md").read_text()


def test_saving_commits_a_manifest(tmp_path: Path) -> None:
    """Files lie below <attempt>-<id>, the manifest names each with its checksum, and a second save is refused."""
    saved = artifact.save(str(tmp_path / "out"), attempt=2, run_uid="0123-4567-89ab", code_digest="c0de", **files())
    store = open_store(str(tmp_path / "out"))
    standing = manifest.read(store, "")
    assert standing == (saved.manifest, saved.digest)
    assert saved.manifest.folder == "2-01234567"
    assert saved.manifest.attempt == 2
    assert saved.manifest.code_digest == "c0de"
    assert saved.manifest.spec_digest == artifact.spec_digest(SPEC)
    assert saved.manifest.versions == VERSIONS
    assert saved.manifest.metrics.compressed == METRICS["compressed"]
    names = [saved.manifest.name_of(entry) for entry in saved.manifest.files]
    assert "model.pt2" in names
    assert len(names) == 7
    manifest.fetch(store, "", saved.manifest, tmp_path / "copy", None)
    with pytest.raises(ArtifactError, match="holds an artifact already, and artifacts are never overwritten"):
        artifact.save(str(tmp_path / "out"), **files())


def test_a_spec_may_be_a_mapping(tmp_path: Path) -> None:
    """What mp.compress was called with has no entrypoint; its stages are written as they are."""
    spec = {"stages": [{"prune": {"algorithm": "level", "configList": [{"sparsity": 0.9}]}}], "seed": 3}
    artifact.write_files(tmp_path, **files(spec=spec))
    assert yaml.safe_load((tmp_path / "job.yaml").read_text())["spec"] == spec
    assert "pruned with level to 90% sparsity." in (tmp_path / "README.md").read_text()


def test_not_portable_is_one_sentence() -> None:
    """The error that users meet says what to do instead."""
    error = NotPortableError("it branches on data")
    assert str(error) == (
        "the model cannot be exported as a program: it branches on data; it can still be loaded with "
        "mp.load(uri, into=model)"
    )
