"""Calling the user's code: what it raises becomes one sentence that names its own file and line."""

from __future__ import annotations

import contextlib
import os
import site
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from pathlib import Path

from modelpress_runner.errors import RunnerError, UserCodeError

_OURS = str(Path(__file__).resolve().parents[1])
_LIBRARIES = tuple(
    {
        *(sysconfig.get_paths()[key] for key in ("stdlib", "platstdlib", "purelib", "platlib")),
        *site.getsitepackages(),
        site.getusersitepackages(),
    }
)


@contextlib.contextmanager
def user_code(what: str, error: type[RunnerError] = UserCodeError, path: str | None = None) -> Iterator[None]:
    """Turns what the user's code raises, sys.exit() included, into `error`; errors of the runner itself pass.

    Args:
        what: the function that is called, for the message: "training_func".
        error: the type to raise; its cause is the original exception.
        path: field of the spec that the message is about.
    """
    try:
        yield
    except RunnerError:
        raise
    except (Exception, SystemExit) as raised:
        raise error(f"{what} raised {describe(raised)}", path) from raised


def describe(raised: BaseException) -> str:
    """One line: the type and message of an exception, and the last line of the user's code on its way."""
    text = " ".join(str(raised.msg if isinstance(raised, SyntaxError) else raised).split())
    if len(text) > 300:
        text = text[:299] + "…"
    place = user_line(raised)
    return type(raised).__name__ + (f": {text}" if text else "") + (f" ({place})" if place else "")


def user_line(raised: BaseException) -> str | None:
    """file:line of the last frame that is neither in a library nor in the runner; None if there is none."""
    if isinstance(raised, SyntaxError) and raised.filename:
        return f"{_short(raised.filename)}:{raised.lineno}"
    frames = traceback.extract_tb(raised.__traceback__)
    for frame in reversed(frames):
        if not is_library_file(frame.filename) and not frame.filename.startswith((_OURS, "<")):
            return f"{_short(frame.filename)}:{frame.lineno}"
    return None


def _short(path: str) -> str:
    """The path below the folder that it was imported from: a termination message holds 1 KiB."""
    above = [str(Path(entry).resolve()) + os.sep for entry in sys.path]
    longest = max((folder for folder in above if path.startswith(folder)), key=len, default="")
    return path.removeprefix(longest)


def is_library_file(path: str) -> bool:
    """Whether a source file belongs to Python or to an installed package."""
    return path.startswith(_LIBRARIES)
