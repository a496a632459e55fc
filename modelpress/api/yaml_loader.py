"""YAML to plain data, read as the API server's tools read it, with the line of every value.

YAML has two versions that disagree about plain scalars. So that a file means the same on a laptop and through kubectl,
they are resolved here as in Kubernetes' YAML library (YAML 1.1 words for true and false, 1.2 numbers, no dates, no
base 60), and a whole number written as 5.0 becomes the integer 5, as on its way through JSON.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from .depth import MAX_DEPTH
from .errors import Location, Problem, format_location
from .json_numbers import MAX_INTEGER_BITS, to_json_numbers
from .messages import cut, describe

MAX_NODES = 20_000  # of a file, each time an alias is used counted anew

_TAG = "tag:yaml.org,2002:"
_TRUE = frozenset({"y", "Y", "yes", "Yes", "YES", "true", "True", "TRUE", "on", "On", "ON"})
_FALSE = frozenset({"n", "N", "no", "No", "NO", "false", "False", "FALSE", "off", "Off", "OFF"})
_NULL = frozenset({"", "~", "null", "Null", "NULL"})
_SPECIAL_FLOAT = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_INT = re.compile(r"[-+]?(0[bB][01]+|0[oO][0-7]+|0[xX][0-9a-fA-F]+|0[0-7]*|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_PLAIN_TAGS = frozenset(_TAG + name for name in ("str", "int", "float", "bool", "null", "seq", "map", "merge", "value"))


@dataclass(frozen=True)
class Document:
    """One YAML document: plain data, and the line (from 1) of each key and list entry."""

    data: Any
    line: int
    lines: Mapping[Location, int]

    def line_of(self, location: Location) -> int:
        """The line of the deepest part of `location` that is in the file."""
        for length in range(len(location), 0, -1):
            if location[:length] in self.lines:
                return self.lines[location[:length]]
        return self.line


def parse(text: str) -> tuple[list[Document], list[Problem]]:
    """The documents of a YAML text that are not empty, and what is wrong with it."""
    documents: list[Document] = []
    problems: list[Problem] = []
    try:
        loader = _Loader(text)
        try:
            while loader.check_node():
                node = loader.get_node()
                if node is None:
                    continue
                check = _Check()
                check.visit(node, (), ())
                problems += check.problems
                if not check.problems:
                    data = to_json_numbers(loader.construct_document(node))
                    if data is not None:
                        documents.append(Document(data, node.start_mark.line + 1, check.lines))
        finally:
            loader.dispose()
    except _TooMuchError as error:
        problems.append(Problem("", str(error), "write it out without so many aliases or levels", line=error.line))
    except RecursionError:
        problems.append(Problem("", f"nested deeper than {MAX_DEPTH} levels", "write it flatter"))
    except yaml.YAMLError as error:
        problems.append(_syntax_problem(error, text))
    return documents, problems


class _TooMuchError(Exception):
    def __init__(self, message: str, line: int) -> None:
        super().__init__(message)
        self.line = line


class _Loader(yaml.SafeLoader):
    """Safe, with Kubernetes' idea of plain scalars."""

    count = 0  # of all documents

    def compose_node(self, parent: Any, index: Any) -> yaml.Node | None:
        self.count += 1
        if self.count > MAX_NODES:
            raise _TooMuchError(f"more than {MAX_NODES} values", self.line + 1)
        node: yaml.Node | None = super().compose_node(parent, index)
        return node

    def resolve(self, kind: Any, value: Any, implicit: Any) -> str:
        if kind is yaml.ScalarNode and implicit[0]:
            return _TAG + _plain_kind(value)
        if kind is yaml.ScalarNode:
            return _TAG + "str"
        return _TAG + ("seq" if kind is yaml.SequenceNode else "map")

    def construct_plain_int(self, node: yaml.ScalarNode) -> int:
        text = node.value.replace("_", "").lower()
        sign, digits = (-1, text[1:]) if text.startswith("-") else (1, text.lstrip("+"))
        try:
            value = int(digits, 8 if re.fullmatch(r"0[0-7]+", digits) else 0)
        except ValueError:
            raise _not_a("an integer", node) from None
        if value.bit_length() > MAX_INTEGER_BITS:
            raise _not_a("a number that JSON's readers can hold", node)
        return sign * value

    def construct_plain_float(self, node: yaml.ScalarNode) -> float:
        try:
            return float(node.value.replace("_", ""))
        except ValueError:
            raise _not_a("a number", node) from None

    def construct_plain_bool(self, node: yaml.ScalarNode) -> bool:
        if node.value in _TRUE:
            return True
        if node.value in _FALSE:
            return False
        raise _not_a("true or false", node)


_Loader.add_constructor(_TAG + "int", _Loader.construct_plain_int)
_Loader.add_constructor(_TAG + "float", _Loader.construct_plain_float)
_Loader.add_constructor(_TAG + "bool", _Loader.construct_plain_bool)


def _not_a(what: str, node: yaml.Node) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(None, None, f"the value is not {what}", node.start_mark)


def _plain_kind(text: str) -> str:
    if text in _TRUE or text in _FALSE:
        return "bool"
    if text in _NULL:
        return "null"
    if text == "<<":
        return "merge"
    if text[0] in "+-.0123456789":
        plain = text.replace("_", "")
        if _INT.fullmatch(plain):
            return "int"
        if _FLOAT.fullmatch(plain) or _SPECIAL_FLOAT.fullmatch(text):
            return "float"
    return "str"


class _Check:
    """Refuses what JSON cannot carry, and notes the lines."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self.lines: dict[Location, int] = {}
        self.count = 0

    def visit(self, node: yaml.Node, location: Location, above: tuple[int, ...]) -> None:
        line = node.start_mark.line + 1
        self.count += 1
        if self.count > MAX_NODES:
            raise _TooMuchError(f"more than {MAX_NODES} values", line)
        if id(node) in above:
            raise _TooMuchError("an alias that contains itself", line)
        if len(above) > MAX_DEPTH:
            raise _TooMuchError(f"nested deeper than {MAX_DEPTH} levels", line)
        if node.tag not in _PLAIN_TAGS or not _suits(node):
            tag = node.tag.replace(_TAG, "!!")
            self._add(location, line, f"the YAML tag {tag} is not supported here", "remove the tag")
        elif node.tag == _TAG + "float" and not _is_finite(node):
            self._add(location, line, f"{cut(node.value)} has no counterpart in JSON", "write a finite number")
        if isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                self.lines[(*location, index)] = item.start_mark.line + 1
                self.visit(item, (*location, index), (*above, id(node)))
        elif isinstance(node, yaml.MappingNode):
            self._visit_mapping(node, location, (*above, id(node)))

    def _visit_mapping(self, node: yaml.MappingNode, location: Location, above: tuple[int, ...]) -> None:
        seen: dict[str, int] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if key_node.tag == _TAG + "merge":
                self.visit(value_node, location, above)
                continue
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag != _TAG + "str":
                shown = cut(key_node.value) if isinstance(key_node, yaml.ScalarNode) else "a list or mapping"
                fix = f'write "{shown}":' if isinstance(key_node, yaml.ScalarNode) else "use a text as key"
                self._add(location, line, f"a key must be text, found {shown or 'nothing'}", fix)
                continue
            key = key_node.value
            if key in seen:
                what = f"{describe(key).removeprefix('the text ')} stands twice, first in line {seen[key]}"
                self._add((*location, key), line, what, "keep one of them")
            seen.setdefault(key, line)
            self.lines[(*location, key)] = line
            self.visit(value_node, (*location, key), above)

    def _add(self, location: Location, line: int, message: str, fix: str) -> None:
        self.problems.append(Problem(format_location(location), message, fix, line=line))


def _suits(node: yaml.Node) -> bool:
    """Whether the tag is one for a value of this shape; someone may have written '!!float [1]'."""
    shape = {_TAG + "seq": yaml.SequenceNode, _TAG + "map": yaml.MappingNode}.get(node.tag, yaml.ScalarNode)
    return isinstance(node, shape)


def _is_finite(node: yaml.Node) -> bool:
    text = str(node.value).replace("_", "").lower()
    if text.endswith((".inf", ".nan")):
        return False
    try:
        return math.isfinite(float(text))
    except ValueError:
        return True  # its constructor says what is wrong


def _syntax_problem(error: yaml.YAMLError, text: str) -> Problem:
    if isinstance(error, yaml.reader.ReaderError):
        line = text.count("\n", 0, error.position) + 1
        # PyYAML gives the character's code point, its type hints say otherwise.
        code = error.character if isinstance(error.character, int) else ord(error.character)
        message = f"not valid YAML: the character U+{code:04X} may not stand in a text file"
        return Problem("", message, "remove it", line=line)
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    what = getattr(error, "problem", None) or getattr(error, "context", None) or "it cannot be read"
    if mark is None:
        return Problem("", f"not valid YAML: {what}", "correct it")
    where = f"line {mark.line + 1}, column {mark.column + 1}"
    return Problem("", f"not valid YAML: {what} ({where})", _syntax_fix(what), line=mark.line + 1)


def _syntax_fix(what: str) -> str:
    if r"\t" in what:
        return "indent with spaces; YAML allows no tabs there"
    if "mapping values are not allowed" in what:
        return "check the indentation, and put a text that contains ': ' in quotes"
    if "expected <block end>" in what or "expected the node content" in what:
        return "check the indentation: keys of one mapping begin in one column, and every entry of a list with '- '"
    if "expected ',' or" in what or "end of stream" in what:
        return "close the bracket, brace or quote that was opened before"
    if "alias" in what or "anchor" in what:
        return "define the anchor (&name) before its alias (*name)"
    if "cannot start any token" in what:
        return "put a text that begins with this character in quotes"
    if "could not find expected ':'" in what:
        return "write 'key: value', with a space after the colon"
    return "correct it there or in the line above"
