"""model.onnx: the module's own outputs in ONNX Runtime, called as the module was, without torch."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from runtime_nets import WIDTH, WORDS, ManyKinds, Quantized, many_inputs, word_ids
from torch import nn

import modelpress as mp
from modelpress_runner.errors import ArtifactError
from modelpress_runner.export.onnx.program import export_onnx
from modelpress_runner.export.pt2.equivalence import NotPortableError
from modelpress_runner.export.runtime_module import RuntimeModule
from modelpress_runner.serving import cpu
from modelpress_runner.serving.errors import CallError, MissingRuntimeError, RuntimeFileError
from modelpress_runner.serving.session import open_session
from modelpress_runner.serving.signature import Signature


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> tuple[ManyKinds, Path]:
    torch.manual_seed(0)
    model, path = ManyKinds().train(), tmp_path_factory.mktemp("many") / "model.onnx"
    export_onnx(model, many_inputs(), path)
    assert model.training
    return model.eval(), path


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> tuple[Quantized, Path]:
    model, path = Quantized(), tmp_path_factory.mktemp("quantized") / "model.onnx"
    export_onnx(model, word_ids(), path)
    return model.eval(), path


def test_it_is_called_as_the_module_was(many: tuple[ManyKinds, Path]) -> None:
    """Any batch, by name or position, nested outputs with their constants; one thread or two."""
    model, module = many[0], RuntimeModule(many[1])
    for rows in (1, 3, 5):
        given = many_inputs(rows)
        with torch.no_grad():
            expected = model(**given)
        torch.testing.assert_close(module(**given), expected)
        torch.testing.assert_close(module(given["x"], given["pair"], mask=given["mask"]), expected)
        with module.with_threads(2):
            torch.testing.assert_close(module(**given), expected)
    assert module.input_names == ("x", "pair", "mask")
    assert next(module.parameters()).device.type == "cpu"
    torch.testing.assert_close(copy.deepcopy(module)(**many_inputs()), module(**many_inputs()))


def test_a_wrong_call_says_what_is_right(many: tuple[ManyKinds, Path]) -> None:
    """Missing, unknown, of another shape or type: each is named, with what the model takes."""
    module, given = RuntimeModule(many[1]), many_inputs()
    with pytest.raises(CallError, match=r"no mask.*not in the example"):
        module(given["x"], given["pair"])
    with pytest.raises(CallError, match="other, which it does not take"):
        module(**given, other=1)
    with pytest.raises(CallError, match=r"x is \(2, 5\) float32; the model takes \(batch, 6\) float32"):
        module(**given | {"x": torch.zeros(2, 5)})
    with pytest.raises(CallError, match=r"\(2, 8\) float64"):
        module(**given | {"mask": torch.ones(2, 8, dtype=torch.float64)})
    with pytest.raises(CallError, match=r"mask is \(3, 8\)"):
        module(**given | {"mask": torch.ones(3, 8)})
    with pytest.raises(ArtifactError, match="inference only"):
        module.train()


def test_inputs_are_checked_where_they_change(many: tuple[ManyKinds, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Once for calls alike in a row; a call that is refused is checked each time."""
    checked: list[int] = []
    plain = Signature.check

    def check(signature: Signature, feed: Mapping[str, Any]) -> None:
        checked.append(1)
        plain(signature, feed)

    monkeypatch.setattr(Signature, "check", check)
    session = open_session(many[1])
    feed = {
        spec.name: np.ones([2 if isinstance(n, str) else n for n in spec.shape], spec.dtype)
        for spec in session.signature.inputs
    }
    for _ in range(3):
        session.run(feed)
    assert len(checked) == 1
    wrong = {name: value.astype(np.int8) for name, value in feed.items()}
    for _ in range(2):
        with pytest.raises(CallError):
            session.run(wrong)
    assert len(checked) == 3
    session.run(feed)
    assert len(checked) == 3


def test_it_runs_without_torch_and_without_a_network(many: tuple[ManyKinds, Path], tmp_path: Path) -> None:
    """A fresh process with ONNX Runtime alone, where torch, and any socket, is an error, computes the same."""
    given = many_inputs()
    np.savez(tmp_path / "in.npz", x=given["x"], a=given["pair"]["a"], b=given["pair"]["b"][0], mask=given["mask"])
    code = (
        "import sys, socket, pathlib\n"
        "sys.modules['torch'] = None\n"
        "def refuse(*args, **kwargs): raise AssertionError('a socket')\n"
        "socket.socket = refuse\n"
        "import numpy as np, onnxruntime\n"
        "given = dict(np.load(sys.argv[2]))\n"
        "session = onnxruntime.InferenceSession(sys.argv[1], providers=['CPUExecutionProvider'])\n"
        "feed = {'x': given['x'], 'pair_a': given['a'], 'pair_b_0': given['b'], 'mask': given['mask']}\n"
        "assert [each.name for each in session.get_inputs()] == list(feed), [e.name for e in session.get_inputs()]\n"
        "plain = session.run(['y'], feed)[0]\n"
        "from modelpress_runner.serving.session import open_session\n"
        "ours = open_session(pathlib.Path(sys.argv[1]))\n"
        "out = ours(given['x'], {'a': given['a'], 'b': [given['b']]}, mask=given['mask'])\n"
        "assert (out['y'] == plain).all() and out['nothing'] is None and out['scale'] == 2\n"
        "np.save(sys.argv[3], plain)\n"
    )
    arguments = [str(many[1]), str(tmp_path / "in.npz"), str(tmp_path / "out.npy")]
    subprocess.run([sys.executable, "-c", code, *arguments], check=True)
    with torch.no_grad():
        expected = many[0](**given)["y"]
    torch.testing.assert_close(torch.from_numpy(np.load(tmp_path / "out.npy")), expected)


def test_nothing_of_the_machine_is_in_the_file(many: tuple[ManyKinds, Path], tmp_path: Path) -> None:
    """No path and no line of code; the same model gives the same bytes."""
    written = many[1].read_bytes()
    for word in (b".py", b"stack_trace", b"site-packages", str(Path.cwd()).encode()):
        assert word not in written
    export_onnx(many[0], many_inputs(), tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == written


def test_integers_compute_what_fake_quantization_does(quantized: tuple[Quantized, Path]) -> None:
    """Without a runtime's own arithmetic the numbers are the same; with it a few fall on the next level."""
    model, path = quantized
    ids = word_ids(64)
    with torch.no_grad():
        expected = model(ids)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    plain = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    reference = torch.from_numpy(plain.run(None, {"ids": ids.numpy()})[0])
    assert float((reference - expected).norm() / expected.norm()) < 0.005
    found = RuntimeModule(path)(ids)
    assert float((found - expected).norm() / expected.norm()) < 0.02


def test_weights_are_integers_in_the_file(quantized: tuple[Quantized, Path]) -> None:
    """Each weight is one byte, the embedding too; next to them lie scales and biases."""
    model, path = quantized
    weights = sum(each.layer.weight.numel() for each in model.modules() if hasattr(each, "weight_scale"))
    floats = sum(each.layer.weight.numel() * 4 for each in model.modules() if hasattr(each, "weight_scale"))
    stored = {each.name: each for each in onnx.load(path).graph.initializer}
    kinds = [onnx.TensorProto.DataType.Name(each.data_type) for each in stored.values() if np.prod(each.dims) > 999]
    assert kinds == ["INT8"] * 5
    assert weights < path.stat().st_size < floats / 2
    assert "int8: 5 tensors" in {each.value for each in onnx.load(path).metadata_props}


def test_the_runtime_computes_in_integers(quantized: tuple[Quantized, Path], tmp_path: Path) -> None:
    """Convolutions and linear layers are fused into integer kernels, and no table is made float at each call."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(quantized[1]), options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert kinds.count("QLinearConv") == 2
    assert sum(kinds.count(name) for name in ("MatMulIntegerToFloat", "QLinearMatMul", "QGemm")) == 2
    assert not {"Conv", "FusedConv", "MatMul", "Gemm"} & set(kinds)
    table = next(node for node in onnx.load(quantized[1]).graph.node if node.op_type == "Gather")
    assert table.input[0] == "words.layer.weight_integers"


def test_a_recipe_that_quantizes_is_measured_in_integers() -> None:
    """quantize by calibration, weighed as model.onnx: over three times smaller, but not smaller than its weights."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(512, 32))
    data = [torch.randn(8, 1, 8, 8) for _ in range(2)]
    stage = {"quantize": {"algorithm": "ptq_static", "config_list": [{"op_types": ["Conv2d", "Linear"]}]}}
    target = {"format": "onnxruntime"}
    result = mp.compress(net, [stage], dummy_input=data[0], calibration_data=data, target=target)
    assert result.metrics["compressed"]["compressionRatio"] > 3
    assert result.metrics["compressed"]["sizeBytes"] > 512 * 32


def test_four_bits_take_half_a_byte(quantized: tuple[Quantized, Path], tmp_path: Path) -> None:
    """Weights in [-7, 7] are int4, and the file is smaller by half a byte for each of them."""
    model = Quantized(high=7).eval()
    export_onnx(model, word_ids(), tmp_path / "model.onnx")
    changed = 2 * 4 * WIDTH * WIDTH
    assert quantized[1].stat().st_size - (tmp_path / "model.onnx").stat().st_size == pytest.approx(
        changed / 2, rel=0.05
    )
    ids = word_ids(16)
    with torch.no_grad():
        expected = model(ids)
    assert float((RuntimeModule(tmp_path / "model.onnx")(ids) - expected).norm() / expected.norm()) < 0.02


def test_where_bytes_may_overflow_the_session_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """x86 without VNNI adds two products of bytes in 16 bits; with it, and on other processors, nothing overflows."""
    for machine, flags, expected in (
        ("x86_64", {"avx2"}, True),
        ("x86_64", {"avx2", "avx512_vnni"}, False),
        ("x86_64", {"avx_vnni"}, False),
        ("aarch64", {"asimddp"}, False),
    ):
        monkeypatch.setattr(cpu.platform, "machine", lambda machine=machine: machine)
        monkeypatch.setattr(cpu, "flags", lambda flags=flags: frozenset(flags))
        assert cpu.saturates() is expected


def test_axes_besides_the_batch_stay_free(tmp_path: Path) -> None:
    """The length of a text, where it is named; elsewhere it is that of the example."""

    class Texts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(WORDS, 4)

        def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return (self.words(ids) * mask[:, :, None]).sum(1)

    model, given = Texts(), (word_ids(), torch.ones(2, 8))
    export_onnx(model, given, tmp_path / "free.onnx", {"ids": {1: "length"}, "mask": {1: "length"}})
    module = RuntimeModule(tmp_path / "free.onnx")
    assert "ids: (batch, length) int64, mask: (batch, length) float32" in repr(module)
    longer = (word_ids(3, 11), torch.rand(3, 11))
    with torch.no_grad():
        torch.testing.assert_close(module(*longer), model(*longer))
    with pytest.raises(CallError, match="mask is"):
        module(word_ids(3, 11), torch.rand(3, 10))
    with pytest.raises(NotPortableError, match="'idz', which is not among the example inputs: ids, mask"):
        export_onnx(model, given, tmp_path / "wrong.onnx", {"idz": {1: "length"}})
    with pytest.raises(NotPortableError, match="'ids' has 2 axes, and there is no axis 2"):
        export_onnx(model, given, tmp_path / "wrong.onnx", {"ids": {2: "length"}})
    assert not (tmp_path / "wrong.onnx").exists()


def test_what_has_no_form_in_onnx_is_said(tmp_path: Path) -> None:
    """An operator without a translation, a fixed batch: the reason, and no file."""

    class Special(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.special.i1e(x)

    class Fixed(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.reshape(2, 3) + 1

    for model, reason in ((Special(), "bessel_i1e"), (Fixed(), "fixes the batch size")):
        with pytest.raises(NotPortableError, match=reason):
            export_onnx(model, torch.rand(2, 3), tmp_path / "model.onnx")
        assert not list(tmp_path.iterdir())


def test_other_files_are_refused(many: tuple[ManyKinds, Path], tmp_path: Path, monkeypatch: Any) -> None:
    """No ONNX, ONNX of somebody else, a changed signature, a runtime that is missing."""
    (tmp_path / "text.onnx").write_text("hello")
    with pytest.raises(RuntimeFileError, match=r"cannot open text\.onnx"):
        open_session(tmp_path / "text.onnx")
    document = onnx.load(many[1])
    for each in document.metadata_props:
        if each.key == "modelpress.signature":
            each.value = each.value.replace('"tensor":"x"', '"tensor":"z"', 1)
    onnx.save(document, tmp_path / "changed.onnx")
    with pytest.raises(RuntimeFileError, match=r"damaged|not what it takes"):
        open_session(tmp_path / "changed.onnx")
    del document.metadata_props[:]
    onnx.save(document, tmp_path / "theirs.onnx")
    with pytest.raises(RuntimeFileError, match="was not written by modelpress"):
        open_session(tmp_path / "theirs.onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingRuntimeError, match=r"pip install 'modelpress\[onnx\]'"):
        open_session(many[1])
