"""What a Python file says in literals, without running it.

Assignments and calls become plain data. A call is a mapping of its keyword arguments that holds its name under CALL,
its positional arguments under ARGUMENTS, and for a method what it was called of under OF. What only a run could tell is
a `Computed`.
"""

from __future__ import annotations

import ast
import re
import textwrap
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from modelpress.api.errors import Location, Problem, SpecError

from .literals import WIDE
from .notes import Computed

CALL, ARGUMENTS, OF = "()", "(...)", "(of)"
_MAX_MENDED = 40  # lines that are no Python


@dataclass
class Script:
    """What a file says.

    Attributes:
        names: name -> value, of assignments; attributes of an object are keys of its mapping.
        calls: each call that stands in the file, in order.
        lines: line (from 1) of values, by their location: name, key, index; of a call "NAME()" and its arguments.
        imports: name -> module it is imported from.
        classes: name -> names of its bases.
        mended: line and sentence of each thing that was mended.
    """

    names: dict[str, Any] = field(default_factory=dict)
    calls: list[tuple[Location, dict[str, Any]]] = field(default_factory=list)
    lines: dict[Location, int] = field(default_factory=dict)
    imports: dict[str, str] = field(default_factory=dict)
    classes: dict[str, list[str]] = field(default_factory=dict)
    mended: list[tuple[int, str]] = field(default_factory=list)


def read(text: str, file: str) -> Script:
    """What a Python file says. Lines that are no Python are passed over, where no bracket is open.

    Raises:
        SpecError: something within brackets is no Python.
    """
    script = Script()
    tree = _parse(text, file, script)
    try:
        _Visitor(script).visit(tree)
    except RecursionError:
        problem = Problem("", "an expression is nested too deeply", "give modelpress the configuration alone", file)
        raise SpecError([problem]) from None
    return script


def _parse(text: str, file: str, script: Script) -> ast.Module:
    lines = textwrap.dedent(text).split("\n")
    for number, line in enumerate(lines):
        for wide in WIDE:
            if wide in line:
                script.mended.append((number + 1, f"the full-width {wide} was read as {WIDE[wide]}"))
                lines[number] = lines[number].replace(wide, WIDE[wide])
    for _ in range(_MAX_MENDED):
        try:
            return ast.parse("\n".join(lines) + "\n")
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            number = getattr(error, "lineno", None) or 0
            what = getattr(error, "msg", None) or str(error)
            if not 0 < number <= len(lines) or not lines[number - 1].strip() or _open_brackets(lines[: number - 1]):
                fix = "correct it, or give modelpress the configuration alone"
                raise SpecError([Problem("", f"is not Python: {what}", fix, file, number or None)]) from None
            line = lines[number - 1]
            indent = line[: len(line) - len(line.lstrip())]
            lines[number - 1] = f"{indent}if True:" if line.rstrip().endswith(":") else ""
            script.mended.append((number, f"the line {line.strip()!r} is no Python; it was passed over"))
    raise SpecError([Problem("", f"more than {_MAX_MENDED} lines are no Python", "name a Python file", file)])


def _open_brackets(lines: list[str]) -> bool:
    bare = re.sub(r"\"(\\.|[^\"\\\n])*\"|'(\\.|[^'\\\n])*'|#[^\n]*", "", "\n".join(lines))
    return sum(map(bare.count, "([{")) > sum(map(bare.count, ")]}"))


class _Visitor(ast.NodeVisitor):
    """Goes through a file in order."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self._counts: Counter[str] = Counter()  # of calls, by name

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        for name in node.names:
            self._script.imports[name.asname or name.name] = node.module or ""

    def visit_Import(self, node: ast.Import) -> None:
        for name in node.names:
            self._script.imports[name.asname or name.name] = name.name

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self._script.classes[node.name] = [ast.unparse(base).rpartition(".")[2] for base in node.bases]
        self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> None:
        for target in node.targets:
            self._assign(target, node.value)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self._assign(node.target, node.value)

    def visit_Call(self, node: ast.Call) -> None:
        self._call(node)

    def _assign(self, target: ast.expr, value: ast.expr) -> None:
        location = _target(target)
        if location is None:
            self.generic_visit(value)
            return
        if len(location) > 1 and location[0] == "self":
            location = location[1:]
        found = self._value(value, location)
        holder: Any = self._script.names
        for part in location[:-1]:
            held = holder.get(part)
            if not isinstance(held, dict):
                holder[part] = held = {}
            holder = held
        holder[location[-1]] = found
        self._script.lines[location] = target.lineno

    def _call(self, node: ast.Call) -> dict[str, Any]:
        function = node.func
        name = function.attr if isinstance(function, ast.Attribute) else ast.unparse(function)
        self._counts[name] += 1
        number = self._counts[name]
        location: Location = (f"{name}()" if number == 1 else f"{name}()#{number}",)
        call: dict[str, Any] = {CALL: name}
        if isinstance(function, ast.Attribute):
            call[OF] = ast.unparse(function.value)
            if isinstance(function.value, ast.Call):  # TorchEvaluator(...).bind(...)
                self._call(function.value)
        self._script.calls.append((location, call))
        self._script.lines[location] = node.lineno
        call[ARGUMENTS] = [self._value(argument, (*location, index)) for index, argument in enumerate(node.args)]
        for keyword in node.keywords:
            if keyword.arg is not None:
                call[keyword.arg] = self._value(keyword.value, (*location, keyword.arg))
        return call

    def _value(self, node: ast.expr, location: Location) -> Any:
        self._script.lines[location] = node.lineno
        if isinstance(node, ast.Dict):
            out: dict[str, Any] = {}
            for key, value in zip(node.keys, node.values, strict=True):
                name = None if key is None else _literal(key)
                if isinstance(name, str):
                    out[name] = self._value(value, (*location, name))
                    if key is not None:
                        self._script.lines[(*location, name)] = key.lineno
                elif key is None:
                    within = self._value(value, location)
                    out |= within if isinstance(within, dict) else {}
            return out
        if isinstance(node, ast.List | ast.Tuple):
            return [self._value(item, (*location, index)) for index, item in enumerate(node.elts)]
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name) and node.func.id == "dict" and not node.args:
                return {item.arg: self._value(item.value, (*location, item.arg)) for item in node.keywords if item.arg}
            return self._call(node)
        if isinstance(node, ast.Name) and node.id in self._script.names:
            value = self._script.names[node.id]
            if isinstance(value, dict | list):
                known = [(place, line) for place, line in self._script.lines.items() if place[:1] == (node.id,)]
                self._script.lines |= {(*location, *place[1:]): line for place, line in known}
            return value
        value = _literal(node)
        if value is _NONE:
            self.generic_visit(node)
            return Computed(ast.unparse(node))
        return value


_NONE = object()


def _literal(node: ast.expr) -> Any:
    """The value of a literal, or _NONE."""
    try:
        value = ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return _NONE
    return value if value is None or isinstance(value, str | int | float) else _NONE


def _target(node: ast.expr) -> Location | None:
    """`experiment.config.tuner.class_args['a']` as a location; None: it is something else."""
    if isinstance(node, ast.Name):
        return (node.id,)
    if isinstance(node, ast.Attribute):
        above = _target(node.value)
        return None if above is None else (*above, node.attr)
    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant) and isinstance(node.slice.value, str):
        above = _target(node.value)
        return None if above is None else (*above, node.slice.value)
    return None
