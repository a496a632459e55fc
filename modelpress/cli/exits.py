"""Exit codes of the command line, and how an exception becomes a sentence and one of them."""

from __future__ import annotations

import enum
import os
import sys
import tempfile
import traceback
from pathlib import Path

from modelpress.api.errors import SpecError
from modelpress.control_characters import escape_control_characters

DEBUG = "MODELPRESS_DEBUG"


class Exit(enum.IntEnum):
    """What `modelpress` exits with."""

    DONE = 0
    FAILED = 1
    INVALID = 2  # usage, or an invalid file
    MISSED = 3  # the result does not meet the constraints, or not for certain
    INTERRUPTED = 130  # Ctrl-C
    TERMINATED = 143  # SIGTERM


def report(error: BaseException) -> int:
    """Say in a sentence on standard error what went wrong, and with which exit code to end.

    With MODELPRESS_DEBUG=1 the traceback comes first. Without, an error that nobody foresaw leaves it in a file.
    """
    debug = os.environ.get(DEBUG, "") not in ("", "0")
    if debug:
        traceback.print_exception(error, file=sys.stderr)
    if isinstance(error, SpecError):
        _say(str(error))
        return Exit.INVALID
    if isinstance(error, KeyboardInterrupt):
        return Exit.INTERRUPTED
    # Imported here: validating a file needs nothing of local runs.
    from modelpress.local.errors import LocalError

    if isinstance(error, LocalError):
        _say(str(error))
        return error.exit_code
    kind = type(error).__name__
    text = str(error).splitlines()[0] if str(error) else "no message"
    where = "" if debug else f"; the traceback is in {_keep(error)} (or set {DEBUG}=1)"
    _say(f"this should not have happened: {kind}: {text}{where}")
    return Exit.FAILED


def _say(text: str) -> None:
    text = escape_control_characters(text)
    print(f"modelpress: {text}" if "\n" not in text else text, file=sys.stderr)


def _keep(error: BaseException) -> str:
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="modelpress-", suffix=".log", delete=False, encoding="utf-8"
        ) as file:
            traceback.print_exception(error, file=file)
            return str(Path(file.name))
    except OSError:
        return "no file, for none could be written"
