"""`modelpress benchmark`: times the file of a runtime, by instances that have cores of their own."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
import os
import queue
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from modelpress.local.errors import LocalError, UsageError
from modelpress.plainjson import json_of
from modelpress.store import StoreError, StoreUriError, layout, manifest, open_store

from .exits import Exit

FILES = {"onnxruntime": layout.ONNX, "openvino": layout.OPENVINO}  # by runtime; beside it may lie its tensors
_BESIDE = {layout.ONNX: layout.ONNX_DATA, layout.OPENVINO: layout.OPENVINO_DATA}
_WRITES = {"onnxruntime": "onnx", "openvino": "openvino"}  # by runtime, what export.formats calls it
_SILENT = 2.0  # seconds without a word of how far it is
PERCENTILES = (50, 90, 99)
_METRIC = re.compile(r"top[1-9][0-9]{0,3}|f1|perplexity|retrieval")


@dataclass(frozen=True)
class Asked:
    """What is to be measured; see the command's options."""

    warmup: int
    iterations: int
    batch_size: int
    instances: int
    cores_per_instance: int
    data: Path | None
    seed: int
    metric: str | None = None


def run_benchmark(
    what: str,
    asked: Asked,
    *,
    runtime: str | None,
    endpoint: str | None,
    region: str | None,
    as_json: bool,
    progress: bool,
) -> int:
    """Measures and prints; the exit code.

    Raises:
        UsageError: there is no such file, or it cannot be measured so here.
        LocalError: the store failed, or an instance did.
    """
    if importlib.util.find_spec("modelpress_runner") is None or importlib.util.find_spec("numpy") is None:
        raise UsageError("the package 'numpy' is not installed; install it with: pip install 'modelpress[onnx]'")
    if asked.data is not None and not asked.data.is_file():
        raise UsageError(f"--data: there is no file {asked.data}")
    if asked.metric is not None and not _METRIC.fullmatch(asked.metric):
        raise UsageError(f"--metric: there is no {asked.metric!r}; write top1 (top5, ...), f1, perplexity or retrieval")
    if asked.metric is not None and asked.data is None:
        raise UsageError("--metric is taken of rows with labels; give them with --data, with an array 'labels' in it")
    cores = _cores(asked)
    with _file(what, runtime, endpoint, region) as path:
        measured = _measure(path, asked, cores, progress and sys.stderr.isatty())
    result = {"file": path.name, **measured}
    if as_json:
        print(json.dumps(result, indent=2))
    else:
        _print(result)
    return Exit.DONE


def _cores(asked: Asked) -> list[list[int]]:
    """The cores of each instance."""
    if not hasattr(os, "sched_setaffinity"):
        raise UsageError("instances are pinned to cores, and only Linux lets a process choose them")
    present, each = sorted(os.sched_getaffinity(0)), asked.cores_per_instance
    wanted = asked.instances * each
    if wanted > len(present):
        raise UsageError(
            f"{asked.instances} instance{'s' * (asked.instances != 1)} of {each} core{'s' * (each != 1)} need {wanted} "
            f"cores, and this process may use {len(present)}; lower --instances or --cores-per-instance"
        )
    return [present[number * each : (number + 1) * each] for number in range(asked.instances)]


@contextlib.contextmanager
def _file(what: str, runtime: str | None, endpoint: str | None, region: str | None) -> Iterator[Path]:
    """The file that is meant: itself, or one of an artifact, which is fetched and verified."""
    if runtime is not None and runtime not in FILES:
        raise UsageError(f"--format: there is no runtime {runtime!r}; known: {', '.join(FILES)}")
    if "://" not in what and Path(what).is_file() and Path(what).name != layout.MANIFEST:
        if Path(what).suffix not in (".onnx", ".xml"):
            raise UsageError(
                f"{what} is no file of a runtime: give model.onnx, model.xml or the folder of an artifact (a YAML file "
                "is run first, with `modelpress run`)"
            )
        yield Path(what)
        return
    where = what.removesuffix(layout.MANIFEST).rstrip("/") or what
    if "://" not in where and not os.path.isdir(where):
        raise UsageError(f"there is no file or folder {what}; name model.onnx, model.xml or an artifact's folder")
    try:
        store = open_store(where, endpoint=endpoint, region=region)
        found = manifest.read(store, "")
        if found is None:
            raise UsageError(f"{where} has no {layout.MANIFEST}; give the folder of a finished job or trial, or best/")
        listed = found[0]
        present = [name for name, file in FILES.items() if listed.find(file) is not None]
        chosen = runtime or next(iter(present), None)
        if chosen is None or chosen not in present:
            name = FILES[chosen] if chosen else "file of a runtime"
            formats = _WRITES[chosen] if chosen else ", ".join(_WRITES.values())
            raise UsageError(f"{where} has no {name}; a job writes one with export: {{formats: [{formats}]}}")
        with tempfile.TemporaryDirectory(prefix="modelpress-benchmark-") as folder:
            file = FILES[chosen]
            wanted = {name for name in (file, _BESIDE[file]) if listed.find(name) is not None}
            yield manifest.fetch(store, "", listed, Path(folder), wanted)[file]
    except (manifest.ManifestError, StoreUriError) as error:
        raise UsageError(str(error)) from error
    except StoreError as error:
        raise LocalError(str(error)) from error


def _measure(path: Path, asked: Asked, cores: Sequence[Sequence[int]], progress: bool) -> dict[str, Any]:
    said: queue.SimpleQueue[tuple[int, dict[str, Any] | None]] = queue.SimpleQueue()
    running: list[subprocess.Popen[str]] = []
    try:
        for number, mine in enumerate(cores):
            told = {
                "path": str(path.resolve()),
                "cores": list(mine),
                "warmup": asked.warmup,
                "iterations": asked.iterations,
                "batchSize": asked.batch_size,
                "data": None if asked.data is None else str(asked.data.resolve()),
                "seed": asked.seed,
                "metric": asked.metric if number == 0 else None,
            }
            command = [sys.executable, "-m", "modelpress_runner.serving.instance", json.dumps(told)]
            environment = {**os.environ, "OMP_NUM_THREADS": str(len(mine))}
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=environment,
            )
            running.append(process)
            threading.Thread(target=_listen, args=(number, process, said), daemon=True).start()
        ready = _all(said, "ready", running, progress, asked.iterations)
        for process in running:  # all begin at once
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        done = _all(said, "done", running, progress, asked.iterations)
    finally:
        for process in running:
            with contextlib.suppress(OSError):
                process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    with contextlib.suppress(OSError):
                        stream.close()
    return _summary(asked, cores, ready[0], done)


def _listen(number: int, process: subprocess.Popen[str], said: queue.SimpleQueue[tuple[int, Any]]) -> None:
    assert process.stdout is not None
    with contextlib.suppress(ValueError):  # the stream is closed when all is over
        for line in process.stdout:
            with contextlib.suppress(ValueError):
                word = json_of(line)
                if isinstance(word, dict):
                    said.put((number, word))
    said.put((number, None))


def _all(
    said: queue.SimpleQueue[tuple[int, dict[str, Any] | None]],
    state: str,
    running: Sequence[subprocess.Popen[str]],
    progress: bool,
    iterations: int,
) -> list[dict[str, Any]]:
    """What all instances said when they came to a state."""
    found: dict[int, dict[str, Any]] = {}
    began = time.monotonic()
    while len(found) < len(running):
        number, word = said.get()
        if word is None and number in found:
            continue  # it is through, and the others are not yet
        if word is None or word.get("state") == "error":
            raise LocalError(_why(running[number], word))
        if word.get("state") == state:
            found[number] = word
        elif progress and word.get("state") == "running" and time.monotonic() - began > _SILENT:
            print(f"\rmodelpress: {word['done']} of {iterations} calls", end="", file=sys.stderr, flush=True)
    if progress and state == "done" and time.monotonic() - began > _SILENT:
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)
    return [found[number] for number in range(len(running))]


def _why(process: subprocess.Popen[str], word: dict[str, Any] | None) -> str:
    if word is not None:
        return str(word.get("message"))
    process.wait()
    assert process.stderr is not None
    lines = [line for line in process.stderr.read().splitlines() if line.strip()]
    said = f": {lines[-1][:300]}" if lines else ""
    return f"an instance ended with exit code {process.returncode} before it had measured anything{said}"


def _summary(
    asked: Asked, cores: Sequence[Sequence[int]], ready: dict[str, Any], done: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    instances = []
    for mine, each in zip(cores, done, strict=True):
        if each["cores"] != list(mine):
            raise LocalError(
                f"an instance was to run on cores {list(mine)} and may run on {each['cores']}; is it moved?"
            )
        took = [value / 1e6 for value in each["nanoseconds"]]
        rate = len(took) * asked.batch_size / each["seconds"]
        instances.append({"cores": each["cores"], "throughput": rate, "latencyMs": _spread(took)})
    every = [value / 1e6 for each in done for value in each["nanoseconds"]]
    return {
        "runtime": ready["runtime"],
        "inputs": ready["call"],
        "data": "random" if asked.data is None else str(asked.data),
        "batchSize": asked.batch_size,
        "warmup": asked.warmup,
        "iterations": asked.iterations,
        "coresPerInstance": asked.cores_per_instance,
        "throughput": sum(each["throughput"] for each in instances),
        "latencyMs": _spread(every),
        "instances": instances,
        **({} if asked.metric is None else {"metric": {"name": asked.metric, "value": done[0]["value"]}}),
    }


def _spread(milliseconds: Sequence[float]) -> dict[str, float]:
    """Percentiles, linear between neighbours, and the mean."""
    ordered = sorted(milliseconds)

    def at(percent: float) -> float:
        place = (len(ordered) - 1) * percent / 100
        low, high = ordered[math.floor(place)], ordered[math.ceil(place)]
        return low + (high - low) * (place - math.floor(place))

    spread = {f"p{percent}": at(percent) for percent in PERCENTILES}
    return {**spread, "min": ordered[0], "mean": sum(ordered) / len(ordered)}


def _print(result: dict[str, Any]) -> None:
    console = Console()
    console.print(
        f"{result['file']} in {result['runtime']}, batch {result['batchSize']}, {result['iterations']} calls of each "
        f"instance, {result['data']} data",
        highlight=False,
    )
    table = Table(box=None, pad_edge=False)
    for name in ("instance", "cores", "rows/s", "p50 ms", "p90 ms", "p99 ms", "min ms"):
        table.add_column(name, justify="left" if name in ("instance", "cores") else "right")
    rows = [(str(number), each) for number, each in enumerate(result["instances"])]
    if len(rows) > 1:
        rows.append(("all", {**result, "cores": [core for each in result["instances"] for core in each["cores"]]}))
    for name, each in rows:
        figures = [each["latencyMs"][key] for key in ("p50", "p90", "p99", "min")]
        shown = [f"{each['throughput']:,.1f}", *(f"{value:.3f}" for value in figures)]
        table.add_row(name, ",".join(map(str, each["cores"])), *shown)
    console.print(table)
    if "metric" in result:
        console.print(f"{result['metric']['name']}: {result['metric']['value']:.6g}", highlight=False)
