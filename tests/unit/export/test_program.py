"""A model as a program: the same numbers, both modes, any batch, no trace of the machine."""

from __future__ import annotations

import copy
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from modelpress_runner.errors import ArtifactError, InvalidModelError
from modelpress_runner.export.pt2 import program as program_module
from modelpress_runner.export.pt2.equivalence import NotPortableError
from modelpress_runner.export.pt2.program import describe, export_program, open_program
from modelpress_runner.measure import counts


def round_trip(model: nn.Module, inputs: Any, folder: Path) -> nn.Module:
    export_program(model, inputs, folder / "model.pt2")
    return open_program(folder / "model.pt2")


@pytest.fixture
def program(exported: Path) -> nn.Module:
    return open_program(exported)


def test_any_batch_gives_the_same_rows(program: nn.Module, residual: nn.Module, images: torch.Tensor) -> None:
    """A program traced from one row gives for 1, 7 and 64 rows what the model gives in eval mode."""
    with torch.no_grad():
        expected = residual.eval()(images)
        torch.testing.assert_close(program(images), expected)
        torch.testing.assert_close(program(images[:7]), expected[:7])
        torch.testing.assert_close(torch.cat([program(row.unsqueeze(0)) for row in images[:4]]), expected[:4])


def test_state_has_the_models_names(program: nn.Module, residual: nn.Module) -> None:
    """Parameters and buffers are those of the model, bit by bit, under the same names."""
    state = residual.state_dict()
    assert list(program.state_dict()) == list(state)
    assert all(torch.equal(value, state[name]) for name, value in program.state_dict().items())
    assert [name for name, _ in program.named_parameters()] == [name for name, _ in residual.named_parameters()]
    assert counts.macs(program, torch.zeros(1, 1, 6, 6)) == counts.macs(residual, torch.zeros(1, 1, 6, 6))


def test_it_opens_in_eval_mode(program: nn.Module, images: torch.Tensor) -> None:
    """In eval mode nothing is random and running statistics stand still."""
    before = program.get_buffer("bn1.running_mean").clone()
    assert not program.training
    assert torch.equal(program(images), program(images))
    assert torch.equal(program.get_buffer("bn1.running_mean"), before)
    assert program.get_buffer("bn1.num_batches_tracked").item() == 3


def test_train_mode_updates_statistics_and_drops_out(
    program: nn.Module, residual: nn.Module, images: torch.Tensor
) -> None:
    """In train mode, with the same seed, outputs and statistics are those of the model in train mode; eval is back."""
    program.train()
    residual.train()
    torch.manual_seed(7)
    expected = residual(images)
    torch.manual_seed(7)
    found = program(images)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(dict(program.named_buffers())["bn1.running_var"], residual.bn1.running_var)
    assert program.get_buffer("bn1.num_batches_tracked").item() == 4
    assert not torch.equal(program(images), program(images))
    program.eval()
    torch.testing.assert_close(program(images), program(images), rtol=0, atol=0)


def test_it_can_be_finetuned(program: nn.Module, images: torch.Tensor) -> None:
    """Every parameter gets a gradient, and 30 steps on a learnable target bring the loss to less than half."""
    target = (images.mean((1, 2, 3)) > 0).long()
    optimizer = torch.optim.Adam(program.parameters(), lr=0.05)
    program.train()
    torch.manual_seed(0)
    losses = []
    for _ in range(30):
        loss = functional.cross_entropy(program(images), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(parameter.grad is not None for parameter in program.parameters())
    assert program.get_parameter("conv1.weight").grad.abs().sum() > 0
    program.eval()
    with torch.no_grad():
        assert float(functional.cross_entropy(program(images), target)) < losses[0] / 2


def test_state_moves_and_copies(program: nn.Module, images: torch.Tensor) -> None:
    """deepcopy, to(dtype), load_state_dict and requires_grad_ do what they do with any module."""
    expected = program(images)
    twin = copy.deepcopy(program)
    with torch.no_grad():
        program.get_parameter("fc.bias").add_(1.0)
    torch.testing.assert_close(twin(images), expected)
    twin.load_state_dict(program.state_dict())
    torch.testing.assert_close(twin(images), expected + 2.0)
    assert twin.double()(images.double()).dtype == torch.float64
    twin.requires_grad_(False)
    assert not twin(images.double()).requires_grad


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (torch.zeros(2, 1, 6), r"input x is of shape \(2, 1, 6\); the program takes \(batch, 1, 6, 6\)"),
        (torch.zeros(2, 3, 6, 6), r"\(2, 3, 6, 6\); the program takes \(batch, 1, 6, 6\)"),
        (3, "input x is a int; the program takes a tensor"),
        ([torch.zeros(1, 1, 6, 6)], "not nested as at export"),
    ],
)
def test_wrong_inputs_are_named(program: nn.Module, inputs: Any, message: str) -> None:
    """An input of another shape or kind is an error that says what the program takes."""
    with pytest.raises((ValueError, TypeError), match=message):
        program(inputs)


def test_inputs_by_position_or_name(models: Any, tmp_path: Path) -> None:
    """Exported with keywords, it takes them in any order and by position; others are named."""
    model = models.two_inputs()
    inputs = {"ids": torch.tensor([[1, 2, 3]]), "mask": torch.tensor([[1.0, 1.0, 0.0]])}
    program = round_trip(model, inputs, tmp_path)
    ids, mask = torch.tensor([[4, 5, 6], [7, 8, 9]]), torch.tensor([[1.0, 0.0, 1.0], [1.0, 1.0, 1.0]])
    expected = model(ids, mask)["logits"]
    for found in (
        program(ids=ids, mask=mask),
        program(mask=mask, ids=ids),
        program(ids, mask),
        program(ids, mask=mask),
    ):
        torch.testing.assert_close(found["logits"], expected)
    with pytest.raises(TypeError, match="takes the inputs ids, mask; given: ids, labels"):
        program(ids=ids, labels=ids)
    with pytest.raises(ValueError, match=r"input mask is of shape \(1, 3\); the program takes \(batch, 3\)"):
        program(ids, mask[:1])


@pytest.mark.parametrize("form", ["ordered", "dataclass", "nested"])
def test_outputs_are_plain(models: Any, tmp_path: Path, form: str) -> None:
    """Mappings and dataclasses come back as dicts, fields that are None are left out, tuples and lists stay."""
    ids, mask = torch.tensor([[1, 2, 3]]), torch.ones(1, 3)
    program = round_trip(models.two_inputs(form), (ids, mask), tmp_path)
    output = program(ids, mask)
    if form == "nested":
        assert type(output) is tuple
        assert output[1][1] is None
        assert type(output[2]) is dict
    else:
        assert type(output) is dict
        assert list(output) == (["logits"] if form == "dataclass" else ["logits", "hidden"])


def test_tied_weights_stay_tied_and_are_stored_once(models: Any, tmp_path: Path) -> None:
    """Two names of one weight are one parameter of the program and one entry of the file."""
    program = round_trip(models.two_inputs(), (torch.tensor([[1, 2, 3]]), torch.ones(1, 3)), tmp_path)
    assert list(program.state_dict()) == ["embed.weight", "out.weight"]
    assert program.get_parameter("embed.weight") is program.get_parameter("out.weight")
    assert counts.parameters(program) == 66
    with zipfile.ZipFile(tmp_path / "model.pt2") as archive:
        assert [name for name in archive.namelist() if "weight_" in name] == ["archive/data/weights/weight_0"]


def test_train_and_eval_may_be_different_graphs(models: Any, tmp_path: Path) -> None:
    """A model with another head, attention dropout and an LSTM's dropout in train mode keeps both behaviours."""
    torch.manual_seed(0)
    model, x = models.stochastic(), torch.randn(3, 5, 4)
    program = round_trip(model, x, tmp_path)
    torch.testing.assert_close(program(x), model.eval()(x), rtol=1e-4, atol=1e-5)
    program.train()
    model.train()
    torch.manual_seed(1)
    expected = model(x)
    torch.manual_seed(1)
    torch.testing.assert_close(program(x), expected)


def test_any_name_of_a_module_will_do(tmp_path: Path) -> None:
    """Numbers, dashes and spaces in names, as Sequential and ModuleDict give them, travel with the program."""

    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleDict({"fc-1": nn.Sequential(nn.Linear(3, 3), nn.ReLU()), "fc 2": nn.Linear(3, 2)})

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.blocks["fc 2"](self.blocks["fc-1"](x))

    model = Named()
    program = round_trip(model, torch.ones(2, 3), tmp_path)
    assert list(program.state_dict()) == list(model.state_dict())
    assert program.get_parameter("blocks.fc-1.0.weight").shape == (3, 3)


def test_frozen_parameters_stay_frozen(residual: nn.Module, tmp_path: Path) -> None:
    """requires_grad travels with the program."""
    residual.conv1.requires_grad_(False)
    program = round_trip(residual, torch.zeros(2, 1, 6, 6), tmp_path)
    assert not program.get_parameter("conv1.weight").requires_grad
    assert program.get_parameter("fc.weight").requires_grad


def test_memory_layout_survives(residual: nn.Module, images: torch.Tensor, tmp_path: Path) -> None:
    """channels_last weights keep their strides, and slices of a larger tensor are stored alone."""
    model = residual.to(memory_format=torch.channels_last)
    model.fc.weight = nn.Parameter(torch.randn(3, 1000)[:, :4])
    program = round_trip(model, torch.zeros(2, 1, 6, 6), tmp_path)
    assert program.get_parameter("conv2.weight").stride() == model.conv2.weight.stride()
    assert (tmp_path / "model.pt2").stat().st_size < 12_000
    torch.testing.assert_close(program(images), model.eval()(images))


def test_the_same_model_gives_the_same_bytes(residual: nn.Module, tmp_path: Path) -> None:
    """Exporting twice gives equal files, without paths or times of the machine."""
    for name in ("a.pt2", "b.pt2"):
        export_program(residual, torch.zeros(1, 1, 6, 6), tmp_path / name)
    data = (tmp_path / "a.pt2").read_bytes()
    assert data == (tmp_path / "b.pt2").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.pt2") as archive:
        text = b"".join(archive.read(name) for name in archive.namelist())
    assert b".py" not in text
    assert b"stack_trace" not in text


def test_export_leaves_no_trace(residual: nn.Module, tmp_path: Path) -> None:
    """Modes, statistics, random numbers and hooks of the model are as before, also after a failure."""
    residual.bn1.eval()
    state, random = {name: value.clone() for name, value in residual.state_dict().items()}, torch.get_rng_state()
    export_program(residual, torch.zeros(1, 1, 6, 6), tmp_path / "model.pt2")
    with pytest.raises(NotPortableError):
        export_program(residual, torch.zeros(1, 2, 6, 6), tmp_path / "model.pt2")
    assert not (tmp_path / "model.pt2").exists()
    assert residual.training
    assert not residual.bn1.training
    assert all(torch.equal(value, state[name]) for name, value in residual.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert not residual._forward_hooks


def test_torch_reads_it_too(exported: Path, residual: nn.Module, images: torch.Tensor) -> None:
    """The file is a PT2 archive: torch.export.load gives the eval program."""
    program = torch.export.load(str(exported))
    torch.testing.assert_close(program.module()(images), residual.eval()(images))


class Fixed(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(2, 3) + 1


class Branch(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2 if x.sum() > 0 else x


class Limited(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2 if x.shape[0] < 100 else x


class Strange(nn.Module):
    def forward(self, x: torch.Tensor) -> object:
        return iter([x])


class Remembers(nn.Module):
    """Gives other numbers at every call, which no program can."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return x * self.calls


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Fixed(), "its code fixes the batch size of the input 'x'; use -1"),
        (Branch(), r"data-dependent .*\(line \d+ of test_program.py: return x \* 2 if x.sum\(\) > 0 else x\)"),
        (Limited(), "it takes only batches of 2 to 99"),
        (Strange(), r"forward\(\) returns a list_iterator; tensors, tuples, lists, dicts"),
        (Remembers(), "differs from the model with a batch of"),
    ],
)
def test_what_cannot_be_exported_says_why(model: nn.Module, message: str, tmp_path: Path) -> None:
    """No fallback: an error whose reason is one line, and no file."""
    with pytest.raises(NotPortableError, match=message) as caught:
        export_program(model, torch.ones(2, 3), tmp_path / "model.pt2")
    assert "\n" not in caught.value.reason
    assert not (tmp_path / "model.pt2").exists()


def test_a_model_without_a_batch_is_not_portable(tmp_path: Path) -> None:
    """Inputs of no dimension have no batch to leave free."""
    with pytest.raises(NotPortableError, match="no tensor in dummy_input has a batch dimension"):
        export_program(nn.Identity(), torch.tensor(1.0), tmp_path / "model.pt2")


def test_bad_dummy_input_is_no_matter_of_export(tmp_path: Path) -> None:
    """dummy_input without a tensor is the user's error, not a model that does not export."""
    with pytest.raises(InvalidModelError, match="dummy_input holds no tensor"):
        export_program(nn.Identity(), None, tmp_path / "model.pt2")


class EvalOnly(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training and x.sum() > 0:
            return self.fc(x) * 2
        return self.fc(x)


def test_a_program_for_eval_only_says_so(tmp_path: Path) -> None:
    """A model that traces in eval mode alone is written with a note, and train() gives the reason."""
    exported = export_program(EvalOnly(), torch.ones(2, 3), tmp_path / "model.pt2")
    assert not exported.trainable
    assert exported.notes == describe(tmp_path / "model.pt2").notes
    assert "runs in eval mode only" in exported.notes[0]
    program = open_program(tmp_path / "model.pt2")
    assert program.eval()(torch.ones(4, 3)).shape == (4, 2)
    with pytest.raises(ArtifactError, match=r"eval mode only \(.*data-dependent.*mp.load\(uri, into=model\)"):
        program.train()


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen = self.seen + x.shape[0]
        return x * 2


def test_buffers_that_forward_replaces_are_updated(tmp_path: Path) -> None:
    """A buffer that is assigned anew in forward counts on in the program."""
    program = round_trip(Counting(), torch.ones(2, 3), tmp_path)
    program(torch.ones(5, 3))
    program(torch.ones(2, 3))
    assert program.get_buffer("seen").item() == 7.0


def test_wrapped_and_sparse_tensors_are_not_portable(tmp_path: Path) -> None:
    """A tensor that only a pickle could keep is named; nothing is written."""
    from torch.testing._internal.two_tensor import TwoTensor

    model = nn.Linear(3, 2, bias=False)
    plain = model.weight.detach().clone()
    model.weight = nn.Parameter(TwoTensor(plain, plain.clone()))
    with pytest.raises(NotPortableError, match="weight is a TwoTensor; only plain, dense tensors"):
        export_program(model, torch.ones(2, 3), tmp_path / "model.pt2")
    model.weight = nn.Parameter(plain)
    model.register_buffer("mask", torch.eye(3).to_sparse())
    with pytest.raises(NotPortableError, match=r"mask is a torch\.sparse_coo"):
        export_program(model, torch.ones(2, 3), tmp_path / "model.pt2")
    assert not (tmp_path / "model.pt2").exists()


class Unrolled(nn.Module):
    """Calls an operator `count` times."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(self.count):
            x = -x
        return x


def test_a_program_that_is_long_for_its_file_is_opened_by_who_allows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it calls is bounded by its file; the limit is named, the export says so, and a caller can raise it."""
    path = tmp_path / "model.pt2"
    monkeypatch.setattr(program_module, "_CALLS", 40)
    monkeypatch.setattr(program_module, "_BYTES_A_CALL", 10**9)
    export_program(Unrolled(40), torch.ones(2, 3), path)
    assert open_program(path)(torch.ones(1, 3)).tolist() == [[1.0, 1.0, 1.0]]
    exported = export_program(Unrolled(41), torch.ones(2, 3), path)
    assert exported.notes == ["The program is long for its file: mp.load(uri, max_calls=41)."] == describe(path).notes
    with pytest.raises(ArtifactError, match=r"is 41 operators long, more than the 40 .*\(uri, max_calls=\.\.\.\)"):
        open_program(path)
    assert open_program(path, max_calls=41)(torch.ones(1, 3)).tolist() == [[-1.0, -1.0, -1.0]]
    with zipfile.ZipFile(path) as archive:
        entries = {info.filename: archive.read(info) for info in archive.infolist()}
    hidden = entries["archive/models/model.json"].replace(b'"target"', b'"\\u0074arget"')
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in (entries | {"archive/models/model.json": hidden}).items():
            archive.writestr(name, data)
    with pytest.raises(ArtifactError, match="is 41 operators long"):
        open_program(path)
