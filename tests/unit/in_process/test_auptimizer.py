"""Training scripts of Auptimizer with one import changed: by themselves, by the decorator, and as jobs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import modelpress as mp
from modelpress.api.errors import SpecError
from modelpress.compat import auptimizer as aup
from modelpress.request import RunRequest
from modelpress.store import open_store
from modelpress_runner.errors import CompressionError, InvalidModelError
from modelpress_runner.process.progress import Event
from modelpress_runner.process.stopping import StopFlag
from modelpress_runner.runs import trial

# As Auptimizer's documents have it; a digits model stands where theirs leave one out.
SCRIPT = """
#!/usr/bin/env python
from modelpress.compat import auptimizer as aup
import sys

import small_digits
import torch
import torch.nn.functional as F

EPOCHS = 6


def main(config):
    model = small_digits.net()
    images, labels = small_digits.data()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)

    compressor = aup.compression.create_compressor(model, config, optimizer=optimizer)
    model = compressor.compress()

    model = compressor.apply_speedup(dummy_input=torch.randn(1, 1, 8, 8))

    for epoch in range(EPOCHS):
        for index in torch.randperm(512).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(images[index]), labels[index]).backward()
            optimizer.step()

    compressor.export_model(
        model_path="model_compressed.pth",
        mask_path="model_mask.pth",
        speedup=True,
        folder_name=".")

    aup.print_result(small_digits.accuracy(model))


if __name__ == '__main__':
    config = aup.BasicConfig().load(sys.argv[1])
    main(config)
"""
ENTRIES = [
    {"sparsity": 0.75, "op_types": ["Conv2d"]},
    {"sparsity": 0.5, "op_names": ["conv1", "conv2"]},
    {"exclude": True, "op_names": ["conv3"]},
]
EXPERIMENT = {
    "name": "digits",
    "script": "mnist.py",
    "resource": "cpu",
    "compression": {"framework": "torch", "type": "pruning", "compressor": "l1_filter", "config_list": ENTRIES},
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with the script and its experiment, written as the documents write it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mnist.py").write_text(SCRIPT)
    (tmp_path / "experiment.json").write_text(json.dumps(EXPERIMENT).replace("true", "True"))
    return tmp_path


def test_the_script_of_the_documents(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """Prunes, shrinks, trains on with the optimizer that it made before, and writes what opens without it."""
    monkeypatch.setattr(sys, "argv", ["mnist.py", "experiment.json"])
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(SCRIPT, "mnist.py", "exec"), names)
    score = float(capsys.readouterr().out.partition("result: ")[2])
    state = torch.load("model_compressed.pth", weights_only=True)
    assert [state[f"conv{number}.weight"].shape[0] for number in (1, 2, 3)] == [4, 4, 8]
    assert torch.load("model_mask.pth", weights_only=True) == {}
    program = mp.load(folder / "model_compressed")
    images, labels = names["small_digits"].data()
    with torch.no_grad():
        found = (program(images).argmax(1) == labels).float().mean().item()
    assert found == pytest.approx(score, abs=1e-3)
    assert score > 0.3  # 48 steps of training; without them a tenth


def test_masks_hold_whatever_trains(folder: Path) -> None:
    """Without a speed-up the masked weights stay zero, with any optimizer; what is exported has the masks."""
    import small_digits
    import torch.nn.functional as F

    model = small_digits.net()
    images, labels = small_digits.data()
    compressor = aup.create_compressor(model, {"compressor": "level", "config_list": [{"sparsity": 0.5}]})
    assert compressor.compress() is model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for index in torch.randperm(256).split(64):
        optimizer.zero_grad()
        F.cross_entropy(model(images[index]), labels[index]).backward()
        optimizer.step()
    with pytest.raises(InvalidModelError, match="leaves the model's shape alone; take one that removes channels"):
        compressor.apply_speedup()
    compressor.export_model("model.pth", "mask.pth", folder_name="out")
    masks = torch.load("out/mask.pth", weights_only=True)
    weight = torch.load("out/model.pth", weights_only=True)["layer1.weight"]
    assert masks["layer1"]["weight"].mean() == 0.5
    assert (weight[masks["layer1"]["weight"] == 0] == 0).all()
    assert (weight != 0).float().mean() == 0.5
    compressor.export_model("model.pth", speedup=True)
    assert mp.load("model")(images[:2]).shape == (2, 10)


def test_a_compressor_that_looks_at_training_is_given_the_trainer(folder: Path) -> None:
    """compress() calls it; by its steps there are scores. Without them there is an error, and no wrong model."""
    import small_digits
    import torch.nn.functional as F

    images, labels = small_digits.data()

    def trainer(model, optimizer, criterion, epoch):
        for index in torch.arange(8 * 16).split(16):
            optimizer.zero_grad()
            criterion(model(images[index]), labels[index]).backward()
            optimizer.step()

    config = {"compressor": "taylor_fo_weight_filter", "config_list": [{"sparsity": 0.5, "op_types": ["Conv2d"]}]}
    model = small_digits.net()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    compressor = aup.create_compressor(
        model, config, optimizer, trainer=trainer, criterion=F.cross_entropy, statistics_batch_num=4
    )
    compressor.compress()
    assert compressor.apply_speedup(images[:1]).conv1.out_channels == 4
    other = aup.create_compressor(small_digits.net(), config)
    other.compress()
    with pytest.raises(CompressionError, match="reaches its target after 10; train longer"):
        other.apply_speedup(images[:1])


def test_a_quantizer_goes_along_with_the_script(folder: Path) -> None:
    """Rounded while it trains; integers at the end."""
    import small_digits
    import torch.nn.functional as F

    model = small_digits.net()
    images, labels = small_digits.data()
    entry = {"quant_types": ["weight"], "quant_bits": {"weight": 8}, "op_types": ["Linear"]}
    compressor = aup.create_compressor(model, {"compressor": "qat", "config_list": [entry]})
    compressor.compress()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for index in torch.randperm(256).split(64):
        optimizer.zero_grad()
        F.cross_entropy(model(images[index]), labels[index]).backward()
        optimizer.step()
    compressor.export_model("model.pth", speedup=True)
    metrics = compressor.compression.result.metrics
    assert metrics["compressed"]["sizeBytes"] < metrics["baseline"]["sizeBytes"]


@pytest.mark.parametrize("wanted", [True, False])
def test_the_decorator(folder: Path, wanted: bool, capsys: Any) -> None:
    """Keys become arguments; what is to be saved is saved behind main, if that is wanted."""
    saved: list[dict[str, Any]] = []

    @aup.aup_args
    def main(compression_type, compression_framework, compressor, config_list, folder_name=None, save_model=False):
        config = locals()
        assert (compression_type, compression_framework, save_model) == ("pruning", "torch", wanted)
        assert config["config_list"] == ENTRIES
        aup.aup_save_model(lambda **given: saved.append(given), model_path="model.pth", speedup=False)
        return [0.5, 2.0]

    experiment = EXPERIMENT | {"resource_args": {"save_model": wanted}}
    (folder / "other.json").write_text(json.dumps(experiment))
    assert main("other.json") == [0.5, 2.0]
    assert saved == ([{"model_path": "model.pth", "speedup": False}] if wanted else [])
    assert capsys.readouterr().out == "result: 0.5, 2\n"


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (
            {"compressor": "l1_filter", "config_list": [{"sparsity": {"range": [0.1, 0.2], "type": "float"}}]},
            "as a sweep",
        ),
        ({"compressor": "slim", "config_list": [{"sparsity": 0.5}]}, "its penalty belongs into the loss"),
        ({"compressor": "l9", "config_list": [{"sparsity": 0.5}]}, "config: compressor: there is no counterpart"),
        ({"config_list": []}, "it has no compressor"),
    ],
)
def test_what_has_no_counterpart_is_said(config: dict[str, Any], said: str) -> None:
    """Before anything happens."""
    with pytest.raises(SpecError, match=said):
        aup.create_compressor(torch.nn.Linear(4, 2), config)


def test_a_job_runs_the_script(folder: Path) -> None:
    """With the job's recipe: the model is shrunk at the end of the script, which trains on behind apply_speedup()."""
    spec = {
        "model": {"script": "mnist.py", "args": {"config": "experiment.json"}},
        "code": {"path": "."},
        "stages": [{"prune": {"configList": [{"opTypes": ["Conv2d"], "sparsity": 0.25}]}}],
    }
    events: list[Event] = []
    names = {"purpose": "trial", "namespace": "default", "name": "aup", "uid": "1", "runUid": "run1"}
    places = {"root": "default/aup", "prefix": "default/aup", "codePath": str(folder)}
    request = RunRequest.model_validate({**names, **places, "spec": {**spec, "store": {"uri": str(folder / "store")}}})
    result = trial.run(request, open_store(str(folder / "store")), events.append, StopFlag())
    assert result.phase == "Succeeded"
    assert result.compressed["parameters"] < result.baseline["parameters"]
    assert any("reported at step" in event.message for event in events)
