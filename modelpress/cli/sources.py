"""Files and standard input as objects."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from modelpress.api.errors import SpecError
from modelpress.api.load import Loaded, load_file

STDIN = "-"


def load(source: str) -> list[Loaded]:
    """The objects of a file, or of standard input for `-`.

    Raises:
        SpecError: see modelpress.api.load.load_file.
    """
    if source != STDIN:
        return load_file(source)
    with tempfile.TemporaryDirectory(prefix="modelpress-") as folder:
        file = Path(folder) / "stdin.yaml"
        file.write_bytes(sys.stdin.buffer.read())
        try:
            loaded = load_file(file)
        except SpecError as error:
            raise SpecError(problem.at("<stdin>", problem.line) for problem in error.problems) from None
    return [Loaded(item.obj, Path("<stdin>"), item.line) for item in loaded]
