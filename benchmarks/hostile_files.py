"""Files that were made to do harm: how long each is refused for, and at what peak of memory, in a fork of its own.

Usage: hostile_files.py      prints a table; exit code 1 if a file under 1 MiB takes over 2 s or 256 MiB.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import resource
import tempfile
import threading
import time
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

import modelpress as mp
from modelpress.local.errors import StateError
from modelpress.local.journal import Journal
from modelpress_runner.errors import RunnerError
from modelpress_runner.export.pt2.program import export_program, open_program
from modelpress_runner.inputs import rows

MAX_SECONDS, MAX_MIB = 2.0, 256.0


def main() -> int:
    """Prints the table."""
    wrong = 0
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
            file = {"program": "model.pt2", "manifest": "manifest.json", "journal": "commit.json", "image": "x.png"}[
                kind
            ]
            make(place / file)
            found = _measured(kind, place / file)
            size = (place / file).stat().st_size
            seconds, mib = found.get("seconds", 60.0), found.get("mib", 0.0)
            bad = found["end"].startswith("RAW") or (size < 2**20 and (seconds > MAX_SECONDS or mib > MAX_MIB))
            wrong += bad
            print(f"{name:58} {size / 1024:8.1f} {seconds:7.2f} {mib:6.0f}  {found['end']}{'  <--' * bad}", flush=True)
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
    except (RunnerError, StateError) as error:
        end = type(error).__name__
    except Exception as error:
        end = f"RAW {type(error).__name__}"
    seconds = time.process_time() - began
    peak[0] = max(peak[0], _resident())
    over.set()
    return {"end": end, "seconds": seconds, "mib": (peak[0] - before) / 2**20}


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
    return cases


def _mappings(count: int) -> bytes:
    chance = random.Random(1)
    return b'{"a":[' + b",".join(b'{"%x":0}' % chance.getrandbits(32) for _ in range(count // 4)) + b"]}"


def _zip(path: Path, entries: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries.items():
            kind = zipfile.ZIP_DEFLATED if name.endswith(".json") else zipfile.ZIP_STORED
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
