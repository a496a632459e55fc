"""Makes the helpers beside the tests importable."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

FOLDER = str(Path(__file__).parent)
if FOLDER not in sys.path:
    sys.path.insert(0, FOLDER)

from own_loop import Task  # noqa: E402


@pytest.fixture
def task() -> Task:
    return Task()
