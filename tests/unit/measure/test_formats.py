"""Every format gives the model's own outputs, says how large it is, and leaves the model as it was."""

from __future__ import annotations

import typing
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from modelpress.api.v1alpha1 import Benchmark, Target
from modelpress_runner.errors import CompressionError, InvalidSpecError
from modelpress_runner.export.formats import format_names, format_of
from modelpress_runner.export.runtime_module import RuntimeModule
from modelpress_runner.export.weights import save_weights
from modelpress_runner.measure.latency import compare

X = torch.tensor([[1.0, 2.0], [3.0, -4.0]])


@pytest.fixture(autouse=True)
def few_headers() -> Iterator[None]:
    """The headers of torch are not compiled ahead, a minute in each new checkout, for the small files of this one."""
    from torch._inductor import config

    with config.patch(cpp_cache_precompile_headers=False):
        yield


def linear() -> nn.Linear:
    """y = x0 - x1 + 1"""
    model = nn.Linear(2, 1)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, -1.0]]))
        model.bias.fill_(1.0)
    return model


def test_the_types_list_what_is_there() -> None:
    """target.format takes the formats that the runner knows, and no other."""
    assert set(typing.get_args(Target.model_fields["format"].annotation)) == set(format_names())


@pytest.mark.parametrize("name", ["eager", "compiled", "pt2", "onnxruntime", "openvino"])
def test_a_form_computes_what_the_model_does(name: str) -> None:
    """1 - 2 + 1 = 0 and 3 + 4 + 1 = 8, with any batch; the module's mode, weights and forward stay."""
    model = linear().train()
    with format_of(name).form(model, X) as form:
        with torch.no_grad():
            assert form.model(X).tolist() == [[0.0], [8.0]]
            assert form.model(X.repeat(2, 1)).flatten().tolist() == [0.0, 8.0, 0.0, 8.0]
        assert form.size > 3 * 4
        if name == "compiled":
            assert isinstance(form.model, torch._dynamo.OptimizedModule)
    assert model.training
    assert "forward" not in vars(model)


def test_sizes_are_those_of_the_files(tmp_path: Path) -> None:
    """eager and compiled: model.safetensors; pt2: model.pt2, kept where it is asked for."""
    save_weights(linear(), tmp_path / "model.safetensors")
    for name in ("eager", "compiled"):
        with format_of(name).form(linear(), None) as form:
            assert form.size == (tmp_path / "model.safetensors").stat().st_size
            assert form.path is None
    with format_of("pt2").form(linear(), X, keep=tmp_path / "model.pt2") as form:
        assert form.size == (tmp_path / "model.pt2").stat().st_size
    assert (tmp_path / "model.pt2").exists()


def test_a_runtime_is_timed_with_the_threads_of_the_benchmark() -> None:
    """Both sessions get `coresPerInstance` threads while they are timed, and their own again behind it."""
    seen: list[int] = []

    def clock(call: typing.Any) -> int:
        seen.append(call.func._session.threads)
        call()
        return 1000

    with format_of("onnxruntime").form(linear(), X) as dense:
        assert dense.path is not None
        other = RuntimeModule(dense.path)
        before = dense.model._session.threads
        benchmark = Benchmark(warmup=0, iterations=2, cores_per_instance=before + 1)
        compare(dense.model, other, X, benchmark, clock=clock)
        assert seen == [before + 1] * 4
        assert dense.model._session.threads == before


def test_a_model_that_does_not_export_has_no_program() -> None:
    """It cannot be measured as one, and nothing else is measured instead."""

    class Fixed(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.reshape(2, 2) + 1

    with pytest.raises(CompressionError, match="fixes the batch size") as caught, format_of("pt2").form(Fixed(), X):
        pass
    assert caught.value.path == "spec.target.format"


def test_what_cannot_be_here_is_said_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers without its layout, and compiled without a compiler: before anything is trained."""
    with pytest.raises(InvalidSpecError, match="huggingFace"):
        format_of("transformers").check(None)
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CXX", raising=False)
    if not torch.cuda.is_available():
        with pytest.raises(InvalidSpecError, match=r"C\+\+ compiler"):
            format_of("compiled").check(None)


def test_one_model_compiled_takes_nothing_from_the_next() -> None:
    """torch counts compilations by function, and two nn.Sequential have the same one: behind a limit of one both are
    compiled."""
    import torch._dynamo

    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    with torch._dynamo.config.patch(recompile_limit=1), torch.no_grad():
        for width in (3, 4):
            model = nn.Sequential(nn.Linear(2, width), nn.ReLU())
            format_of("compiled").open(model, None, None)(torch.randn(1, 2))
    assert torch._dynamo.utils.counters["frames"]["ok"] == 2
