"""The generated parts of docs/reference: field tables from the types, condition and reason tables from reasons.py.

A page holds `<!-- generated: NAME -->` and `<!-- end -->`; what stands between them is replaced.
Run `python -m modelpress.api.reference docs/reference` after changing a type.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from . import crd
from .messages import PATTERNS
from .v1alpha1 import MEASURED, algorithms, backends, reasons

_BLOCK = re.compile(r"(<!-- generated: ([a-z.]+) -->\n).*?(<!-- end -->)", re.DOTALL)
_CONSTANT = re.compile(r'^([A-Z_]+) = "(\w+)"  # (.+)$', re.MULTILINE)
_HEADING = re.compile(r"^# (.+?) -{10,}$", re.MULTILINE)


def refresh(page: str) -> str:
    """The page with its generated parts up to date.

    Raises:
        KeyError: a part has a name that nothing generates.
    """
    return _BLOCK.sub(lambda match: f"{match[1]}\n{_PARTS[match[2]]()}\n{match[3]}", page)


def update(directory: str | Path) -> list[Path]:
    """Bring the pages in a folder up to date; the paths of those that changed."""
    changed = []
    for path in sorted(Path(directory).glob("*.md")):
        old = path.read_text(encoding="utf-8")
        new = refresh(old)
        if new != old:
            path.write_text(new, encoding="utf-8")
            changed.append(path)
    return changed


def fields(schema: dict[str, Any], path: str, leave_out: tuple[str, ...] = ()) -> str:
    """One table for the object at `path`, then one for each object below it.

    Args:
        leave_out: paths that are described elsewhere.
    """
    return "\n".join(_tables(schema, path, leave_out))


def constants(heading: str) -> dict[str, str]:
    """Value -> meaning of the constants in reasons.py under a heading, in their order."""
    source = inspect.getsource(reasons)
    start = next(match.end() for match in _HEADING.finditer(source) if match[1] == heading)
    following = _HEADING.search(source, start)
    section = source[start : following.start() if following else len(source)]
    return {match[2]: match[3] for match in _CONSTANT.finditer(section)}


def _tables(schema: dict[str, Any], path: str, leave_out: tuple[str, ...]) -> Iterator[str]:
    yield f"### `{path}`\n\n{schema.get('description', '')}\n"
    yield "| key | value | default | meaning |\n|---|---|---|---|"
    below: list[tuple[str, dict[str, Any]]] = []
    required = schema.get("required", [])
    for key, node in schema["properties"].items():
        inner, suffix = _inner(node)
        meaning = node.get("description") or inner.get("description", "")
        child = f"{path}.{key}{suffix}"
        if "properties" in inner and child not in leave_out:
            below.append((child, inner))
            meaning += f" See `{child}`."
        cells = (f"`{key}`", _value(node), _default(node, required=key in required), meaning.strip())
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
    for rule in schema.get("x-kubernetes-validations", ()):
        if "oldSelf" not in rule["rule"]:
            yield f"\nRule: {rule['message']}."
    yield ""
    for child, node in below:
        yield from _tables(node, child, leave_out)


def _inner(node: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """What a list or map holds, and how that is written in a path."""
    if node.get("type") == "array":
        return node["items"], "[]"
    if "additionalProperties" in node:
        return node["additionalProperties"], ".*"
    return node, ""


def _value(node: dict[str, Any]) -> str:
    kind = node.get("type")
    if "enum" in node:
        return ", ".join(f"`{value}`" for value in node["enum"])
    if kind == "array":
        return f"list of {_size(node, 'Items')}: {_value(node['items'])}"
    if kind == "object":
        if "additionalProperties" in node:
            return f"map of {_size(node, 'Properties')}: {_value(node['additionalProperties'])}"
        return "object"
    if node.get("x-kubernetes-int-or-string"):
        return f"integer or {_text(node)}"
    if kind is None:
        return "any value" if "maxLength" not in node else "text, number, true or false"
    if kind == "string":
        return _text(node)
    if kind == "boolean":
        return "true or false"
    return f"{kind}{_range(node)}"


def _text(node: dict[str, Any]) -> str:
    if node.get("format") == "date-time":
        return "time"
    words = f": {PATTERNS[node['pattern']][0]}" if "pattern" in node else ""
    return f"text up to {node['maxLength']}{words}" if "maxLength" in node else f"text{words}"


def _size(node: dict[str, Any], noun: str) -> str:
    low, high = node.get(f"min{noun}", 0), node[f"max{noun}"]
    return f"{low} to {high}"


def _range(node: dict[str, Any]) -> str:
    low, high = node.get("minimum"), node.get("maximum")
    parts = []
    if low is not None:
        parts.append(f"{'>' if node.get('exclusiveMinimum') else '≥'} {low}")
    if high is not None:
        parts.append(f"{'<' if node.get('exclusiveMaximum') else '≤'} {high}")
    return f" {', '.join(parts)}" if parts else ""


def _default(node: dict[str, Any], *, required: bool) -> str:
    if required:
        return "**required**"
    if "default" not in node or node["default"] == {}:
        return ""
    return f"`{json.dumps(node['default'])}`"


def _two_columns(head: str, rows: dict[str, str]) -> str:
    lines = [f"| {head} | meaning |", "|---|---|", *(f"| `{key}` | {text} |" for key, text in rows.items())]
    return "\n".join(lines) + "\n"


def _algorithms() -> str:
    """One line for each method."""
    lines = ["| algorithm | scores | needs | types | what it removes |", "|---|---|---|---|---|"]
    for row in algorithms.algorithms("prune"):
        needs = ", ".join(sorted(row.needs)).replace("_", " ") or "-"
        types = ", ".join(f"`{name}`" for name in row.default_types)
        each = {"weight": "single weights", "channel": "output channels"}[row.granularity]
        what = row.described.partition(": ")[2]
        lines.append(f"| `{row.name}` | {each} | {needs} | {types} | {what} |")
    return "\n".join(lines) + "\n"


def _quantizers() -> str:
    """One line for each method."""
    lines = ["| algorithm | targets | bits of weights | needs | what it does |", "|---|---|---|---|---|"]
    for row in algorithms.algorithms("quantize"):
        needs = "training" if row.trains else ", ".join(sorted(row.needs)) or "-"
        low, high = row.bits
        bits = str(low) if low == high else f"{low} to {high}"
        what = row.described.partition(": ")[2]
        lines.append(f"| `{row.name}` | {', '.join(row.targets)} | {bits} | {needs} | {what} |")
    return "\n".join(lines) + "\n"


def _backends() -> str:
    """Which backend takes which method, with which numbers, for which layers, and in which formats the result is."""
    lines = ["| backend | algorithm | weights | inputs | layers | target.format |", "|---|---|---|---|---|---|"]
    for each, row, way in backends.supported():
        weights = f"{_bit_counts(way.weights)}, {' or '.join(way.weight_schemes)}, by {', '.join(way.granularities)}"
        inputs = f"{_bit_counts(way.inputs)}, {' or '.join(way.input_schemes)}" if way.inputs else "-"
        layers = "all" if set(way.layers) == set(row.default_types) else ", ".join(way.layers)
        formats = ", ".join(f"`{name}`" for name in way.formats)
        lines.append(f"| `{each.name}` | `{row.name}` | {weights} | {inputs} | {layers} | {formats} |")
    return "\n".join(lines) + "\n"


def _bit_counts(bits: tuple[int, ...]) -> str:
    whole = bits == tuple(range(bits[0], bits[-1] + 1)) and len(bits) > 2
    return f"{bits[0]} to {bits[-1]} bits" if whole else f"{' or '.join(map(str, bits))} bits"


def _part(kind: Callable[[], dict[str, Any]], part: str, leave_out: tuple[str, ...] = ()) -> Callable[[], str]:
    def render() -> str:
        schema = kind()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
        return fields(schema["properties"][part], part, leave_out)

    return render


_PARTS: dict[str, Callable[[], str]] = {
    "job.spec": _part(crd.job_crd, "spec"),
    "job.status": _part(crd.job_crd, "status", ("status.conditions[]",)),
    "sweep.spec": _part(crd.sweep_crd, "spec", ("spec.template", "spec.constraints[]")),
    "sweep.status": _part(crd.sweep_crd, "status", ("status.conditions[]",)),
    "conditions": lambda: _two_columns("condition", constants("Condition types")),
    "reasons": lambda: _two_columns("reason", constants("Reasons")),
    "algorithms": lambda: _algorithms(),
    "quantizers": lambda: _quantizers(),
    "backends": lambda: _backends(),
    "schedules": lambda: _two_columns(
        "type", {row.name: row.described.partition(": ")[2] for row in algorithms.schedules()}
    ),
    "measured": lambda: _two_columns("metric", {name: f"always {goal}d" for name, goal in MEASURED.items()}),
}


if __name__ == "__main__":
    for changed_page in update(sys.argv[1]):
        print(changed_page)
