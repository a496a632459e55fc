"""A file of another tool as plain data with the line of every value: JSON, YAML or Python, mended where it must be."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelpress.api.errors import Problem, SpecError
from modelpress.api.load import read_text
from modelpress.api.yaml_loader import parse

from . import literals, scripts
from .notes import Book, Field, Note

_TAG = re.compile(r"(?m)(^[ ]*|[-:][ ]+)!([A-Za-z]\w*)(?=[ ]*(#.*)?$)")
_DOTS = re.compile(r"(?m)^[ \t]*\.\.\.[ \t]*$")
_BARE = re.compile(r"\s*[\[{]")


@dataclass
class Source:
    """A file that is to be converted.

    Attributes:
        top: its value; of a Python file the names that it assigns.
        script: what else a Python file says; None: it is data.
    """

    book: Book
    top: Field
    script: scripts.Script | None = None


def read(path: str) -> Source:
    """Reads a file by its suffix, else by what it begins with.

    Raises:
        SpecError: it cannot be read.
    """
    text = read_text(Path(path))
    suffix = Path(path).suffix.lower()
    if suffix == ".py":
        return _script(text, path)
    if suffix == ".json" or (suffix not in (".yaml", ".yml") and _BARE.match(text)):
        return _literal(text, path)
    return _yaml(text, path)


def _literal(text: str, path: str) -> Source:
    reader = literals.Reader(text, path)
    data = reader.read()
    book = Book(path, reader.lines)
    return Source(_mended(book, reader.mended), Field(data, book))


def _script(text: str, path: str) -> Source:
    script = scripts.read(text, path)
    book = Book(path, script.lines)
    return Source(_mended(book, script.mended), Field(script.names, book), script)


def _yaml(text: str, path: str) -> Source:
    what = "the line '...' stands for something; it was left out"
    mended = [(text.count("\n", 0, found.start()) + 1, what) for found in _DOTS.finditer(text)]
    # Neural Compressor's tags name a class whose settings they are; there is one, so they say nothing.
    clean = _TAG.sub(lambda found: found[1] + " " * (len(found[2]) + 1), _DOTS.sub("", text))
    documents, problems = parse(clean)
    if problems:
        raise SpecError(problem.at(path, problem.line) for problem in problems)
    if len(documents) != 1:
        found_ = "none" if not documents else f"{len(documents)} of them"
        raise SpecError([Problem("", f"must hold one configuration, found {found_}", "write it into a file", path)])
    data: Any = documents[0].data
    book = Book(path, documents[0].lines)
    return Source(_mended(book, mended), Field(data, book))


def _mended(book: Book, mended: list[tuple[int, str]]) -> Book:
    for line, sentence in mended:
        book.notes.append(Note("mended", "", sentence, line))
    return book
