"""modelpress in a process that has a plug-in."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def modelpress(tmp_path: Path) -> Command:
    """modelpress(*arguments, plugin=FOLDER): the command line in tmp_path, with what lies in FOLDER installed."""

    def run(*arguments: str, plugin: Path) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": str(plugin), "COLUMNS": "200"}
        command = [sys.executable, "-m", "modelpress.cli", *arguments]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)

    return run
