"""modelpress benchmark: instances on cores of their own, random inputs or the user's, errors in a sentence."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from modelpress.cli.benchmark import Asked, _spread, run_benchmark
from modelpress.local.errors import LocalError, UsageError
from modelpress.store import manifest, open_store
from modelpress_runner.serving.inputs import batch_of, random_feed, user_rows
from modelpress_runner.serving.session import open_session
from modelpress_runner.serving.signature import KEY, Signature, TensorSpec

CORES = sorted(os.sched_getaffinity(0))


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """y = table[ids] @ ones(4, 2), as modelpress writes it: ids between 3 and 5."""
    path = tmp_path_factory.mktemp("product") / "model.onnx"
    tensors = {"table": np.arange(24, dtype="float32").reshape(6, 4), "ones": np.ones((4, 2), "float32")}
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"], axis=0),
        helper.make_node("MatMul", ["rows", "ones"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "product",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 2])],
        [numpy_helper.from_array(value, name) for name, value in tensors.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    spec = TensorSpec("ids", "int64", ("batch",), 3, 5)
    signature = Signature((("ids", False, {"tensor": "ids"}),), (spec,), {"tensor": "y"}, ("y",))
    helper.set_model_props(model, {KEY: signature.to_json()})
    onnx.save(model, path)
    return path


def run(what: str | Path, **change: Any) -> None:
    given = {"warmup": 1, "iterations": 20, "batch_size": 2, "instances": 1, "cores_per_instance": 1}
    given |= {"data": None, "seed": 0} | {key: change.pop(key) for key in [*change] if key in Asked.__annotations__}
    options: dict[str, Any] = {"runtime": None, "endpoint": None, "region": None, "as_json": True, "progress": False}
    assert run_benchmark(str(what), Asked(**given), **options | change) == 0


@pytest.mark.skipif(len(CORES) < 2, reason="two cores are needed")
def test_instances_have_cores_of_their_own(product: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two instances run on one core each, as the kernel says; throughput is the sum of theirs."""
    run(product, instances=2)
    found = json.loads(capsys.readouterr().out)
    assert [each["cores"] for each in found["instances"]] == [[CORES[0]], [CORES[1]]]
    assert found["throughput"] == sum(each["throughput"] for each in found["instances"])
    assert found["runtime"] == "onnxruntime"
    assert found["inputs"] == "ids: (batch,) int64"
    spread = found["latencyMs"]
    assert 0 < spread["min"] <= spread["p50"] <= spread["p90"] <= spread["p99"]


def test_an_artifact_is_measured_by_its_files(
    product: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The folder with manifest.json stands for the file in it, which is verified; a table is what one sees."""
    store = open_store(str(tmp_path))
    store.put_file("1-abc/model.onnx", product)
    entry = manifest.entry("1-abc/model.onnx", product)
    plain = {"apiVersion": "modelpress.dev/v1alpha1", "attempt": 1, "files": [entry.to_dict()], "specDigest": "0" * 64}
    plain |= {"metrics": {"baseline": {}, "compressed": {}, "stages": []}, "versions": {}, "requiredImports": []}
    manifest.commit(store, "", manifest.Manifest.model_validate(plain))
    run(tmp_path / "manifest.json", as_json=False)
    shown = capsys.readouterr().out
    assert "model.onnx in onnxruntime, batch 2, 20 calls of each instance, random data" in shown
    with pytest.raises(UsageError, match=r"has no model\.xml; a job writes one with export: \{formats: \[openvino\]\}"):
        run(tmp_path, runtime="openvino")
    (tmp_path / "1-abc" / "model.onnx").write_bytes(b"other")
    with pytest.raises(UsageError, match=r"model\.onnx"):
        run(tmp_path)


def test_inputs_are_of_the_examples_kind(product: Path, tmp_path: Path) -> None:
    """Random ones lie between the least and the greatest of the example; the user's rows are taken in turn."""
    session = open_session(product)
    feed = random_feed(session.signature, 500, seed=1)
    assert feed["ids"].dtype == np.int64
    assert set(feed["ids"].tolist()) == {3, 4, 5}
    assert (random_feed(session.signature, 500, seed=1)["ids"] == feed["ids"]).all()
    np.savez(tmp_path / "rows.npz", ids=np.array([0, 1, 2]))
    rows = user_rows(tmp_path / "rows.npz", session.signature)
    assert [batch_of(rows, number, 2)["ids"].tolist() for number in range(3)] == [[0, 1], [2, 0], [1, 2]]
    assert session.run(batch_of(rows, 0, 2))[0].tolist() == [[6.0, 6.0], [22.0, 22.0]]


def test_bad_input_is_a_sentence(product: Path, tmp_path: Path) -> None:
    """Files that are not there or no models, too many cores, data that the model does not take, pickles."""
    with pytest.raises(UsageError, match=r"name model\.onnx, model\.xml or an artifact's folder"):
        run(tmp_path / "nothing")
    with pytest.raises(UsageError, match=r"has no manifest\.json"):
        run(tmp_path)
    (tmp_path / "job.yaml").write_text("kind: CompressionJob")
    with pytest.raises(UsageError, match="run first, with `modelpress run`"):
        run(tmp_path / "job.yaml")
    with pytest.raises(UsageError, match=rf"need 10000 cores, and this process may use {len(CORES)}"):
        run(product, instances=100, cores_per_instance=100)
    with pytest.raises(UsageError, match="no runtime 'tflite'; known: onnxruntime, openvino"):
        run(product, runtime="tflite")
    with pytest.raises(UsageError, match="--data: there is no file"):
        run(product, data=tmp_path / "rows.npz")
    np.savez(tmp_path / "rows.npz", words=np.zeros(3, "int64"))
    with pytest.raises(LocalError, match="there is no array 'ids'; the model takes ids"):
        run(product, data=tmp_path / "rows.npz")
    np.savez(tmp_path / "rows.npz", ids=np.array([{}], object))
    with pytest.raises(LocalError, match="without pickles"):
        run(product, data=tmp_path / "rows.npz")
    (tmp_path / "rows.npz").write_bytes((tmp_path / "rows.npz").read_bytes()[:60])
    for text in (None, "", "kind: CompressionJob"):
        if text is not None:
            (tmp_path / "rows.npz").write_text(text)
        with pytest.raises(LocalError, match=r"write one with numpy\.savez: arrays of numbers, named ids$"):
            run(product, data=tmp_path / "rows.npz")
    (tmp_path / "model.onnx").write_text("hello")
    with pytest.raises(LocalError, match=r"ONNX Runtime cannot open model\.onnx"):
        run(tmp_path / "model.onnx")


def test_percentiles_are_exact() -> None:
    """1 to 5: the median is 3, the 90th percentile 4.6, linear between neighbours."""
    found = _spread([5.0, 1.0, 4.0, 2.0, 3.0])
    assert found == {"p50": 3.0, "p90": pytest.approx(4.6), "p99": pytest.approx(4.96), "min": 1.0, "mean": 3.0}


def test_the_command_says_how_it_is_used() -> None:
    """--help has an example."""
    command = [sys.executable, "-m", "modelpress.cli", "benchmark", "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "Example: modelpress benchmark" in shown
    assert "--cores-per-instance" in shown
