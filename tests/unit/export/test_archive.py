"""Files that were made to do harm: each is refused before it is used, and none of it runs."""

from __future__ import annotations

import io
import os
import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from program_files import Entries, edit, read, refused, write
from torch import nn

from modelpress_runner.errors import ArtifactError
from modelpress_runner.export.pt2 import graphcheck
from modelpress_runner.export.pt2.archive import HEADER, open_archive, write_archive
from modelpress_runner.export.pt2.program import export_program, open_program
from modelpress_runner.export.pt2.tensors import Payloads, check_entries, filled


class Touch:
    """Unpickling it makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self.marker,)


def saved(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def test_an_archive_written_anew_opens(entries: Entries, tmp_path: Path) -> None:
    """The refusals below are of what was changed, not of the way the tests write files."""
    assert open_program(write(tmp_path / "model.pt2", entries)).input_names == ("x",)


def test_a_pickled_weight_is_refused(entries: Entries, tmp_path: Path, marker: Path) -> None:
    """A weight that says it is pickled runs code in torch.export.load, and does not here."""
    entries["data/weights/weight_0"] = saved(Touch(marker))

    def pickled(config: Any) -> None:
        for meta in config["config"].values():
            meta["use_pickle"] = meta["path_name"] == "weight_0"

    for program in ("model", "train"):
        edit(entries, f"data/weights/{program}_weights_config.json", pickled)
    path = write(tmp_path / "model.pt2", entries)
    with pytest.raises(Exception, match=r".*"):
        torch.export.load(str(path))
    assert marker.exists(), "the attack is real"
    marker.unlink()
    refused(path, marker, "weights.config.* is a pickled tensor")
    entries["data/weights/weight_0"] = b"\x00" * 144
    refused(write(tmp_path / "other.pt2", entries), marker, "weights.config.* is a pickled tensor")


def test_pickled_sample_inputs_are_refused(entries: Entries, tmp_path: Path, marker: Path) -> None:
    """torch unpickles sample inputs even where it tries weights_only first."""
    entries["data/sample_inputs/model.pt"] = saved(Touch(marker))
    refused(write(tmp_path / "model.pt2", entries), marker, "has pickled sample inputs")


@pytest.mark.parametrize(
    "name",
    [
        "data/weights/model.pt",
        "data/constants/model.pt",
        "data/constants/custom_obj_0",
        "data/constants/opaque_obj_0",
        "data/weights/weight_0.pkl",
        "data.pkl",
        "data/aotinductor/model/evil.so",
        "data/weights/../../../evil",
        "models/other.json",
        "extra/anything.txt",
        "version",
    ],
)
def test_entries_that_no_program_has_are_refused(entries: Entries, tmp_path: Path, marker: Path, name: str) -> None:
    """Legacy pickles, objects, native code, paths out of the folder: only known names are let in."""
    entries[name] = pickle.dumps(Touch(marker))
    refused(write(tmp_path / "model.pt2", entries), marker, "has (a pickled entry|an entry that no program has), ")


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("wrap", [pickle.dumps, None])
def test_a_pickle_is_read_as_the_numbers_it_is_said_to_be(
    entries: Entries, tmp_path: Path, marker: Path, protocol: int, wrap: Any
) -> None:
    """A pickle of any protocol, or a torch.save, in a tensor's place is numbers if it is as long as the tensor."""
    data = saved(Touch(marker)) if wrap is None else pickle.dumps(Touch(marker), protocol)
    entries["data/weights/weight_0"] = (data + b"\x00" * 144)[:144]
    program = open_program(write(tmp_path / "model.pt2", entries))
    assert program.get_parameter("conv1.weight").detach().numpy().tobytes() == entries["data/weights/weight_0"]
    assert not marker.exists()
    entries["data/weights/weight_0"] = data + b"\x00" * 1447
    refused(write(tmp_path / "longer.pt2", entries), marker, "conv1.weight is smaller than its numbers")


class Whole(nn.Module):
    """Its parameter and its buffer are, byte for byte, pickles that touch a file."""

    def __init__(self, data: bytes) -> None:
        super().__init__()
        numbers = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        self.weight = nn.Parameter(numbers.view(torch.float32))
        self.register_buffer("codes", numbers.clone())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.weight.nan_to_num().clamp(-1, 1).mean() + self.codes.sum()


def test_weights_that_are_pickles_round_trip(tmp_path: Path, marker: Path) -> None:
    """What the numbers look like is nobody's business: they are written and read, bit for bit, and run nothing."""
    for data in [*(pickle.dumps(Touch(marker), protocol) for protocol in range(6)), saved(Touch(marker))]:
        held = data + b"\x00" * (-len(data) % 4)
        path = tmp_path / "model.pt2"
        export_program(Whole(held), torch.zeros(1, 3), path)
        program = open_program(path)
        assert program.get_parameter("weight").detach().numpy().tobytes() == held
        assert program.get_buffer("codes").numpy().tobytes() == held
    assert not marker.exists()


@pytest.mark.parametrize("archives", [1, pytest.param(10, marks=pytest.mark.long)])
def test_honest_numbers_are_never_refused(tmp_path: Path, archives: int) -> None:
    """20,000 (200,000) random tensors, all types in turn, the bytes random too: each is read as it was written."""
    from torch._export.serde.serialize import _TORCH_TO_SERIALIZE_DTYPE

    types = list(_TORCH_TO_SERIALIZE_DTYPE)
    chance = torch.Generator().manual_seed(archives)
    empty = torch.zeros(64, dtype=torch.uint8)
    kinds = {f"t{index}": empty.clone().view(types[index % len(types)]) for index in range(20_000)}
    listed = Payloads().add(kinds, "weight")
    graphcheck.check_payload(listed, "weights", "weight")
    truths = torch.tensor([kind.dtype == torch.bool for kind in kinds.values()])
    path = tmp_path / "model.pt2"
    for _ in range(archives):
        rows = torch.randint(0, 256, (20_000, 64), dtype=torch.uint8, generator=chance)
        rows[truths] &= 1
        held = rows.numpy().tobytes()
        numbers = {f"data/weights/weight_{index}": held[index * 64 : index * 64 + 64] for index in range(20_000)}
        write_archive(path, {HEADER: {}, "models/model.json": {}}, numbers)
        with open_archive(path) as archive:
            check_entries(archive, [("weights", listed)])
            found = filled(archive, listed, "weights")
        assert torch.equal(torch.stack([tensor.view(torch.uint8) for tensor in found.values()]), rows)
        path.unlink()


def test_entries_that_no_list_names_are_refused(entries: Entries, tmp_path: Path, marker: Path) -> None:
    """A tensor of nobody has no business in a program."""
    for name in ("data/weights/weight_99", "data/constants/tensor_99"):
        held = {**entries, name: b""}
        refused(write(tmp_path / "model.pt2", held), marker, f"has an entry that no list names, '{name}'")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda meta: meta.update(dtype=8), "conv1.weight is larger than its numbers"),
        (lambda meta: meta.update(dtype=6), "conv1.weight is smaller than its numbers"),
        (lambda meta: meta.update(dtype=99), "conv1.weight is no plain, dense tensor on the CPU"),
        (lambda meta: meta.update(layout=1), "conv1.weight is no plain, dense tensor on the CPU"),
        (lambda meta: meta["device"].update(type="cuda"), "conv1.weight is no plain, dense tensor on the CPU"),
        (lambda meta: meta["strides"][0].update(as_int=2**40), "conv1.weight is no plain, dense tensor on the CPU"),
        (lambda meta: meta["strides"][0].update(as_int=0), "conv1.weight is no plain, dense tensor on the CPU"),
        (lambda meta: meta["storage_offset"].update(as_int=1), "conv1.weight is no plain, dense tensor on the CPU"),
    ],
)
def test_a_tensor_is_exactly_its_bytes(
    entries: Entries, tmp_path: Path, marker: Path, change: Callable[[Any], None], message: str
) -> None:
    """Type, shape, strides and place are those of the very bytes, before anything is made of them."""
    for program in ("model", "train"):
        edit(
            entries,
            f"data/weights/{program}_weights_config.json",
            lambda config: change(config["config"]["conv1.weight"]["tensor_meta"]),
        )
    refused(write(tmp_path / "model.pt2", entries), marker, message)


def test_truth_values_are_true_or_false(tmp_path: Path, marker: Path) -> None:
    """A byte of 2 in a bool tensor is counted differently by different kernels, so it is none."""

    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mask", torch.tensor([True, False]))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.mask

    export_program(Masked(), torch.zeros(1, 2), tmp_path / "model.pt2")
    entries = read(tmp_path / "model.pt2")
    assert entries["data/weights/weight_0"] == b"\x01\x00"
    entries["data/weights/weight_0"] = b"\x02\x00"
    refused(write(tmp_path / "model.pt2", entries), marker, "mask has truth values that are neither 0 nor 1")


def test_a_pickle_for_json_is_refused(entries: Entries, tmp_path: Path, marker: Path) -> None:
    """What should be JSON must begin as JSON."""
    entries["models/train.json"] = pickle.dumps(Touch(marker))
    refused(write(tmp_path / "model.pt2", entries), marker, "is not JSON and may be a pickle")


def test_no_entry_unfolds_into_memory(entries: Entries, tmp_path: Path, marker: Path) -> None:
    """A few KiB that become gigabytes of lists are refused by their size in the file, before they are parsed."""
    for text in (
        b'{"a":[' + b"[]," * 8_000_000 + b"[]]}",
        b'{"a":[' + b"[]," * 1_000_000 + b"[]]}",
        b"{" + b" " * 2**25,
    ):
        path = write(
            tmp_path / "model.pt2", {key: value for key, value in entries.items() if key != "models/model.json"}
        )
        with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("archive/models/model.json", text)
        refused(path, marker, "has an oversized entry|has an entry that unfolds too far")


def test_names_that_share_their_numbers_are_bounded(entries: Entries, tmp_path: Path, marker: Path) -> None:
    """One constant under a thousand names takes a thousand times its size: refused from the lists."""
    entries["data/constants/tensor_0"] = b"\0" * 2**20
    for program in ("model", "train"):

        def many(config: Any) -> None:
            meta = next(iter(config["config"].values()))
            plain = {**meta["tensor_meta"], "dtype": 1, "sizes": [{"as_int": 2**20}], "strides": [{"as_int": 1}]}
            same = {**meta, "path_name": "tensor_0", "tensor_meta": plain}
            config["config"] = {f"c{index}": same for index in range(1000)}

        edit(entries, f"data/constants/{program}_constants_config.json", many)
    refused(write(tmp_path / "model.pt2", entries), marker, "take far more than the file|no list names")


def test_other_files_are_no_programs(tmp_path: Path) -> None:
    """A pipe would never end, so it is not opened."""
    os.mkfifo(tmp_path / "model.pt2")
    with pytest.raises(ArtifactError, match="is no regular file"):
        open_program(tmp_path / "model.pt2")


def test_sizes_must_be_those_of_the_numbers(entries: Entries, tmp_path: Path, marker: Path) -> None:
    """A tensor that claims terabytes is refused before memory is taken for it."""

    def huge(config: Any) -> None:
        next(iter(config["config"].values()))["tensor_meta"]["sizes"] = [{"as_int": 2**40}]

    for program in ("model", "train"):
        edit(entries, f"data/weights/{program}_weights_config.json", huge)
    refused(write(tmp_path / "model.pt2", entries), marker, "is larger than its numbers")


def test_a_compressed_tensor_is_refused(exported: Path, entries: Entries, tmp_path: Path, marker: Path) -> None:
    """Numbers that unfold on reading could unfold into anything: tensors are stored as they are."""
    path = tmp_path / "model.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries.items():
            compression = zipfile.ZIP_DEFLATED if name == "data/weights/weight_0" else zipfile.ZIP_STORED
            archive.writestr(f"archive/{name}", data, compression)
    refused(path, marker, "has a compressed tensor, 'data/weights/weight_0'")


def test_two_entries_of_one_name_are_refused(entries: Entries, tmp_path: Path, marker: Path) -> None:
    """Readers differ in which of two they take, so there must not be two."""
    path = write(tmp_path / "model.pt2", entries)
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/models/model.json", b"{}")
    refused(path, marker, "has the entry 'models/model.json' twice")


def test_entries_outside_the_root_are_refused(entries: Entries, tmp_path: Path, marker: Path) -> None:
    """A path that climbs out, or another root, is no entry of a program."""
    for name in ("../evil", "/etc/evil", "other/models/model.json"):
        path = write(tmp_path / "model.pt2", entries)
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(name, b"{}")
        refused(path, marker, "outside archive/")


def test_damage_is_named(exported: Path, tmp_path: Path, marker: Path) -> None:
    """A truncated file, a flipped bit and another kind of file are damaged, never a traceback."""
    data = exported.read_bytes()
    path = tmp_path / "model.pt2"
    path.write_bytes(data[: len(data) // 2])
    refused(path, marker, "model.pt2 is damaged")
    path.write_bytes(b"not a zip at all")
    refused(path, marker, "model.pt2 is damaged")
    with zipfile.ZipFile(exported) as archive:
        info = archive.getinfo("archive/data/weights/weight_0")
        skip = struct.unpack("<HH", data[info.header_offset + 26 : info.header_offset + 30])
    at = info.header_offset + 30 + sum(skip)
    path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    refused(path, marker, "model.pt2 is damaged .*Bad CRC-32")
    with pytest.raises(ArtifactError, match=r"none\.pt2 does not exist"):
        open_program(tmp_path / "none.pt2")


def test_a_newer_torch_is_named(entries: Entries, tmp_path: Path, marker: Path) -> None:
    """A program of a later torch says which torch it needs."""
    edit(entries, "extra/modelpress.json", lambda header: header.update(torch="99.3.1"))
    refused(
        write(tmp_path / "model.pt2", entries), marker, r"written with torch 99\.3\.1 .* install torch 99\.3 or later"
    )


@given(seed=st.integers(0, 2**32 - 1), flips=st.integers(1, 6))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_random_damage_never_escapes(exported: Path, tmp_path_factory: Any, seed: int, flips: int) -> None:
    """Whatever bytes are changed, opening gives a program or an ArtifactError, and nothing else."""
    import random

    chance = random.Random(seed)
    data = bytearray(exported.read_bytes())
    for _ in range(flips):
        data[chance.randrange(len(data))] = chance.randrange(256)
    path = tmp_path_factory.mktemp("damaged") / "model.pt2"
    path.write_bytes(data)
    try:
        open_program(path)
    except ArtifactError:
        pass
    finally:
        shutil.rmtree(path.parent)
