"""model.xml: the module's own outputs in OpenVINO, integers understood, nothing told to anybody."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from runtime_nets import Quantized, word_ids

from modelpress_runner.export.openvino.program import export_openvino
from modelpress_runner.export.runtime_module import RuntimeModule
from modelpress_runner.serving.errors import MissingRuntimeError, RuntimeFileError
from modelpress_runner.serving.session import open_session


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> tuple[Quantized, Path]:
    model, path = Quantized(), tmp_path_factory.mktemp("openvino") / "model.xml"
    export_openvino(model, word_ids(), path)
    return model.eval(), path


def test_integers_compute_what_fake_quantization_does(quantized: tuple[Quantized, Path]) -> None:
    """Outputs are the module's, for any batch and with one thread or two, and the weights take a byte each."""
    model, path = quantized
    module, ids = RuntimeModule(path, threads=1), word_ids(64)
    with torch.no_grad():
        expected = model(ids)
    assert float((module(ids) - expected).norm() / expected.norm()) < 0.02
    with module.with_threads(2):
        assert float((module(ids) - expected).norm() / expected.norm()) < 0.02
    weights = sum(each.layer.weight.numel() for each in model.modules() if hasattr(each, "weight_scale"))
    assert weights < path.with_suffix(".bin").stat().st_size < 1.5 * weights
    assert repr(module) == "RuntimeModule(openvino: ids: (batch, 8) int64)"


def test_it_runs_without_torch_and_tells_nobody(quantized: tuple[Quantized, Path], tmp_path: Path) -> None:
    """A fresh process in which torch, and any socket, is an error, computes the same; the package that reports use of
    OpenVINO is not loaded."""
    code = (
        "import sys, socket, pathlib\n"
        "sys.modules['torch'] = None\n"
        "def refuse(*args, **kwargs): raise AssertionError('a socket')\n"
        "socket.socket = socket.create_connection = socket.getaddrinfo = refuse\n"
        "import numpy as np\n"
        "from modelpress_runner.serving.session import open_session\n"
        "np.save(sys.argv[3], open_session(pathlib.Path(sys.argv[1]))(np.load(sys.argv[2])))\n"
        "import threading; assert threading.active_count() == 1\n"
        "assert sys.modules['openvino_telemetry'] is None\n"
        "assert not [name for name in sys.modules if name.startswith('openvino_telemetry.')]\n"
    )
    ids = word_ids(3)
    np.save(tmp_path / "in.npy", ids.numpy())
    arguments = [str(quantized[1]), str(tmp_path / "in.npy"), str(tmp_path / "out.npy")]
    subprocess.run([sys.executable, "-c", code, *arguments], check=True)
    found = torch.from_numpy(np.load(tmp_path / "out.npy"))
    torch.testing.assert_close(found, RuntimeModule(quantized[1], threads=1)(ids))


def test_other_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No model, a missing runtime."""
    (tmp_path / "model.xml").write_text("<net/>")
    with pytest.raises(RuntimeFileError, match=r"OpenVINO cannot open model\.xml"):
        open_session(tmp_path / "model.xml")
    with pytest.raises(RuntimeFileError, match=r"ends in \.onnx or \.xml"):
        open_session(tmp_path / "model.txt")
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingRuntimeError, match=r"pip install 'modelpress\[openvino\]'"):
        open_session(tmp_path / "model.xml")
