"""Importing modelpress is cheap, and the source folders keep out of Python's way."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_import_is_light() -> None:
    """A fresh process imports modelpress in under 0.5 s (best of five) and without any heavy library."""
    code = (
        "import sys, time; start = time.perf_counter(); import modelpress; print(time.perf_counter() - start);"
        "print([m for m in ('torch', 'kopf', 'kubernetes', 'optuna') if m in sys.modules])"
    )
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(5)]
    seconds, heavy = zip(*(run.stdout.split("\n")[:2] for run in runs), strict=True)
    assert set(heavy) == {"[]"}
    assert min(map(float, seconds)) < 0.5


def test_no_package_shadows_the_standard_library() -> None:
    """operator/, runner/ and the test folders carry no __init__.py."""
    assert not (ROOT / "operator" / "__init__.py").exists()
    assert not (ROOT / "runner" / "__init__.py").exists()
    assert not list((ROOT / "tests").rglob("__init__.py"))
    assert not [path for path in (ROOT / "tests").rglob("*") if path.is_dir() and path.name in ("operator", "runner")]


def test_a_missing_extra_is_named() -> None:
    """Without torch, modelpress.TorchEvaluator says which extra brings it."""
    code = (
        "import sys; sys.modules['torch'] = None\nimport modelpress\n"
        "try: modelpress.TorchEvaluator\nexcept ImportError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'modelpress[runner]'" in done.stdout
