"""Weights and cuts on disk, and their way into a dense model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from modelpress_runner.edits import replay as recipe
from modelpress_runner.edits.cuts import Cut
from modelpress_runner.errors import ArtifactError, InvalidModelError
from modelpress_runner.export import weights

CUTS = [
    Cut("0", "out", (0, 2)),
    Cut("1", "out", (0, 2)),
    Cut("4", "in", (0, 2)),
]


def dense(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    )


def shrunk() -> nn.Sequential:
    model = dense()
    recipe.replay(model, CUTS)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.1)
    return model


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(model: nn.Module, expected: dict[str, torch.Tensor]) -> bool:
    found = model.state_dict()
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_shrunk_model_comes_back_in_a_dense_one(tmp_path: Path) -> None:
    """Cuts are replayed and weights loaded: the dense model has the small one's shapes and bits, and keeps its mode."""
    small = shrunk()
    weights.save(small, tmp_path, CUTS)
    model = dense(seed=1).eval()
    model[4].requires_grad_(False)
    assert weights.load_into(model, tmp_path) is model
    assert model[0].weight.shape == (2, 1, 3, 3)
    assert model[4].weight.shape == (3, 2)
    assert same(model, state(small))
    assert not model.training
    assert not model[4].weight.requires_grad
    x = torch.randn(2, 1, 5, 5)
    assert torch.equal(model(x), small.eval()(x))


def test_files_repeat_and_hold_what_they_should(tmp_path: Path) -> None:
    """Saving twice gives equal bytes; shrink.json lists the cuts; masks are named as the parameters."""
    masks = {"0": {"weight": torch.ones(4, 1, 3, 3)}, "": {"scale": torch.zeros(3)}}
    written = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        files = weights.save(dense(), tmp_path / name, CUTS, masks)
        written.append([(path.name, path.read_bytes()) for path in files])
    assert written[0] == written[1]
    assert [name for name, _ in written[0]] == ["model.safetensors", "shrink.json", "masks.safetensors"]
    assert weights.read_edits(tmp_path / "a" / "shrink.json") == CUTS
    assert json.loads((tmp_path / "a" / "shrink.json").read_text())["edits"][0] == {
        "edit": "cut",
        "axis": "out",
        "kept": [0, 2],
        "module": "0",
    }
    loaded = weights.load_masks(tmp_path / "a" / "masks.safetensors")
    assert {module: list(named) for module, named in loaded.items()} == {"": ["scale"], "0": ["weight"]}


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.b = nn.Linear(3, 3, bias=False)
        self.a = nn.Embedding(3, 3)
        self.a.weight = self.b.weight


def test_tied_weights_are_written_once_and_tied_again(tmp_path: Path) -> None:
    """The first name in order holds the numbers; in the model that is loaded into, both names do, still tied."""
    small, model = Tied(), Tied()
    weights.save(small, tmp_path, [])
    assert list(load_file(tmp_path / "model.safetensors")) == ["a.weight"]
    weights.load_into(model, tmp_path)
    assert torch.equal(model.b.weight, small.b.weight)
    assert model.a.weight is model.b.weight


def test_ties_are_found_whatever_name_was_kept(tmp_path: Path) -> None:
    """A file that holds the other name of a tied weight loads as well."""
    (tmp_path / "shrink.json").write_text(json.dumps(recipe.write([])))
    save_file({"b.weight": torch.full((3, 3), 7.0)}, tmp_path / "model.safetensors")
    model = Tied()
    weights.load_into(model, tmp_path)
    assert model.a.weight.tolist() == [[7.0] * 3] * 3


def test_views_and_layouts_are_stored(tmp_path: Path) -> None:
    """Parts of a larger tensor, transposed ones and overlapping ones are each written with their own numbers."""
    model = nn.Module()
    base = torch.arange(12.0).reshape(3, 4)
    model.register_buffer("part", base[:, :2])
    model.register_buffer("turned", base.t())
    model.register_buffer("all", base)
    weights.save_weights(model, tmp_path / "model.safetensors")
    found = load_file(tmp_path / "model.safetensors")
    assert {name: value.tolist() for name, value in found.items()} == {
        "part": base[:, :2].tolist(),
        "turned": base.t().tolist(),
        "all": base.tolist(),
    }


def test_types_of_the_artifact_hold(tmp_path: Path) -> None:
    """A weight that was made bfloat16 is bfloat16 after loading into a float32 model."""
    weights.save(nn.Linear(3, 2).bfloat16(), tmp_path, [])
    model = nn.Linear(3, 2)
    weights.load_into(model, tmp_path)
    assert model.weight.dtype == model.bias.dtype == torch.bfloat16
    assert isinstance(model.weight, nn.Parameter)


def wider() -> nn.Module:
    model = dense()
    model[4] = nn.Linear(4, 5)
    return model


def missing() -> nn.Module:
    model = dense()
    del model[4]
    return model


def more() -> nn.Module:
    return dense().append(nn.Linear(3, 3))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            wider(),
            r"4.bias is 3 in the artifact and 5 in the model; 4.weight is 3x2 in the artifact and 5x2 in the model",
        ),
        (missing(), r"shrink.json does not fit the model given as into="),
        (more(), r"5.bias is not in the artifact; 5.weight is not in the artifact; give the dense model"),
        (shrunk(), r"shrink.json does not fit .*2 out channels"),
    ],
)
def test_another_model_is_refused_untouched(model: nn.Module, message: str, tmp_path: Path) -> None:
    """A model of other shapes or layers is named as such, and stays as it was."""
    weights.save(shrunk(), tmp_path, CUTS)
    before = state(model)
    with pytest.raises(ArtifactError, match=message):
        weights.load_into(model, tmp_path)
    assert same(model, before)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.safetensors", b"\x80\x02garbage", r"model.safetensors is damaged"),
        ("model.safetensors", None, r"model.safetensors is missing"),
        ("shrink.json", b"{", r"shrink.json is damaged"),
        ("shrink.json", b"\xff", r"shrink.json is damaged"),
        ("shrink.json", b"[1]", r"versions 1 to 2 are read"),
        ("shrink.json", b'{"version": 3, "edits": []}', r"versions 1 to 2 are read"),
        ("shrink.json", None, r"shrink.json is missing"),
    ],
)
def test_damaged_files_are_named(name: str, content: bytes | None, message: str, tmp_path: Path) -> None:
    """A file that is not there or not readable is an error with its name, and the model stays as it was."""
    weights.save(shrunk(), tmp_path, CUTS)
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_bytes(content)
    model = dense()
    before = state(model)
    with pytest.raises(ArtifactError, match=message):
        weights.load_into(model, tmp_path)
    assert same(model, before)


def test_state_that_is_no_tensor_is_refused(tmp_path: Path) -> None:
    """Extra state could only be kept as a pickle."""

    class Extra(nn.Module):
        def get_extra_state(self) -> Any:
            return {"a": 1}

        def set_extra_state(self, value: Any) -> None:
            raise AssertionError

    with pytest.raises(InvalidModelError, match=r"entry '_extra_state' that is a dict, not a tensor"):
        weights.save(Extra(), tmp_path, [])


@pytest.mark.parametrize(
    "dtype", [torch.int8, torch.uint8, torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn]
)
def test_numbers_of_another_kind_are_refused_untouched(dtype: torch.dtype, tmp_path: Path) -> None:
    """A parameter stays floating; after the error the dense model is as it was."""
    model = nn.Linear(3, 2)
    weights.save(model, tmp_path, [])
    held = load_file(tmp_path / "model.safetensors")
    save_file(held | {"weight": held["weight"].to(dtype)}, tmp_path / "model.safetensors")
    dense = nn.Linear(3, 2)
    before = {name: value.clone() for name, value in dense.state_dict().items()}
    with pytest.raises(ArtifactError, match=f"weight is of {dtype} in the artifact and of torch.float32 in the model"):
        weights.load_into(dense, tmp_path)
    assert all(torch.equal(value, before[name]) for name, value in dense.state_dict().items())


@pytest.mark.parametrize("name", ["running_mean", "num_batches_tracked"])
def test_buffers_of_another_kind_are_refused_untouched(name: str, tmp_path: Path) -> None:
    """Statistics stay floating and counters whole."""
    weights.save(nn.BatchNorm1d(3), tmp_path, [])
    held = load_file(tmp_path / "model.safetensors")
    other = torch.float32 if name == "num_batches_tracked" else torch.int8
    save_file(held | {name: held[name].to(other)}, tmp_path / "model.safetensors")
    dense = nn.BatchNorm1d(3)
    before = {key: value.clone() for key, value in dense.state_dict().items()}
    with pytest.raises(ArtifactError, match=f"{name} is of {other} in the artifact"):
        weights.load_into(dense, tmp_path)
    assert all(torch.equal(value, before[key]) for key, value in dense.state_dict().items())


def test_what_is_no_number_is_loaded_as_it_is(tmp_path: Path) -> None:
    """A training that went wrong is told by its score; here its weights come back bit for bit."""
    model = nn.Linear(2, 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[float("nan"), float("inf")], [float("-inf"), 0.0]]))
    weights.save(model, tmp_path, [])
    again = weights.load_into(nn.Linear(2, 2), tmp_path)
    assert torch.equal(again.weight.view(torch.int32), model.weight.view(torch.int32))
