"""Questions of the command line, answered in a process of their own: a request and a result, each a JSON file."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from modelpress.api import plugins
from modelpress.api.errors import SpecError
from modelpress.result import ExitCode
from modelpress_runner.errors import InvalidModelError, InvalidSpecError, RunnerError


def answer(arguments: Sequence[str], found_by: Callable[[Mapping[str, Any]], dict[str, Any]]) -> int:
    """Writes what is found for a request, or error and exitCode; the exit code.

    Args:
        arguments: REQUEST and RESULT, paths.
        found_by: takes the request, and gives the result, JSON-ready.
    """
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s", stream=sys.stderr)
    request, result = map(Path, arguments)
    plugins.load()
    try:
        found = found_by(json.loads(request.read_text(encoding="utf-8")))
        exit_code = ExitCode.DONE
    except (RunnerError, SpecError) as error:
        invalid = isinstance(error, InvalidSpecError | InvalidModelError | SpecError)
        exit_code = ExitCode.INVALID if invalid else ExitCode.FAILED
        found = {"error": str(error), "exitCode": int(exit_code)}
    result.write_text(json.dumps(found), encoding="utf-8")
    return int(exit_code)
