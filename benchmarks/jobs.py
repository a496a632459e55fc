"""A job as `modelpress run` runs it, for benchmarks."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml


def run_job(document: dict[str, Any], folder: Path, name: str) -> dict[str, Any]:
    """The metrics that its artifact has, with the seconds of it all under "wall", and what was printed under "printed".

    Args:
        document: a CompressionJob.
        folder: where the file, called after `name`, and a store for it are put.

    Raises:
        SystemExit: it failed; the message has what it printed.
    """
    path, store = folder / f"{name}.yaml", folder / f"out-{name}"
    path.write_text(yaml.safe_dump(document))
    command = [sys.executable, "-m", "modelpress.cli", "run", str(path), "--store", str(store), "--no-progress"]
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    (manifest,) = store.glob("default/*/manifest.json")
    metrics: dict[str, Any] = json.loads(manifest.read_text())["metrics"]
    return {**metrics, "wall": time.perf_counter() - began, "printed": done.stdout}
