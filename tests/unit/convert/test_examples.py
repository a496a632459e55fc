"""Configurations of other tools, those of their documents among them: what each becomes, and that it is valid and runs.

tests/corpus/convert holds each file beside what it becomes; a file of Python ends with .py.txt there.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import small_digits
import torch
import torch.nn.functional as F
import yaml

import modelpress as mp
from modelpress.api import json_pointer
from modelpress.api.errors import SpecError
from modelpress.cli.validate import problems_of
from modelpress.convert import Converted, convert_files

FOLDER = Path(__file__).parents[2] / "corpus/convert"
EXPECTED = ".expected.yaml"
FILES = sorted(file.name for file in FOLDER.iterdir() if not file.name.endswith((EXPECTED, ".md")))
# name -> the tool, and what its notes must say.
NOTES: dict[str, tuple[str, tuple[str, ...]]] = {
    "auptimizer-one-time": ("auptimizer", ("line 12: True is Python, not JSON",)),
    "auptimizer-automatic": (
        "auptimizer",
        (
            "line 14: a comma is missing behind this value; it was added",
            "line 15: texts in single quotes are Python",
            "compression.config_list[1].op_names: each layer has a parameter of its own",
        ),
    ),
    "auptimizer-expand": ("auptimizer", ("the compressor, which a config_list does not name; l1 was taken",)),
    "auptimizer-save-model": ("auptimizer", ("the best model is kept from its own trial",)),
    "nni-auto-compression": ("nni", ("AutoCompressionModule is the model's entrypoint",)),
    "nni-two-pruners": ("nni", ("how many trials there are; 20 were taken",)),
    "nni-config-lists": ("nni", ("is a share of what is ranked", "matches a whole name here and its beginning in NNI")),
    "nni-agp": ("nni", ("a function create() in model.py",)),
    "nni-experiment": ("nni", ("quniform counts its steps from 0",)),
    "nc1-static": ("neural-compressor", ("post_training_static_quant is algorithm: ptq_static",)),
    "nc1-mixed-precision": ("neural-compressor", ("compute in bf16; norms and the rest do not",)),
    "nc2-mixed-precision": ("neural-compressor", ("compute in bf16; norms and the rest do not",)),
    "nc1-qat": ("neural-compressor", ("the script, train.py", "one recipe is measured, where up to 600 were tried")),
    "nc2-static": ("neural-compressor", ("a relative loss of 1 % at most",)),
    "nc2-qat": ("neural-compressor", ("operations are quantized layer by layer",)),
    "nc1-pruning": (
        "neural-compressor",
        ("end_step: snip_momentum looks at training steps", "ic_pattern_4x1 is pattern: 4x1"),
    ),
    "nc1-distillation": (
        "neural-compressor",
        ("distillation: train stood beside it, and belong under it", "10 epochs of 100 steps are maxSteps: 1000"),
    ),
    "nc2-pruning": ("neural-compressor", ("the last Linear layer is left alone by Neural Compressor",)),
    "nc2-pruning-defaults": ("neural-compressor", ("line 3: the full-width ， was read as ,",)),
    "nc2-distillation": ("neural-compressor", ("the dense model teaches by its outputs",)),
    "nc2-orchestration": ("neural-compressor", ("the line 'train_loop:' is no Python; it was passed over",)),
}


def converted(name: str, folder: Path, *others: str) -> Converted:
    """What becomes of files of the corpus."""
    files = []
    for each in (name, *others):
        file = folder / each.removesuffix(".txt")
        shutil.copy(FOLDER / each, file)
        files.append(str(file))
    return convert_files(files)


def stem(name: str) -> str:
    """Of a file of the corpus."""
    return name.removesuffix(".txt").rpartition(".")[0]


@pytest.mark.parametrize("name", FILES)
def test_it_becomes(name: str, tmp_path: Path) -> None:
    """Exactly the recipe beside it, which is valid; with notes on what was mended, and on what means something else.
    What holds nothing that compresses becomes nothing, and says so."""
    expected = FOLDER / f"{stem(name)}{EXPECTED}"
    if not expected.exists():
        with pytest.raises(SpecError, match="nothing in it becomes a stage of a recipe"):
            converted(name, tmp_path)
        return
    found = converted(name, tmp_path)
    assert found.documents == list(yaml.safe_load_all(expected.read_text()))
    tool, notes = NOTES[stem(name)]
    assert found.tool == tool
    remarks = "\n".join(found.remarks())
    assert [note for note in notes if note not in remarks] == []
    written = tmp_path / "converted.yaml"
    written.write_text(found.yaml())
    assert problems_of(str(written), cluster=False) == ([], len(found.documents))


def test_pruning_and_quantization_in_one_loop(tmp_path: Path) -> None:
    """As the orchestration of version 1.x combines two files."""
    [document] = converted("nc1-pruning.yaml", tmp_path, "nc1-qat.yaml").documents
    assert document["spec"]["model"] == {"script": "train.py"}
    assert [list(stage) for stage in document["spec"]["stages"]] == [["prune"], ["quantize"]]
    assert document["spec"]["constraints"] == [{"metric": "default", "maxRelativeLoss": 0.01}]


def test_a_training_that_no_file_tells_of_is_the_scripts() -> None:
    """An entrypoint does not say how long it trains: the error names the way by a script, where that is valid."""
    with pytest.raises(SpecError, match=r"add epochs or maxSteps; or give --model the script .* of nets:make$"):
        convert_files([str(FOLDER / "nc1-qat.yaml")], tool=None, model="nets:make", algorithm=None)
    [document] = convert_files([str(FOLDER / "nc1-qat.yaml")], tool=None, model="loop.py", algorithm=None).documents
    assert document["spec"]["model"] == {"script": "loop.py"}


def test_a_benchmark_goes_with_what_compresses(tmp_path: Path) -> None:
    """Several files are one recipe."""
    found = converted("nc1-pruning.yaml", tmp_path, "nc1-benchmark.yaml")
    [document] = found.documents
    assert document["spec"]["benchmark"] == {"coresPerInstance": 4, "batchSize": 1}
    assert [list(stage) for stage in document["spec"]["stages"]] == [["prune"]]
    found = converted("nc2-pruning.py.txt", tmp_path, "nc2-benchmark.py.txt")
    benchmark = {"warmup": 10, "iterations": 100, "coresPerInstance": 4}
    assert found.documents[0]["spec"]["benchmark"] == benchmark


@pytest.mark.parametrize("name", [name for name in FILES if (FOLDER / f"{stem(name)}{EXPECTED}").exists()])
def test_it_runs(name: str, tmp_path: Path) -> None:
    """On digits: a recipe by mp.compress, one for a loop of the user's own in such a loop."""
    for spec in [spec for document in converted(name, tmp_path).documents for spec in recipes(document)]:
        model = small_digits.net()
        stages = [shortened(stage) for stage in spec["stages"]]
        if "script" in spec["model"]:
            metrics = in_a_loop(model, stages)
        else:
            metrics = mp.compress(model, stages, small_digits.evaluator(model)).metrics
        if "prune" in str(stages):
            assert metrics["compressed"]["nonzeroParameters"] < metrics["baseline"]["nonzeroParameters"]
        if "quantize" in str(stages):
            assert metrics["compressed"]["sizeBytes"] < metrics["baseline"]["sizeBytes"]
        assert len(metrics["stages"]) == len(stages)


def recipes(document: dict[str, Any]) -> list[dict[str, Any]]:
    """The spec of a job; those of a sweep's trials, one for each part that can be chosen, in which other parameters
    have their last or greatest values."""
    if document["kind"] == "CompressionJob":
        return [document["spec"]]
    template, space = document["spec"]["template"]["spec"], document["spec"]["searchSpace"]
    parts = [
        (each["name"], part, each["paths"]) for each in space if "choice" in each for part in each["choice"]["values"]
    ]
    found = []
    for name, part, paths in parts or [("", {}, [])]:
        spec = template
        for path in paths:
            spec = json_pointer.set(spec, path, part["value"])
        for parameter in space:
            if "choice" in parameter or part.get("name") not in parameter.get("when", {}).get(name, [part.get("name")]):
                continue
            body = parameter.get("float") or parameter.get("int")
            for path in parameter["paths"]:
                spec = json_pointer.set(spec, path, body["max"] if body else parameter["categorical"]["values"][-1])
        found.append(spec)
    return found


def shortened(stage: dict[str, Any]) -> dict[str, Any]:
    """A stage that trains for a few steps only."""
    for block in stage.values():
        if block.get("maxSteps", 0) > 12:
            block["maxSteps"] = 12
    return stage


def in_a_loop(model: torch.nn.Module, stages: list[dict[str, Any]]) -> dict[str, Any]:
    """A loop of sixteen steps."""
    images, labels = small_digits.data()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    settings = {"evaluator": small_digits.accuracy, "dummy_input": images[:2], "optimizers": optimizer}
    with mp.prepare_compression(model, stages, **settings) as compression:
        compression.on_train_begin()
        for step, index in enumerate(torch.arange(16 * 64).split(64)):
            compression.on_step_begin(step)
            optimizer.zero_grad()
            output = model(images[index])
            loss = F.cross_entropy(output, labels[index])
            compression.on_after_compute_loss(images[index], output, loss).backward()
            compression.on_before_optimizer_step()
            optimizer.step()
            compression.on_after_optimizer_step()
        compression.on_train_end()
    return compression.result.metrics
