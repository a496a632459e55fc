"""Files that were made to do harm: how each ends, after how long, and at what peak of memory, in a fork of its own.

Refused ones, and the worst that are accepted: those that use each limit up.

Usage: hostile_files.py [--output FILE]   prints a table; exit code 1 if a file under 1 MiB takes over 2 s or 256 MiB.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gzip
import io
import json
import os
import random
import resource
import sys
import tarfile
import tempfile
import threading
import time
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hostile_folders
import torch
from PIL import Image
from torch import nn

import modelpress as mp
from modelpress.api.errors import SpecError
from modelpress.api.load import load_file
from modelpress.local.errors import StateError
from modelpress.local.journal import Journal
from modelpress_operator.progress.message import MessageError
from modelpress_runner.errors import RunnerError
from modelpress_runner.export.pt2.program import export_program, open_program
from modelpress_runner.inputs import rows
from modelpress_runner.usercode.fetch import unpack

MAX_SECONDS, MAX_MIB = 2.0, 256.0
FILES = {
    "program": "model.pt2", "manifest": "manifest.json", "journal": "commit.json", "image": "x.png",
    "recipe": "job.yaml", "archive": "code.tar.gz", "csv": "x.csv", "jsonl": "x.jsonl", "parquet": "x.parquet",
    **hostile_folders.FILES,
}  # fmt: skip
JOB = (
    "apiVersion: modelpress.dev/v1alpha1\nkind: CompressionJob\nmetadata: {name: a}\n"
    "spec: {model: {entrypoint: 'a:b', args: {a: %s}}, stages: [{finetune: {epochs: 1}}]}\n"
)


def main() -> int:
    """Prints the table, and writes it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path)
    output = parser.parse_args().output
    wrong, table = 0, []
    print(f"{'input':58} {'KiB':>8} {'CPU s':>7} {'MiB':>6}  end")
    with tempfile.TemporaryDirectory() as folder:
        honest = _honest(Path(folder))
        Image.init()
        warnings.simplefilter("ignore")
        with contextlib.suppress(RunnerError):  # what the first opening alone imports
            open_program(Path(folder) / "honest.pt2")
            mp.load(folder)
        for name, kind, make in _cases(honest):
            place = Path(folder) / name.replace(" ", "-").replace("/", "-")
            place.mkdir()
            file = FILES[kind]
            if callable(make):
                make(place / file)
            else:
                (place / file).write_bytes(make)
            size = (place / file).stat().st_size
            found = _measured(kind, place / file)
            seconds, mib = found.get("seconds", 60.0), found.get("mib", 0.0)
            bad = found["end"].startswith("RAW") or (size < 2**20 and (seconds > MAX_SECONDS or mib > MAX_MIB))
            wrong += bad
            row = {
                "input": name,
                "bytes": size,
                "cpuSeconds": round(seconds, 3),
                "mib": round(mib),
                "end": found["end"],
            }
            table.append(row | ({"over": True} if bad else {}))
            print(f"{name:58} {size / 1024:8.1f} {seconds:7.2f} {mib:6.0f}  {found['end']}{'  <--' * bad}", flush=True)
    if output is not None:
        limits = {"seconds": MAX_SECONDS, "mib": MAX_MIB, "ofFilesBelowBytes": 2**20}
        text = json.dumps({"limits": limits, "python": sys.version.split()[0], "files": table}, indent=2)
        output.write_text(text + "\n", encoding="utf-8")
    return int(wrong > 0)


def _measured(kind: str, path: Path) -> dict[str, Any]:
    """Opens the file in a fork of this process, whose imports are paid: how that ends, CPU seconds, MiB on top."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
        os.write(writing, json.dumps(_opened(kind, path)).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        text = pipe.read()
    _, status = os.waitpid(child, 0)
    return json.loads(text) if text else {"end": f"RAW status {status}"}


def _opened(kind: str, path: Path) -> dict[str, Any]:
    calls: dict[str, Callable[[], Any]] = {
        "program": lambda: open_program(path),
        "manifest": lambda: mp.load(path.parent),
        "journal": lambda: Journal.open(path.parent),
        "image": lambda: rows._image(path, "spec.data"),
        "recipe": lambda: load_file(path),
        "archive": lambda: _unpacked(path),
        "csv": lambda: rows.read(path, "csv", "train"),
        "jsonl": lambda: rows.read(path, "jsonl", "train"),
        "parquet": lambda: rows.read(path, "parquet", "train"),
        **{name: functools.partial(call, path) for name, call in hostile_folders.calls().items()},
    }
    before, peak, over = _resident(), [0], threading.Event()

    def watch() -> None:
        while not over.wait(0.002):
            peak[0] = max(peak[0], _resident())

    threading.Thread(target=watch, daemon=True).start()
    began = time.process_time()
    try:
        calls[kind]()
        end = "opened"
    except (RunnerError, StateError, SpecError, MessageError) as error:
        end = type(error).__name__
    except Exception as error:
        end = f"RAW {type(error).__name__}"
    seconds = time.process_time() - began
    peak[0] = max(peak[0], _resident())
    over.set()
    return {"end": end, "seconds": seconds, "mib": (peak[0] - before) / 2**20}


def _unpacked(path: Path) -> None:
    (path.parent / "code").mkdir()
    unpack(path, path.parent / "code", path.name)


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _honest(folder: Path) -> dict[str, bytes]:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)
            self.scale = torch.ones(4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(x) * self.scale

    export_program(Model(), torch.zeros(1, 4), folder / "honest.pt2")
    with zipfile.ZipFile(folder / "honest.pt2") as archive:
        return {info.filename: archive.read(info) for info in archive.infolist()}


def _cases(honest: dict[str, bytes]) -> list[tuple[str, str, Callable[[Path], Any]]]:
    model, header = "archive/models/model.json", "archive/extra/modelpress.json"
    constants = "archive/data/constants/model_constants_config.json"

    def program(**changed: bytes) -> Callable[[Path], None]:
        names = {"model": model, "header": header, "constants": constants, "tensor": "archive/data/constants/tensor_0"}
        held = honest | {names[key]: value for key, value in changed.items()}
        return lambda path: _zip(path, held)

    def size(text: str) -> Callable[[Path], None]:
        document = json.loads(honest[model])
        values = document["graph_module"]["graph"]["tensor_values"]
        next(iter(values.values()))["sizes"][0] = {"as_expr": {"expr_str": text, "hint": None}}
        return program(model=json.dumps(document).encode())

    def shared(count: int) -> bytes:
        meta = next(iter(json.loads(honest[constants])["config"].values()))
        plain = meta["tensor_meta"] | {"dtype": 1, "sizes": [{"as_int": 2**19}], "strides": [{"as_int": 1}]}
        same = meta | {"path_name": "tensor_0", "tensor_meta": plain}
        return json.dumps({"config": {f"c{index}": same for index in range(count)}}).encode()

    terms = ",".join(f"s{index}" for index in range(400))
    bomb = b'{"a":[' + b"[]," * 10_900_000 + b"[]]}"
    texts: list[tuple[str, str]] = [
        ("nested powers", "Pow(" * 6 + "Pow(Integer(2),Integer(64))" + ",Integer(64))" * 6),
        ("powers of powers", "2**64**64**64"),
        ("an exponent in a Rational", "Rational('1e999999999')"),
        ("a Float of 10^9 digits", "Float('0.1', precision=1000000000)"),
        ("Max of 400", f"Max({terms})"),
        ("Min and Max, 30 deep", "Min(s0,Max(s1," * 30 + "s2" + "))" * 30),
        ("a product of 200 sums", "*".join(f"(s{index}+1)" for index in range(200))),
        ("a sum to the 64th", "(s0+s1+s2+1)**64"),
        ("the largest product let through", "*".join(f"(s{index}+1)" for index in range(6))),
        ("the largest Max let through", "Max(s0,s1,s2,s3,s4,s5)"),
        ("the largest power let through", "(s0+1+s1)**3"),
    ]
    cases: list[tuple[str, str, Callable[[Path], Any]]] = [
        (f"size: {name}", "program", size(text)) for name, text in texts
    ]
    cases += [
        ("program: 32 MiB of lists", "program", program(model=bomb)),
        ("program: lists at the limit of 100 times", "program", program(model=b'{"a":[' + b"[]," * 80_000 + b"[]]}")),
        ("program: mappings at random", "program", program(model=_mappings(200_000))),
        ("program: header of 32 MiB", "program", program(header=b'{"version":1,"a":"' + b"x" * 2**25 + b'"}')),
        ("program: 10,000 levels", "program", program(model=b'{"a":' * 10_000 + b"1" + b"}" * 10_000)),
        ("program: 512 KiB constant, 100 names", "program", program(constants=shared(100), tensor=b"\0" * 2**19)),
        ("program: 512 KiB constant, 6,000 names", "program", program(constants=shared(6000), tensor=b"\0" * 2**19)),
        ("program: 6,000 stray entries", "program", lambda path: _zip(path, honest | {
            f"archive/data/weights/weight_{index + 100}": b"" for index in range(6000)})),
        ("manifest: sparse, 2 GiB", "manifest", _sparse),
        ("manifest: 100,000 levels", "manifest", lambda path: path.write_bytes(b"[" * 100_000)),
        ("manifest: number of 300,000 digits", "manifest", lambda path: path.write_bytes(b"1" * 300_000)),
        ("manifest: torch of 5,000 digits", "manifest", lambda path: path.write_text(_manifest(1, "9" * 5000))),
        ("manifest: 7,000 files", "manifest", lambda path: path.write_text(_manifest(7000, "2.0"))),
        ("manifest: a million lists", "manifest", lambda path: path.write_bytes(b"[" + b"[]," * 340_000 + b"[]]")),
        ("journal: 100,000 levels", "journal", lambda path: path.write_bytes(b"[" * 100_000)),
        ("journal: another folder", "journal", lambda path: path.write_text(
            json.dumps({"format": 1, "changes": {"/tmp/modelpress-hostile": "x"}}))),
        ("journal: sparse, 2 GiB", "journal", _sparse),
        ("image: EPS called png", "image", lambda path: path.write_bytes(
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")),
        ("image: 169 megapixels", "image", _pixels),
    ]  # fmt: skip
    return cases + _accepted(honest, program) + _recipes() + _archives() + _rows() + hostile_folders.cases()


def _accepted(
    honest: dict[str, bytes], program: Callable[..., Callable[[Path], None]]
) -> list[tuple[str, str, Callable[[Path], Any]]]:
    """The most that is opened."""
    return [
        ("program: 400 operators, deflated", "program", program(model=_chain(honest, 400))),
        ("program: 1,600 operators, nothing deflated", "program", lambda path: _zip(
            path, honest | {"archive/models/model.json": _chain(honest, 1600)}, zipfile.ZIP_STORED)),
        ("program: 5,500 operators, nothing said of their values", "program", lambda path: _zip(
            path, honest | {"archive/models/model.json": _chain(honest, 5500, short=True)}, zipfile.ZIP_STORED)),
        ("program: 60,000 operators, deflated", "program", program(model=_chain(honest, 60_000, short=True))),
        ("program: 150,000 values", "program", program(model=_values(honest, 150_000))),
        ("program: 400,000 values", "program", program(model=_values(honest, 400_000))),
        ("program: 100 operators, each size another text", "program", program(model=_chain(honest, 100, True))),
        ("journal: a million numbers", "journal", lambda path: path.write_text(
            '{"format":1,"changes":{"object.json":"' + "x" * 1_000_000 + '"}}')),
    ]  # fmt: skip


def _recipes() -> list[tuple[str, str, Callable[[Path], Any]]]:
    def recipe(value: str) -> Callable[[Path], Any]:
        return lambda path: path.write_text(JOB % value)

    return [
        ("recipe: 200,000 values", "recipe", recipe("[" + "1," * 200_000 + "]")),
        ("recipe: 19,000 values", "recipe", recipe("[" + "1," * 19_000 + "]")),
        ("recipe: 9,000 unknown keys", "recipe", lambda path: path.write_text(
            "apiVersion: modelpress.dev/v1alpha1\nkind: CompressionJob\nmetadata: {name: a}\nspec:\n"
            + "".join(f"  stagez{index}: 1\n" for index in range(9_000)))),
        ("recipe: a number of 900,000 binary digits", "recipe", recipe("0b" + "1" * 900_000)),
        ("recipe: aliases that explode", "recipe", recipe(
            "[&a [1,1,1,1,1,1,1,1,1,1], &b [*a,*a,*a,*a,*a,*a,*a,*a,*a,*a], &c [*b,*b,*b,*b,*b,*b,*b,*b,*b,*b],"
            "&d [*c,*c,*c,*c,*c,*c,*c,*c,*c,*c], [*d,*d,*d,*d,*d,*d,*d,*d,*d,*d]]")),
        ("recipe: 900 KB of comments", "recipe", lambda path: path.write_text("#\n" * 450_000 + JOB % "1")),
    ]  # fmt: skip


def _archives() -> list[tuple[str, str, Callable[[Path], Any]]]:
    def header(kind: bytes, size: int, name: str = "x") -> bytes:
        member = tarfile.TarInfo(name)
        member.type, member.size = kind, size
        return member.tobuf(tarfile.GNU_FORMAT)

    def pax(records: bytes) -> bytes:
        return header(tarfile.XHDTYPE, len(records)) + records + bytes(-len(records) % 512)

    def archive(content: bytes) -> Callable[[Path], Any]:
        return lambda path: path.write_bytes(gzip.compress(content + bytes(1024), 9))

    long, regular = tarfile.GNUTYPE_LONGNAME, tarfile.REGTYPE
    return [
        ("archive: a name of 64 MiB", "archive", archive(header(long, 2**26) + bytes(2**26))),
        ("archive: 5,000 long names", "archive", archive((header(long, 512) + b"n" + bytes(511)) * 5000)),
        ("archive: digits for a slow pattern", "archive", archive(pax(b"1" * 200_000) + header(regular, 0))),
        ("archive: 60,000 files", "archive", archive(b"".join(
            header(regular, 0, f"{index}") for index in range(60_000)))),
        ("archive: 30 MiB of zeros", "archive", archive(header(regular, 30 * 2**20) + bytes(30 * 2**20))),
        ("archive: 1,000 files", "archive", archive(b"".join(header(regular, 0, f"{index}") for index in range(990)))),
        ("archive: 1 MiB of records", "archive", archive(
            (pax(b"6 a=b\n" * 40_000) + header(regular, 0)) * 4)),
    ]  # fmt: skip


def _rows() -> list[tuple[str, str, Callable[[Path], Any]]]:
    def equal(value: Any, count: int) -> Callable[[Path], Any]:
        from pyarrow import parquet

        return lambda path: parquet.write_table(
            pyarrow.table({"a": pyarrow.repeat(pyarrow.scalar(value), count)}), path, compression="zstd"
        )

    import pyarrow

    return [
        ("parquet: 20 million equal rows", "parquet", equal(1, 20_000_000)),
        ("parquet: 130,000 equal rows", "parquet", equal(1, 130_000)),
        ("parquet: 10,000 equal texts of 100 KB", "parquet", equal("x" * 100_000, 10_000)),
        ("csv: 500,000 rows", "csv", lambda path: path.write_text("a\n" + "1\n" * 500_000)),
        ("jsonl: 60,000 rows", "jsonl", lambda path: path.write_text('{"a":[[]]}\n' * 60_000)),
        ("jsonl: 50,000 levels", "jsonl", lambda path: path.write_text("[" * 50_000)),
    ]


def _chain(honest: dict[str, bytes], count: int, other: bool = False, short: bool = False) -> bytes:
    """The honest program with its last operator `count` times more, one after another."""
    document = json.loads(honest["archive/models/model.json"])
    graph = document["graph_module"]["graph"]
    last, values = graph["nodes"][-1], graph["tensor_values"]
    name = before = last["outputs"][0]["as_tensor"]["name"]
    for index in range(count):
        new = f"c{index}"
        if short:
            node = {
                "target": "torch.ops.aten.neg.default",
                "inputs": [{"name": "self", "arg": {"as_tensor": {"name": before}}}],
                "outputs": [{"as_tensor": {"name": new}}],
            }
        else:
            node = json.loads(json.dumps(last).replace(json.dumps(name), json.dumps(new)))
            node["inputs"][0]["arg"]["as_tensor"]["name"] = before
            values[new] = json.loads(json.dumps(values[name]))
        if other:
            text = "*".join(f"(s{index}{factor}+1)" for factor in range(6))
            values[new]["sizes"][0] = {"as_expr": {"expr_str": text, "hint": None}}
        graph["nodes"].append(node)
        before = new
    for output in graph["outputs"]:
        output["as_tensor"]["name"] = before
    signature = json.dumps(document["graph_module"]["signature"]).replace(json.dumps(name), json.dumps(before))
    document["graph_module"]["signature"] = json.loads(signature)
    return json.dumps(document, separators=(",", ":")).encode()


def _values(honest: dict[str, bytes], count: int) -> bytes:
    """The honest program, and values that no operator gives."""
    document = json.loads(honest["archive/models/model.json"])
    chance = random.Random(1)
    values = {f"s{chance.getrandbits(40):x}": {"as_int": 1} for _ in range(count)}
    document["graph_module"]["graph"]["sym_int_values"] = values
    return json.dumps(document, separators=(",", ":")).encode()


def _mappings(count: int) -> bytes:
    chance = random.Random(1)
    return b'{"a":[' + b",".join(b'{"%x":0}' % chance.getrandbits(32) for _ in range(count // 4)) + b"]}"


def _zip(path: Path, entries: dict[str, bytes], json_as: int = zipfile.ZIP_DEFLATED) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries.items():
            kind = json_as if name.endswith(".json") else zipfile.ZIP_STORED
            archive.writestr(name, data, kind, 9)


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2 * 2**30)


def _manifest(count: int, torch: str) -> str:
    files = [{"path": f"1-a/f{index}", "sha256": "0" * 64, "bytes": 1} for index in range(count)]
    return json.dumps(
        {
            "apiVersion": "modelpress.dev/v1alpha1",
            "attempt": 1,
            "files": files,
            "specDigest": "d",
            "versions": {"torch": torch},
        }
    )


def _pixels(path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("L", (13_000, 13_000)).save(buffer, "PNG")
    path.write_bytes(buffer.getvalue())


if __name__ == "__main__":
    raise SystemExit(main())
