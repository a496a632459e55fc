"""NNI's auto compression with its imports changed: module, generator, experiment."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

import modelpress as mp
from modelpress.api.errors import SpecError
from modelpress.compat.nni import AutoCompressionExperiment, AutoCompressionSearchSpaceGenerator
from modelpress_runner.subject.compression_module import subject_of

# As NNI's documents have it; a digits model stands where theirs leave one out.
MODULE = """
from typing import Callable

import small_digits
import torch
import torch.nn as nn
from modelpress.compat.nni import AbstractAutoCompressionModule


class AutoCompressionModule(AbstractAutoCompressionModule):
    @classmethod
    def model(cls) -> nn.Module:
        _model = small_digits.net()
        return _model

    @classmethod
    def evaluator(cls) -> Callable[[nn.Module], float]:
        _evaluator = small_digits.accuracy
        return _evaluator

    @classmethod
    def optimizer_factory(cls):
        return lambda parameters: torch.optim.Adam(parameters, lr=1e-2)

    @classmethod
    def criterion(cls):
        return nn.CrossEntropyLoss()

    @classmethod
    def post_compress_finetuning_trainer(cls, algorithm_name):
        def trainer(model, optimizer, criterion, current_epoch):
            images, labels = small_digits.data()
            model.train()
            for index in torch.randperm(512).split(64):
                optimizer.zero_grad()
                criterion(model(images[index]), labels[index]).backward()
                optimizer.step()
        return trainer

    @classmethod
    def post_compress_finetuning_epochs(cls, algorithm_name):
        return 1
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> type:
    """The class, imported from a file."""
    (tmp_path / "auto_compress_module.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "auto_compress_module", raising=False)
    return importlib.import_module("auto_compress_module").AutoCompressionModule


def experiment(module: type, folder: Path) -> AutoCompressionExperiment:
    """As the documents have it."""
    generator = AutoCompressionSearchSpaceGenerator()
    generator.add_config("level", [{"sparsity": {"_type": "uniform", "_value": [0.01, 0.99]}, "op_types": ["default"]}])
    generator.add_config("l1", [{"sparsity": 0.5, "op_types": ["Conv2d"]}])
    made = AutoCompressionExperiment(module, "local")
    made.config.experiment_name = "auto compression torch example"
    made.config.trial_concurrency = 1
    made.config.max_trial_number = 10
    made.config.search_space = generator.dumps()
    made.config.trial_code_directory = folder
    made.config.tuner.name = "TPE"
    made.config.tuner.class_args["optimize_mode"] = "maximize"
    made.config.training_service.use_active_gpu = True
    return made


def test_the_experiment_is_a_sweep(module: type, tmp_path: Path) -> None:
    """Over both algorithms, with what each has to search."""
    made = experiment(module, tmp_path)
    document = made.document()
    spec = document["spec"]
    assert document["metadata"]["name"] == "auto-compression-torch-example"
    assert spec["template"]["spec"]["model"] == {"entrypoint": "auto_compress_module:AutoCompressionModule"}
    assert spec["template"]["spec"]["code"] == {"path": str(tmp_path)}
    assert [parameter["name"] for parameter in spec["searchSpace"]] == ["algorithm", "level_sparsity_0"]
    assert (spec["maxTrials"], spec["parallelism"], spec["algorithm"]) == (10, 1, {"name": "tpe"})
    assert spec["objectives"] == [{"metric": "default", "goal": "maximize"}]
    assert any("training_service" in note for note in made.notes)


def test_the_module_is_compressed(module: type) -> None:
    """Each algorithm of the search, with the module's own training behind it."""
    for algorithm, entry in (("level", {"sparsity": 0.5}), ("l1", {"sparsity": 0.5, "op_types": ["Conv2d"]})):
        subject = subject_of(module)
        prune = {"algorithm": algorithm, "config_list": [entry], "shrink": algorithm != "level"}
        result = mp.compress(subject.model, [{"prune": prune}], subject.evaluator)
        assert result.metrics["compressed"]["nonzeroParameters"] < result.metrics["baseline"]["nonzeroParameters"]
        assert result.metrics["training"]["steps"] == 8


def test_a_generator_reads_what_it_wrote() -> None:
    """Flattened keys, of quantizers with their types, and arguments."""
    generator = AutoCompressionSearchSpaceGenerator()
    entry = {"quant_types": ["weight", "output"], "quant_bits": {"weight": 8, "output": 8}, "op_types": ["Conv2d"]}
    generator.add_config("qat", [entry])
    generator.add_config("slim", [{"sparsity": 0.5}], training_epochs=2)
    dumped = generator.dumps()
    [qat, slim] = dumped["algorithm_name"]["_value"]
    eight = {"_type": "choice", "_value": [8]}
    assert qat["config_list::weight:output::Conv2d::::quant_bits::weight"] == eight
    assert slim["parameter::training_epochs"] == {"_type": "choice", "_value": [2]}
    assert AutoCompressionSearchSpaceGenerator.loads(dumped).dumps() == dumped


def test_what_is_wrong_is_said(module: type, tmp_path: Path) -> None:
    """With the field."""
    made = experiment(module, tmp_path)
    made.config.max_trial_number = "many"
    with pytest.raises(SpecError, match="max_trial_number: must be a number, found the text 'many'"):
        made.document()
    with pytest.raises(SpecError, match="apply it on a cluster"):
        AutoCompressionExperiment(module, "remote")
