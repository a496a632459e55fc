"""Questions to the runner's half, in a process of its own, so that the command line loads no torch."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modelpress.local.errors import LocalError, UsageError

from .exits import Exit


def needs_torch() -> None:
    """Raises UsageError where torch or the runner is not installed."""
    if importlib.util.find_spec("modelpress_runner") is None or importlib.util.find_spec("torch") is None:
        raise UsageError("the package 'torch' is not installed; install it with: pip install 'modelpress[runner]'")


def answer_of(module: str, request: Mapping[str, Any], what: str, killed: str | None = None) -> dict[str, Any]:
    """What the main of a module answers to a request, each in a file.

    Args:
        module: of modelpress_runner.runs.
        request: JSON-ready.
        what: runs there, for messages: "analysis".
        killed: the message where SIGKILL ended it; None: that it was ended by that signal.

    Raises:
        UsageError: model or request are not valid.
        LocalError: it failed; the message says why.
    """
    with tempfile.TemporaryDirectory(prefix=f"modelpress-{module.rpartition('.')[2]}-") as folder:
        asked, answer = Path(folder) / "request.json", Path(folder) / "result.json"
        asked.write_text(json.dumps(request), encoding="utf-8")
        command = [sys.executable, "-m", "modelpress.cli.asked", module, str(asked), str(answer)]
        # Standard output is the caller's; what the user's code prints goes where progress goes.
        done = subprocess.run(command, stdout=sys.stderr, stdin=subprocess.DEVNULL, check=False)
        if done.returncode == -9 and killed is not None:
            raise LocalError(killed)
        if done.returncode < 0:
            raise LocalError(f"the {what} was ended by signal {-done.returncode}")
        if not answer.exists():
            raise LocalError(f"the {what} failed; its output above says why")
        found: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
    if "error" in found:
        raise (UsageError if found["exitCode"] == Exit.INVALID else LocalError)(found["error"])
    return found
