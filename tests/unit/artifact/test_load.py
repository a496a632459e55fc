"""mp.load: artifacts back to models, by the manifest, without the training script."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import modelpress as mp
from modelpress_runner.artifact import files as artifact
from modelpress_runner.edits import replay as recipe
from modelpress_runner.edits.cuts import Cut
from modelpress_runner.errors import ArtifactError, CompressionError, InvalidModelError, StoreError
from modelpress_runner.export.pt2.module import Program

SPEC = {"stages": [{"finetune": {"epochs": 1}}]}
CUTS = [Cut("conv1", "out", (1, 3)), Cut("bn1", "out", (1, 3)), Cut("conv2", "in", (1, 3))]
CUTS += [Cut("conv2", "out", (1, 3)), Cut("fc", "in", (1, 3))]


@pytest.fixture
def small(residual: nn.Module) -> nn.Module:
    recipe.replay(residual, CUTS)
    return residual


@pytest.fixture
def saved(small: nn.Module, tmp_path: Path) -> Path:
    """An artifact of a shrunk Residual."""
    save(tmp_path / "out", small, edits=CUTS)
    return tmp_path / "out"


def save(uri: Path | str, model: nn.Module, edits: Any = (), dummy_input: Any = None, **change: Any) -> None:
    inputs = torch.zeros(1, 1, 6, 6) if dummy_input is None else dummy_input
    given = {"model": model, "dummy_input": inputs, "edits": edits, "masks": None, "metrics": {}, "spec": SPEC}
    artifact.save(str(uri), run_uid="abcd1234", **given | change)


def file(folder: Path, name: str) -> Path:
    return folder / "1-abcd1234" / name


def test_a_program_comes_back(saved: Path, small: nn.Module, images: torch.Tensor) -> None:
    """The program gives the rows of the model that was saved; path, file URI and manifest path are one."""
    expected = small.eval()(images)
    for uri in (saved, str(saved), f"{saved}/", saved.as_uri(), f"{saved}/manifest.json"):
        torch.testing.assert_close(mp.load(uri)(images), expected)


def test_into_a_dense_model(saved: Path, small: nn.Module, models: Any, images: torch.Tensor) -> None:
    """The dense model is shrunk and filled in place: an eager module of its own classes, equal bit by bit."""
    dense = models.residual()
    model = mp.load(saved, into=dense)
    assert model is dense
    assert isinstance(model.conv1, nn.Conv2d)
    assert model.conv1.out_channels == 2
    assert torch.equal(model.eval()(images), small.eval()(images))


def test_memory_stores_work(small: nn.Module) -> None:
    """An artifact may lie in any store."""
    save("memory://load-test/a", small)
    assert isinstance(mp.load("memory://load-test/a"), nn.Module)


def test_a_folder_without_manifest_is_named(tmp_path: Path) -> None:
    """A folder that is no artifact says what to give."""
    with pytest.raises(ArtifactError, match=r"has no manifest.json; give the folder of a finished job or trial"):
        mp.load(tmp_path)


@pytest.mark.parametrize("name", ["model.pt2", "model.safetensors", "shrink.json"])
def test_a_changed_file_is_never_opened(saved: Path, models: Any, name: str, tmp_path: Path) -> None:
    """A file that differs from the manifest by one byte is refused by its checksum, before anything reads it."""
    path = file(saved, name)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    dense = models.residual()
    before = {key: value.clone() for key, value in dense.state_dict().items()}
    with pytest.raises(ArtifactError, match=rf"{name}: damaged or replaced: sha256"):
        mp.load(saved, into=None if name == "model.pt2" else dense)
    assert all(torch.equal(value, before[key]) for key, value in dense.state_dict().items())


def test_a_missing_file_is_named(saved: Path) -> None:
    """A file that the manifest names and the store lacks is named."""
    file(saved, "model.pt2").unlink()
    with pytest.raises(ArtifactError, match=r"model.pt2: the manifest names this file, but it is not there"):
        mp.load(saved)


def test_a_damaged_manifest_is_named(saved: Path) -> None:
    """A manifest that is not JSON, or foreign, is an error of the artifact."""
    (saved / "manifest.json").write_text("{")
    with pytest.raises(ArtifactError, match=r"this is not JSON"):
        mp.load(saved)


class Fixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x.reshape(1, 4))


def test_what_has_no_program_says_why_and_what_to_do(tmp_path: Path) -> None:
    """Not portable: the reason from when it was saved, and into= as the way; that way works."""
    model = Fixed()
    save(tmp_path / "out", model, dummy_input=torch.ones(1, 4))
    with pytest.raises(
        ArtifactError, match=r"has no program \(its code fixes the batch size .*mp.load\(uri, into=model\)"
    ):
        mp.load(tmp_path / "out")
    assert torch.equal(mp.load(tmp_path / "out", into=Fixed()).fc.weight, model.fc.weight)


def test_a_newer_torch_is_needed(small: nn.Module, tmp_path: Path, models: Any) -> None:
    """A program of a later torch is refused with the version to install; the weights load all the same."""
    save(tmp_path / "out", small, edits=CUTS, versions={"torch": "99.1.0"})
    with pytest.raises(ArtifactError, match=r"written with torch 99\.1\.0 .* install torch 99\.1 or later"):
        mp.load(tmp_path / "out")
    assert mp.load(tmp_path / "out", into=models.residual()).conv1.out_channels == 2


def test_an_unusable_uri_is_an_error_of_the_store() -> None:
    """A scheme that is none is named by the store."""
    with pytest.raises(StoreError, match="unknown scheme 'ftp'"):
        mp.load("ftp://host/model")


SCRIPT = """
import sys, json, torch
import modelpress as mp
model = mp.load(sys.argv[1])
x = torch.arange(108.0).reshape(3, 1, 6, 6) / 100
before = model(x)
model.train()
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
model(x).square().mean().backward()
optimizer.step()
model.eval()
loaded = [name for name in sys.modules if "conftest" in name]
print(json.dumps({"rows": before.tolist(), "moved": bool((model(x) != before).any()), "loaded": loaded}))
"""


def test_another_process_needs_no_code_of_the_model(saved: Path, small: nn.Module, tmp_path: Path) -> None:
    """A process in an empty folder, with no path to the model's code, opens, runs and trains the program."""
    empty = tmp_path / "empty"
    empty.mkdir()
    done = subprocess.run(
        [sys.executable, "-I", "-W", "error", "-c", SCRIPT, str(saved)],
        cwd=empty,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    x = torch.arange(108.0).reshape(3, 1, 6, 6) / 100
    torch.testing.assert_close(torch.tensor(answer["rows"]), small.eval()(x))
    assert answer["moved"]
    assert answer["loaded"] == []


PACKAGE = """
import torch
@torch.library.custom_op("mpress_pkg::twice", mutates_args=())
def twice(x: torch.Tensor) -> torch.Tensor:
    return x * 2
@twice.register_fake
def _(x):
    return torch.empty_like(x)
def _setup(ctx, inputs, output):
    pass
twice.register_autograd(lambda ctx, grad: grad * 2, setup_context=_setup)
class Twice(torch.nn.Module):
    def forward(self, x):
        return twice(x)
"""


def test_missing_imports_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program with a package's operator says which import is missing, and opens after it."""
    (tmp_path / "mpress_pkg.py").write_text(PACKAGE)
    monkeypatch.syspath_prepend(tmp_path)
    import mpress_pkg

    save(tmp_path / "out", mpress_pkg.Twice(), dummy_input=torch.ones(1, 4))
    script = (
        "import sys, modelpress as mp\n"
        "try:\n    mp.load(sys.argv[1])\nexcept Exception as error:\n    print(error)\n"
        "sys.path.insert(0, sys.argv[2])\nimport mpress_pkg, torch\n"
        "print(mp.load(sys.argv[1], operators=['mpress_pkg::twice'])(torch.ones(2, 4)).sum().item())\n"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", script, str(tmp_path / "out"), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    message, total = done.stdout.splitlines()
    assert "needs the operator mpress_pkg.twice.default of mpress_pkg; run 'import mpress_pkg' before" in message
    assert total == "16.0"


def test_a_manifest_is_pinned_by_its_digest(saved: Path, models: Any) -> None:
    """The sha256 that a status has opens it, in any case; another refuses it, before a model is touched."""
    import hashlib

    digest = hashlib.sha256((saved / "manifest.json").read_bytes()).hexdigest()
    assert isinstance(mp.load(saved, digest=digest.upper()), nn.Module)
    with pytest.raises(ArtifactError, match=f"its manifest has the sha256 {digest}, not {'0' * 64}"):
        mp.load(saved, into=models.residual(), digest="0" * 64)


def test_a_number_that_is_no_version_is_an_error(saved: Path, models: Any) -> None:
    """A version of 5,000 digits is a later torch, not a traceback."""
    manifest = json.loads((saved / "manifest.json").read_text())
    manifest["versions"]["torch"] = "9" * 5000
    (saved / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match="install torch 999999"):
        mp.load(saved)


def test_a_file_of_a_runtime_comes_back(residual: nn.Module, images: torch.Tensor, tmp_path: Path) -> None:
    """With export.formats the artifact has model.onnx, checked and told in the card; mp.load opens it by its format, or
    where there is no program; what is not there is named with what writes it."""
    spec = SPEC | {"export": {"formats": ["onnx"]}}
    save(tmp_path / "out", residual, spec=spec)
    expected = residual.eval()(images)
    module = mp.load(tmp_path / "out", format="onnxruntime")
    assert isinstance(module, mp.RuntimeModule)
    torch.testing.assert_close(module(images), expected, rtol=1e-3, atol=1e-4)
    assert isinstance(mp.load(tmp_path / "out"), Program)
    folder = module._path.parent
    assert folder.exists()
    del module
    assert not folder.exists()
    card = file(tmp_path / "out", "README.md").read_text()
    assert "onnxruntime.InferenceSession" in card
    assert "- `model.onnx`: the model for ONNX Runtime" in card
    file(tmp_path / "out", "model.onnx").write_bytes(b"other")
    with pytest.raises(ArtifactError, match=r"model\.onnx"):
        mp.load(tmp_path / "out", format="onnxruntime")
    with pytest.raises(ArtifactError, match=r"no format 'tflite' to load; known: pt2, onnxruntime, openvino"):
        mp.load(tmp_path / "out", format="tflite")


def test_a_form_that_cannot_be_fails_the_artifact(tmp_path: Path) -> None:
    """Asked for model.onnx, a model without one is an error that names the field, not an artifact without it."""

    class Special(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.special.i1e(x)

    with pytest.raises(CompressionError, match=r"^spec\.export\.formats: the model has no form in ONNX .*bessel_i1e"):
        save(tmp_path / "out", Special(), spec=SPEC | {"export": {"formats": ["onnx"]}})
    with pytest.raises(InvalidModelError, match="written with an example input"):
        artifact.save(
            str(tmp_path / "out"), model=Special(), dummy_input=None, edits=(), masks=None, metrics={},
            spec=SPEC | {"export": {"formats": ["onnx"]}},
        )  # fmt: skip
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_missing_file_of_a_runtime_is_named(saved: Path) -> None:
    """The error says what the artifact has, and what writes the other."""
    with pytest.raises(ArtifactError, match=r"has no model\.onnx; it has pt2 .*export: \{formats: \[onnx\]\}"):
        mp.load(saved, format="onnxruntime")
