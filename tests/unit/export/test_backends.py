"""Every method with every backend in every format that the table of the reference says, opened where it serves."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from backend_nets import WORDS, SeparableTask
from tiny_models import bert, rows, subject

import modelpress as mp
from modelpress.api.v1alpha1 import Stage, algorithms, backends
from modelpress_runner.edits.quantize import FrozenLayer
from modelpress_runner.engine.run import run_stages
from modelpress_runner.errors import CompressionError
from modelpress_runner.export.formats import format_of
from modelpress_runner.export.pt2.program import trace
from modelpress_runner.serving import cpu
from modelpress_runner.serving.ort import OrtSession

SUPPORTED = backends.supported()
NET = [(each, row, way) for each, row, way in SUPPORTED if each.name != "compressed-tensors"]
FILES = ("pt2", *backends.RUNTIMES)
PAIR = {"text": "red cat", "positive": "cat"}

# With numpy and the runtimes, where importing torch is an error, and so is any socket.
WITHOUT_TORCH = """
import sys, socket, pathlib
sys.modules["torch"] = None
def refuse(*args, **kwargs): raise AssertionError("a socket")
socket.socket = socket.create_connection = socket.getaddrinfo = refuse
import numpy as np
from modelpress_runner.serving.session import open_session
ids = np.load(sys.argv[1])
for name in sys.argv[2:]:
    path = pathlib.Path(name)
    np.save(path.with_suffix(".npy"), open_session(path)(ids))
"""
# With torch for programs, and with plain transformers for folders.
WITH_TORCH = """
import sys, pathlib
import numpy as np, torch, transformers
import modelpress as mp
ids = torch.from_numpy(np.load(sys.argv[1]))
from modelpress_runner.export.formats import format_of
from modelpress_runner.export.pt2.program import trace
for name in sys.argv[2:]:
    path = pathlib.Path(name)
    with torch.no_grad():
        if path.is_dir():
            inputs = dict(torch.load(path.with_suffix(".inputs"), weights_only=True))
            found = transformers.AutoModel.from_pretrained(path).eval()(**inputs).last_hidden_state
        else:
            found = format_of("pt2").open(None, path, None)(ids)
    np.save(path.with_suffix(".npy"), found.numpy())
"""


def run(code: str, *arguments: Any) -> None:
    done = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def compressed(each: backends.Backend, row: algorithms.Algorithm, task: SeparableTask) -> mp.CompressionResult:
    block: dict[str, Any] = {"algorithm": row.name, "backend": each.name, "configList": [{"opTypes": ["default"]}]}
    block |= {"maxSteps": 2} if row.trains else {}
    target = {"format": each.format or "eager"}
    return mp.compress(
        task.model, [{"quantize": block}], task.evaluator(), calibration_data=[task.x[:32], task.x[32:]], target=target
    )


def weighed(path: Path) -> int:
    """Bytes of a file; of OpenVINO's those of its tensors, for such a small net is mostly names."""
    return (path.with_suffix(".bin") if path.suffix == ".xml" else path).stat().st_size


@pytest.mark.long
def test_what_is_supported_runs_in_a_clean_process(tmp_path: Path) -> None:
    """Outputs are those of the model in memory, and files are smaller than the floats' by what weights have lost."""
    held = torch.randint(0, WORDS, (3, 6), generator=torch.Generator().manual_seed(1))
    np.save(tmp_path / "ids.npy", held.numpy())
    task = SeparableTask()
    floats = {name: format_of(name) for name in FILES}
    sizes: dict[str, int] = {}
    for name, form in floats.items():
        path = tmp_path / f"dense-{name}" / str(form.file)
        path.parent.mkdir()
        form.write(task.model, task.x[:2], path, None, {})
        sizes[name] = weighed(path)
    with torch.no_grad():
        dense = task.model(held)
    expected: dict[Path, tuple[torch.Tensor, float]] = {}
    for each, row, way in NET:
        result = compressed(each, row, SeparableTask())
        layers = result.metrics["stages"][0]["layers"]
        assert {layer["name"] for layer in layers} >= {"wide", "narrow", "head"}, (each.name, row.name)
        lost = sum(layer["bytesBefore"] - layer["bytesAfter"] for layer in layers)
        for name in (one for one in way.formats if one in FILES):
            form = floats[name]
            path = tmp_path / f"{each.name}-{row.name}-{name}" / str(form.file)
            path.parent.mkdir()
            form.write(result.model, task.x[:2], path, None, {})
            # Scales take bytes, and quantizers operators.
            assert weighed(path) < sizes[name] - 0.75 * lost, (each.name, row.name, name)
            with torch.no_grad():
                if each.quantizes:
                    wanted, most = form.open(result.model, path, None)(held), 1e-6
                    away = float((wanted - dense).norm() / dense.norm())
                    assert away < 0.1, (each.name, row.name, away)
                else:
                    wanted, most = result.model.eval()(held), 1e-4 if name == "pt2" else 0.05
            expected[path] = (wanted, most)
    runtime = [path for path in expected if path.suffix != ".pt2"]
    run(WITHOUT_TORCH, tmp_path / "ids.npy", *runtime)
    folders = transformers_folders(tmp_path)
    run(WITH_TORCH, tmp_path / "ids.npy", *(path for path in expected if path.suffix == ".pt2"), *folders)
    for path, (wanted, most) in {**expected, **folders}.items():
        found = torch.from_numpy(np.load(path.with_suffix(".npy")))
        assert float((found - wanted).norm()) <= most * float(wanted.norm()), path.parent.name


def transformers_folders(folder: Path) -> dict[Path, tuple[torch.Tensor, float]]:
    """Of every method of compressed-tensors, and each number of bits, a folder, and the outputs in memory."""
    found: dict[Path, tuple[torch.Tensor, float]] = {}
    plans = [(row, bits) for each, row, way in SUPPORTED if each.name == "compressed-tensors" for bits in way.weights]
    for row, bits in plans:
        path = folder / f"folder-{row.name}-{bits}"
        path.mkdir()
        made = subject(bert(path / "dense"), "feature-extraction", rows("validation", PAIR))
        block = {"backend": "compressed-tensors", "algorithm": row.name, "quantBits": {"weight": bits}}
        more = {"granularity": "group", "groupSize": 16} if bits == 4 else {}
        stage = {"quantize": {**block, **more, "configList": [{"opTypes": ["default"]}]}}
        made.find_inputs()
        model = run_stages(made, [Stage.model_validate(stage)], seed=0, scores=False).model.eval()
        assert isinstance(model.get_submodule("encoder.layer.0.intermediate.dense"), FrozenLayer)
        made.layout.write(model, made.dummy_input, path / "out")
        said = json.loads((path / "out" / "config.json").read_text())["quantization_config"]
        assert said["quant_method"] == "compressed-tensors"
        assert said["config_groups"]["group_0"]["weights"]["num_bits"] == bits
        torch.save(dict(made.dummy_input), path / "out.inputs")
        with torch.no_grad():
            found[path / "out"] = (model(**made.dummy_input).last_hidden_state, 1e-6)
    return found


def test_choices_for_the_cpu_are_in_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without VNNI weights have seven bits; with it eight, and the file says that they may overflow elsewhere. What was
    left out stays floats, and the record, the card and the file agree; a model that was changed since has no file."""
    task = SeparableTask()
    levels = {}
    for saturates in (True, False):
        monkeypatch.setattr(cpu, "saturates", lambda saturates=saturates: saturates)
        block = {
            "backend": "onnxruntime",
            "algorithm": "ptq_dynamic",
            "configList": [{"opTypes": ["Linear"]}, {"opNames": ["head"], "exclude": True}],
        }
        result = mp.compress(
            task.model, [{"quantize": block}], dummy_input=task.x[:2], target={"format": "onnxruntime"}
        )
        uri = Path(result.save(tmp_path / str(saturates)))
        (path,) = uri.rglob("model.onnx")
        assert path.stat().st_size == result.metrics["compressed"]["sizeBytes"]
        metadata = OrtSession(path).metadata
        assert metadata["modelpress.reduceRange"] == ("yes" if saturates else "no")
        assert ("modelpress.wide" in metadata) is not saturates
        import onnx

        integers = [each for each in onnx.load(str(path)).graph.initializer if each.data_type == onnx.TensorProto.INT8]
        weights = [onnx.numpy_helper.to_array(each) for each in integers if len(each.dims) == 2]
        levels[saturates] = max(int(np.abs(each.astype(int)).max()) for each in weights)
        assert len(weights) == 2
        assert [layer["name"] for layer in result.metrics["stages"][0]["layers"]] == ["wide", "narrow"]
        assert "quantized by onnxruntime with ptq_dynamic" in next(uri.rglob("README.md")).read_text()
        direct = format_of("onnxruntime").open(result.model, path, None)
        assert torch.equal(mp.load(uri, format="onnxruntime")(task.x), direct(task.x))
    assert levels == {True: 64, False: 127}

    with torch.no_grad():
        result.model.head.bias.add_(1)
    with pytest.raises(CompressionError, match="was changed behind the stage in which onnxruntime quantized it"):
        format_of("onnxruntime").write(result.model, task.x[:2], Path("model.onnx"), None, {})


class Positions(torch.nn.Module):
    """Adds a row for each place, of which there are 16."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = torch.nn.Parameter(torch.randn(16, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.rows[: x.shape[1]]


def test_a_free_axis_may_have_a_longest() -> None:
    """Positions that are looked up end somewhere; that is no bound on the batch."""
    program = trace(Positions(), torch.randn(2, 5, 4), training=False, free={"x": [1]})
    found = program.module()(torch.ones(3, 16, 4))
    assert found.shape == (3, 16, 4)
