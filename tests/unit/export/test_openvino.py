"""model.xml: the module's own outputs in OpenVINO, integers understood, nothing told to anybody."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from runtime_nets import Quantized, word_ids

from modelpress_runner.export.backends.openvino import _round_tables
from modelpress_runner.export.openvino.program import export_openvino
from modelpress_runner.export.runtime_module import RuntimeModule
from modelpress_runner.serving.errors import CallError, MissingRuntimeError, RuntimeFileError
from modelpress_runner.serving.ov import OvSession, openvino
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


def test_shapes_that_come_again_and_others_compute_the_same(quantized: tuple[Quantized, Path]) -> None:
    """Each of six batches thrice, then all once more: a row's output is the same in all of them."""
    session, ids = open_session(quantized[1]), word_ids(6).numpy()
    sizes = [size for size in range(1, 7) for _ in range(3)] + list(range(1, 7))
    whole = session(ids)
    for size in sizes:
        np.testing.assert_allclose(session(ids[:size]), whole[:size], rtol=1e-5, atol=1e-6)
    with pytest.raises(CallError):
        session(np.zeros((2, 9), np.int64))


def test_a_shape_that_comes_twice_in_a_row_is_compiled_for(quantized: tuple[Quantized, Path]) -> None:
    """Not one that comes between others; a call that is refused is none; four shapes at most, the first ones."""
    session, ids = OvSession(quantized[1]), word_ids(9).numpy()

    def fixed(*sizes: int) -> list[int]:
        for size in sizes:
            session(ids[:size])
        return [shape[0] for ((_, _, shape),) in session._fixed]

    assert fixed(1, 2, 1, 2) == []
    assert fixed(2) == [2]
    assert fixed(2, 2, 1) == [2]
    with pytest.raises(CallError):
        session(np.zeros((2, 9), np.int64))
    assert fixed(1) == [2, 1]
    assert fixed(3, 3, 4, 4, 5, 5, 6, 6) == [2, 1, 3, 4]
    np.testing.assert_allclose(session(ids[:2]), session(ids)[:2], rtol=1e-5, atol=1e-6)


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


def test_tables_that_are_looked_up_at_known_places_get_eight_bits(tmp_path: Path) -> None:
    """Those that are named and floats: a byte for a number, and outputs within half a step of each row."""
    ov = openvino()
    ops = ov.opset13
    table = np.random.default_rng(0).normal(size=(32, 8)).astype(np.float32)
    table[3] *= 1000
    given = ops.parameter([2, 8], np.float32)
    held = [ops.constant(table), ops.constant(table + 1)]
    for number, each in enumerate(held):
        each.set_friendly_name(f"table{number}")
    looked = [ops.gather(each, ops.constant(np.array([3, 5])), ops.constant(0)) for each in held]
    made = ov.Model([ops.add(ops.add(looked[0], given), looked[1])], [given], "model")
    _round_tables(made, {"table0"})
    found = [each for each in made.get_ops() if each.get_type_name() == "Constant"]
    assert "<Type: 'int8_t'>" in {str(each.get_element_type()) for each in found}
    outputs = ov.compile_model(made, "CPU")(np.zeros((2, 8), np.float32))[0]
    steps = np.abs(table[[3, 5]]).max(1, keepdims=True) / 127
    away = np.abs(outputs - (table + table + 1)[[3, 5]])
    assert (away <= 0.51 * steps).all()
    assert away.max() > 0
    ov.save_model(made, str(tmp_path / "model.xml"), compress_to_fp16=False)
    # 256 bytes and 32 scales of 4; the other table stays 1024 bytes.
    assert 256 + 128 + 1024 <= (tmp_path / "model.bin").stat().st_size < 2048
