"""Measured metrics of a model and of a pair of models."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import nn

from modelpress.api.v1alpha1 import Benchmark, CompressionJobSpec
from modelpress_runner.errors import InvalidModelError, InvalidSpecError
from modelpress_runner.measure import latency
from modelpress_runner.measure import static as measure
from modelpress_runner.measure.measuring import Measuring
from modelpress_runner.subject.subject import Subject

X = torch.ones(2, 4)


class Recorder(nn.Module):
    """Writes down how it is called."""

    def __init__(self, calls: list[tuple[str, tuple[int, ...], bool, int, bool]], name: str) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))
        self.calls, self.name = calls, name

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        threads = torch.get_num_threads()
        self.calls.append((self.name, tuple(x.shape), torch.is_inference_mode_enabled(), threads, gc.isenabled()))
        return x * self.weight


def test_static_metrics_by_hand() -> None:
    """A linear layer of 4 to 3 with one column zeroed, judged against a dense model of 30 parameters."""
    model = nn.Linear(4, 3)
    with torch.no_grad():
        model.weight.fill_(1.0)
        model.weight[:, 0] = 0.0
        model.bias.fill_(1.0)
    found = measure.static_metrics(model, X, dense_parameters=30, dense_size=1000)
    size = found.pop("sizeBytes")
    assert found == {
        "parameters": 15.0,
        "nonzeroParameters": 12.0,
        "macs": 12.0,
        "sparsity": 1 - 12 / 30,
        "compressionRatio": 1000 / size,
    }
    assert size > 15 * 4


def test_the_dense_model_is_judged_against_itself() -> None:
    """Without a dense model to compare with, sparsity is that of the model's own zeros and there is no ratio."""
    model = nn.Linear(4, 3, bias=False)
    with torch.no_grad():
        model.weight.fill_(1.0)
    found = measure.static_metrics(model, X)
    assert found["sparsity"] == 0.0
    assert "compressionRatio" not in found


def test_the_size_may_be_that_of_another_format() -> None:
    """sizeBytes and the ratio are those of the size that is given; without example inputs there are no MACs."""
    found = measure.static_metrics(nn.Linear(4, 3), None, size=250, dense_size=1000)
    assert (found["sizeBytes"], found["compressionRatio"]) == (250.0, 4.0)
    assert "macs" not in found


def test_models_are_timed_in_turn() -> None:
    """Each timed call stands beside one of the other model, who goes first alternates, under the same conditions."""
    calls: list[tuple[str, tuple[int, ...], bool, int, bool]] = []
    dense, compressed = Recorder(calls, "dense"), Recorder(calls, "compressed")
    threads = torch.get_num_threads()
    benchmark = Benchmark.model_validate({"warmup": 1, "iterations": 3, "batchSize": 5, "coresPerInstance": 2})
    timed = measure.timed_metrics(dense, compressed, X, benchmark)
    names = [call[0] for call in calls]
    assert names[4:] == ["dense", "compressed", "compressed", "dense", "dense", "compressed"]
    assert {call[1:4] for call in calls} == {((5, 4), True, 2)}
    assert not any(call[4] for call in calls[4:])
    assert torch.get_num_threads() == threads
    assert gc.isenabled()
    assert dense.training
    assert timed.detail["dense"]["iterations"] == 3
    assert (timed.detail["batchSize"], timed.detail["threads"], timed.detail["warmup"]) == (5, 2, 1)
    assert timed.baseline["throughput"] == pytest.approx(5 / (timed.baseline["latencyMs"] / 1e3))
    assert timed.compressed["speedup"] == timed.baseline["latencyMs"] / timed.compressed["latencyMs"]
    assert "speedup" not in timed.baseline


def test_spread_by_hand() -> None:
    """Durations of 1 to 11 ms: percentiles interpolate linearly between them."""
    timing = latency.summarize([milliseconds * 1_000_000 for milliseconds in range(11, 0, -1)])
    assert timing == latency.Timing(median=6.0, p10=2.0, p90=10.0, min=1.0, iqr=5.0, iterations=11)
    assert timing.to_dict() == {
        "medianMs": 6.0,
        "p10Ms": 2.0,
        "p90Ms": 10.0,
        "minMs": 1.0,
        "iqrMs": 5.0,
        "iterations": 11,
    }


def test_threads_come_back_after_an_error() -> None:
    """A model that does not run with the benchmark's batch is named, and the process is as before."""

    class OneRow(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.reshape(1, 4)

    threads = torch.get_num_threads()
    benchmark = Benchmark.model_validate({"batchSize": 3, "coresPerInstance": 2})
    with pytest.raises(InvalidModelError, match=r"benchmark: the dense model .* batch of 3 .* benchmark.batchSize"):
        measure.timed_metrics(OneRow(), nn.Linear(4, 3), X, benchmark)
    assert torch.get_num_threads() == threads
    assert gc.isenabled()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_no_device() -> None:
    """A recipe whose latency belongs on a GPU ends, before anything is trained, where the process sees none."""
    recipe = {"model": {"entrypoint": "a:b"}, "stages": [{"finetune": {"epochs": 1}}], "target": {"device": "cuda"}}
    spec = CompressionJobSpec.model_validate(recipe)
    with pytest.raises(InvalidSpecError, match="sees none") as caught:
        Measuring(spec, Subject(nn.Linear(4, 3), example_inputs=X), timed=True)
    assert caught.value.path == "spec.target.device"
