"""Writes what is generated in the chart: its copy of crds/, and the table of values in its README.

Usage: python tools/chart.py [--check]      --check writes nothing and exits with 1 where something is out of date.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
CHART = ROOT / "helm" / "modelpress"
BEGIN, END = "<!-- values: written by tools/chart.py -->", "<!-- end of values -->"


def descriptions(text: str) -> dict[str, str]:
    """The comments `# -- ...` of values.yaml by the dotted path of the key that each stands above."""
    found: dict[str, str] = {}
    stack: list[tuple[int, str]] = []
    comment = ""
    for line in text.splitlines():
        stripped = line.strip()
        if stripped.startswith("# -- "):
            comment = stripped[5:]
            continue
        key, colon, _ = stripped.partition(":")
        if not colon or stripped.startswith(("#", "-")):
            continue
        indent = len(line) - len(line.lstrip())
        while stack and stack[-1][0] >= indent:
            stack.pop()
        stack.append((indent, key))
        if comment:
            found[".".join(name for _, name in stack)] = comment
            comment = ""
    return found


def leaves(values: dict[str, Any], known: dict[str, str], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(path, default) of every value; a mapping with a description of its own is one value."""
    for key, value in values.items():
        path = f"{prefix}{key}"
        if isinstance(value, dict) and path not in known:
            yield from leaves(value, known, f"{path}.")
        else:
            yield path, value


def table() -> str:
    """The values as a table in Markdown.

    Raises:
        KeyError: a value has no description.
    """
    text = (CHART / "values.yaml").read_text()
    known = descriptions(text)
    rows = ["| Value | Default | Meaning |", "|---|---|---|"]
    for path, default in leaves(yaml.safe_load(text), known):
        rows.append(f"| `{path}` | `{json.dumps(default)}` | {known[path]} |")
    return "\n".join(rows)


def wanted() -> dict[Path, str]:
    """Every generated file with the text that it should have."""
    files = {CHART / "files" / "crds" / crd.name: crd.read_text() for crd in sorted((ROOT / "crds").glob("*.yaml"))}
    readme = CHART / "README.md"
    before, _, rest = readme.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    return {**files, readme: f"{before}{BEGIN}\n{table()}\n{END}{after}"}


def main(arguments: list[str]) -> int:
    """Write, or check."""
    files = wanted()
    stale = [path for path, text in files.items() if not path.exists() or path.read_text() != text]
    stale += [path for path in (CHART / "files" / "crds").iterdir() if path not in files]
    if "--check" in arguments:
        for path in stale:
            print(f"{path.relative_to(ROOT)}: out of date; run python tools/chart.py", file=sys.stderr)
        return 1 if stale else 0
    for path in stale:
        if path in files:
            path.write_text(files[path])
        else:
            path.unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
