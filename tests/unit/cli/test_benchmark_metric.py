"""Metrics of a file by its runtime alone: hand-computed."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modelpress.cli.benchmark import Asked, run_benchmark
from modelpress.local.errors import UsageError
from modelpress_runner.serving.accuracy import measured
from modelpress_runner.serving.errors import CallError
from modelpress_runner.serving.session import Session
from modelpress_runner.serving.signature import Signature, TensorSpec


class Given(Session):
    """Gives back what it is given, as a runtime would give outputs."""

    runtime, threads = "given", 1

    def __init__(self, *shape: int) -> None:
        spec = TensorSpec("x", "float32", ("batch", *shape), 0, 1)
        self.signature = Signature((("x", False, {"tensor": "x"}),), (spec,), {"tensor": "y"}, ("y",))
        self.calls = 0

    def run(self, feed: Mapping[str, np.ndarray[Any, Any]]) -> Sequence[np.ndarray[Any, Any]]:
        self.calls += 1
        return [feed["x"]]


def rows(path: Path, outputs: Any, labels: Any) -> Path:
    np.savez(path / "rows.npz", x=np.asarray(outputs, np.float32), **({} if labels is None else {"labels": labels}))
    return path / "rows.npz"


def test_classes(tmp_path: Path) -> None:
    """Three of five first, four of five among two; classes with 4/5, 2/3 and 0 of f1."""
    outputs = [[9, 5, 0], [9, 5, 0], [5, 9, 0], [9, 5, 0], [0, 9, 5]]
    path = rows(tmp_path, outputs, np.array([0, 0, 1, 1, 2]))
    session = Given(3)
    assert measured(session, path, "top1", 2) == 0.6
    assert session.calls == 3
    assert measured(session, path, "top2", 5) == 1.0
    # 0: 3 found, 2 are, 2 both. 1: 2 found, 2 are, 1 both. 2: none found.
    assert measured(session, path, "f1", 4) == pytest.approx((4 / 5 + 2 / 4 + 0) / 3)
    with pytest.raises(CallError, match="whole numbers from 0 to 2"):
        measured(session, rows(tmp_path, outputs, np.array([0, 0, 1, 1, 3])), "top1", 2)
    with pytest.raises(CallError, match="needs an array 'labels' with one entry for each of the 5 rows"):
        measured(session, rows(tmp_path, outputs, None), "top1", 2)


def test_tokens_and_neighbours(tmp_path: Path) -> None:
    """A uniform guess among four words is a perplexity of 4; a token that does not count changes nothing."""
    flat = np.zeros((2, 3, 4))
    labels = np.array([[0, 1, 2], [3, -100, -100]])
    assert measured(Given(3, 4), rows(tmp_path, flat, labels), "perplexity", 1) == pytest.approx(4)
    sure = flat.copy()
    sure[0, 0, 0] = math.log(9)  # 9 to 1, 1, 1: three quarters
    wanted = math.exp(-(math.log(0.75) + 3 * math.log(0.25)) / 4)
    assert measured(Given(3, 4), rows(tmp_path, sure, labels), "perplexity", 2) == pytest.approx(wanted)
    points = [[1, 0], [2, 0.1], [0, 1], [0.1, 3], [-1, 0.9], [5, -1]]
    assert measured(Given(2), rows(tmp_path, points, np.array([7, 7, 8, 8, 9, 8])), "retrieval", 6) == 4 / 5
    with pytest.raises(CallError, match="perplexity is of outputs"):
        measured(Given(2), rows(tmp_path, points, np.arange(6)), "perplexity", 6)


def test_what_is_refused(tmp_path: Path) -> None:
    """Before a process is started."""
    path = tmp_path / "model.onnx"
    path.write_bytes(b"")
    for metric, data, message in (("top", None, "--metric: there is no 'top'"), ("f1", None, "give them with --data")):
        asked = Asked(1, 1, 1, 1, 1, data, 0, metric)
        with pytest.raises(UsageError, match=message):
            run_benchmark(str(path), asked, runtime=None, endpoint=None, region=None, as_json=True, progress=False)
    assert json.dumps(sorted(os.listdir(tmp_path))) == '["model.onnx"]'
