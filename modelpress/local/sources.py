"""Files, standard input and mappings as objects to run, each knowing the line that a field of it stands in."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelpress.api import yaml_loader
from modelpress.api.errors import Problem, SpecError
from modelpress.api.load import MAX_FILE_BYTES, load_dict, load_file

from .cluster import Root

STDIN = "-"
_PART = re.compile(r"[^.\[\]]+")


@dataclass(frozen=True)
class Document:
    """One object, and where it comes from. `folder` is what its code.path is relative to."""

    obj: Root
    folder: Path
    file: str | None = None
    text: yaml_loader.Document | None = None

    def locate(self, problems: Iterable[Problem]) -> list[Problem]:
        """The problems with the file, and the line of the field that each is about."""
        if self.file is None:
            return list(problems)
        return [problem.at(self.file, problem.line or self._line(problem.path)) for problem in problems]

    def _line(self, path: str) -> int | None:
        if self.text is None:
            return None
        parts = _PART.findall(path)
        return self.text.line_of(tuple(int(part) if part.isdigit() else part for part in parts))


def load_documents(source: str | os.PathLike[str] | Mapping[str, Any]) -> list[Document]:
    """The objects of a YAML file, of standard input for `-`, or of a mapping in YAML or Python spelling.

    Raises:
        SpecError: see modelpress.api.load.
    """
    if isinstance(source, Mapping):
        return [Document(load_dict(source, python_spelling=True), Path.cwd())]
    if source == STDIN:
        return _load_stdin()
    return _load(Path(source), Path(source).resolve().parent, str(source))


def _load_stdin() -> list[Document]:
    with tempfile.TemporaryDirectory(prefix="modelpress-") as folder:
        file = Path(folder) / "stdin.yaml"
        file.write_bytes(sys.stdin.buffer.read(MAX_FILE_BYTES + 1))
        try:
            return _load(file, Path.cwd(), "<stdin>")
        except SpecError as error:
            raise SpecError(problem.at("<stdin>", problem.line) for problem in error.problems) from None


def _load(file: Path, folder: Path, name: str) -> list[Document]:
    return [Document(item.obj, folder, name, item.text) for item in load_file(file)]
