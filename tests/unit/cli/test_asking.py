"""Questions to the runner's half: Ctrl-C, which a terminal sends to both processes, ends both without a traceback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ASK = """
import sys
from modelpress.cli.asking import answer_of
from modelpress.cli.exits import report
try:
    print(answer_of("asked_module", {"number": 2}, "analysis")["number"])
except BaseException as error:
    sys.exit(report(error))
"""
WAITS = """
import pathlib, time
def wait():
    pathlib.Path("began").touch()
    time.sleep(60)
"""
MODULES = {
    "while it is loaded": WAITS + "wait()",
    "while it runs": WAITS + "def main(arguments): wait()",
    "where it catches errors": WAITS
    + "def main(arguments):\n    try:\n        wait()\n    except Exception as error:\n        print(error)",
}
ANSWERS = """
import json, pathlib
def main(arguments):
    request, answer = map(pathlib.Path, arguments)
    answer.write_text(json.dumps({"number": json.loads(request.read_text())["number"] + 1}))
    return 0
"""


def asking(folder: Path, module: str) -> subprocess.Popen[str]:
    """A process that asks a module, in a process group of its own."""
    (folder / "asked_module.py").write_text(module)
    return subprocess.Popen(
        (sys.executable, "-c", ASK),
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def test_it_answers(tmp_path: Path) -> None:
    """Request and result are files."""
    with asking(tmp_path, ANSWERS) as process:
        assert process.communicate(timeout=60) == ("3\n", "")
    assert process.returncode == 0


@pytest.mark.parametrize("module", MODULES.values(), ids=MODULES)
def test_ctrl_c_is_quiet(tmp_path: Path, module: str) -> None:
    """Exit code 130, and not a word."""
    with asking(tmp_path, module) as process:
        while not (tmp_path / "began").exists():
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
        assert process.communicate(timeout=60) == ("", "")
    assert process.returncode == 130
