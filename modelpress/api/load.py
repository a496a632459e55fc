"""From a YAML file, or from a Python mapping, to a CompressionJob or CompressionSweep."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from . import plugins
from .depth import MAX_DEPTH, too_deep
from .errors import Location, Problem, SpecError, format_location, located_problems, near
from .json_numbers import MAX_INTEGER_BITS, to_json_numbers
from .messages import describe, in_words
from .v1alpha1 import API_VERSION, PYTHON_SPELLING, CompressionJob, CompressionSweep

if TYPE_CHECKING:
    from .yaml_loader import Document

MAX_FILE_BYTES = 1024 * 1024  # an API server takes no larger object

KINDS: dict[str, type[CompressionJob] | type[CompressionSweep]] = {
    "CompressionJob": CompressionJob,
    "CompressionSweep": CompressionSweep,
}


@dataclass(frozen=True)
class Loaded:
    """One object of a file, the line it begins in, and the YAML it comes from."""

    obj: CompressionJob | CompressionSweep
    file: Path
    line: int
    text: Document


def load_file(path: str | Path) -> list[Loaded]:
    """The objects of a YAML file, which may hold several documents; empty ones are skipped.

    A `status` in the file is ignored, as the API server ignores it.

    Raises:
        SpecError: the file cannot be read, or something in it is wrong; all that was found is listed.
    """
    from .yaml_loader import parse  # a recipe given in Python needs no YAML

    plugins.load()
    file = Path(path)
    documents, problems = parse(read_text(file))
    if not documents and not problems:
        problems = [Problem("", "holds no object", "write a CompressionJob or a CompressionSweep into it")]
    loaded: list[Loaded] = []
    for document in documents:
        try:
            loaded.append(Loaded(_load_document(document), file, document.line, document))
        except SpecError as error:
            problems += error.problems
    problems += _same_name(loaded)
    if problems:
        problems.sort(key=lambda problem: problem.line or 0)
        raise SpecError(problem.at(str(path), problem.line) for problem in problems)
    return loaded


def load_dict(mapping: Mapping[str, Any], *, python_spelling: bool = False) -> CompressionJob | CompressionSweep:
    """The object that a mapping describes.

    Args:
        python_spelling: allow snake_case and the spellings of older tools, as the Python API does.

    Raises:
        SpecError: something in it is wrong; all that was found is listed. Two spellings of one key are an error.
    """
    plugins.load()
    if not isinstance(mapping, Mapping):
        fix = "give a mapping with apiVersion, kind, metadata and spec"
        raise SpecError([Problem("", f"a specification must be a mapping, found {describe(mapping)}", fix)])
    data, problems = _as_json(dict(mapping), ())
    if problems:
        raise SpecError(problems)
    if python_spelling:
        data = _camel_api_version(data)
    found = [problem for problem, _ in _kind_problems(data)]
    if found:
        raise SpecError(found)
    model = KINDS[data["kind"]]
    try:
        return model.model_validate(to_json_numbers(data), context=PYTHON_SPELLING if python_spelling else None)
    except ValidationError as error:
        raise SpecError(problem for problem, _ in located_problems(error, model)) from None


def read_text(file: Path) -> str:
    """The text of a file that holds a configuration.

    Raises:
        SpecError: it cannot be read, is too large, or is not UTF-8.
    """
    try:
        with file.open("rb") as stream:
            data = stream.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        raise _unreadable(file, "there is no such file", "check the path") from None
    except IsADirectoryError:
        raise _unreadable(file, "is a folder", "name a YAML file in it") from None
    except (OSError, ValueError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        raise _unreadable(file, f"cannot be read: {reason}", "check the path and its permissions") from None
    if len(data) > MAX_FILE_BYTES:
        raise _unreadable(file, f"is larger than {MAX_FILE_BYTES} bytes", "keep weights and data outside the YAML")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        message = f"is not UTF-8: byte 0x{data[error.start]:02x} in line {line}"
        raise SpecError([Problem("", message, "save it as UTF-8 text", str(file), line)]) from None


def _unreadable(file: Path, message: str, fix: str) -> SpecError:
    return SpecError([Problem("", message, fix, str(file))])


def _load_document(document: Document) -> CompressionJob | CompressionSweep:
    data = document.data
    if not isinstance(data, dict):
        message = f"an object must be a mapping, found {describe(data)}"
        fix = "write apiVersion, kind, metadata and spec, each on a line of its own"
        raise SpecError([Problem("", message, fix, line=document.line)])
    found = _kind_problems(data)
    if not found:
        data = {key: item for key, item in data.items() if key != "status"}
        model = KINDS[data["kind"]]
        try:
            return model.model_validate(data)
        except ValidationError as error:
            found = located_problems(error, model)
    raise SpecError(dataclasses.replace(problem, line=document.line_of(location)) for problem, location in found)


def _kind_problems(data: Mapping[str, Any]) -> list[tuple[Problem, Location]]:
    found: list[tuple[Problem, Location]] = []
    version, kind = data.get("apiVersion"), data.get("kind")
    if version is None:
        spelt = near("apiVersion", [key for key in data if key not in ("kind", "metadata", "spec", "status")])
        fix = f"write apiVersion instead of {spelt}" if spelt else f"add 'apiVersion: {API_VERSION}'"
        found.append((Problem("apiVersion", "is required", fix), ("apiVersion",)))
    elif version != API_VERSION:
        message = f"must be {API_VERSION}, found {describe(version)}"
        found.append((Problem("apiVersion", message, f"write apiVersion: {API_VERSION}"), ("apiVersion",)))
    if kind is None:
        found.append((Problem("kind", "is required", f"add kind: {in_words(KINDS)}"), ("kind",)))
    elif not isinstance(kind, str) or kind not in KINDS:
        nearest = near(kind, KINDS) if isinstance(kind, str) else None
        fix = f"did you mean {nearest}?" if nearest else "give modelpress only its own kinds"
        found.append((Problem("kind", f"must be {in_words(KINDS)}, found {describe(kind)}", fix), ("kind",)))
    return found


def _camel_api_version(data: dict[str, Any]) -> dict[str, Any]:
    if "api_version" not in data:
        return data
    if "apiVersion" in data:
        message = "'apiVersion' and 'api_version' are two spellings of one key"
        raise SpecError([Problem("apiVersion", message, "give one of them")])
    return {"apiVersion" if key == "api_version" else key: item for key, item in data.items()}


def _same_name(loaded: list[Loaded]) -> list[Problem]:
    seen: dict[tuple[str, str, str], int] = {}
    problems = []
    for item in loaded:
        key = (item.obj.kind, item.obj.metadata.namespace, item.obj.metadata.name)
        if key in seen:
            message = f"the {key[0]} '{key[2]}' stands twice, first in line {seen[key]}"
            problems.append(Problem("metadata.name", message, "rename one of them", line=item.line))
        seen.setdefault(key, item.line)
    return problems


def _as_json(value: Any, location: Location) -> tuple[Any, list[Problem]]:
    """The value as plain data, tuples as lists; and what JSON cannot carry in it."""
    path = format_location(location)
    if len(location) > MAX_DEPTH:
        return None, [too_deep(path)]
    if isinstance(value, Mapping):
        out: dict[str, Any] = {}
        problems: list[Problem] = []
        for key, item in value.items():
            if not isinstance(key, str):
                problems.append(Problem(path, f"a key must be text, found {describe(key)}", "use a string as key"))
                continue
            out[key], below = _as_json(item, (*location, key))
            problems += below
        return out, problems
    if isinstance(value, list | tuple):
        pairs = [_as_json(item, (*location, index)) for index, item in enumerate(value)]
        return [item for item, _ in pairs], [problem for _, below in pairs for problem in below]
    if isinstance(value, int) and value.bit_length() > MAX_INTEGER_BITS:
        return None, [Problem(path, f"must be a finite number, found {describe(value)}", "write a plain number")]
    if value is None or isinstance(value, str | bool | int):
        return value, []
    if isinstance(value, float):
        if value != value or abs(value) == float("inf"):
            return None, [Problem(path, f"must be a finite number, found {value}", "write a plain number")]
        return value, []
    fix = "give text, numbers, true, false, None, lists or dicts; build other objects inside the entrypoint"
    return None, [Problem(path, f"must be plain data, found {describe(value)}", fix)]
