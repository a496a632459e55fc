"""Writes the ConfigMap of each examples/*/code.yaml again from the Python files beside it; the comment above it stays.

Usage: python tools/examples.py [--check]      --check writes nothing, and exits 1 where something would change
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import yaml

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


class _Literal(str):
    """Text that YAML shows as it is, line by line."""


def _show(dumper: yaml.SafeDumper, text: _Literal) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", str(text), style="|")


yaml.SafeDumper.add_representer(_Literal, _show)


def manifest(folder: Path) -> str:
    """What code.yaml of an example's folder should be: its comment, and the code as a ConfigMap <folder>-code."""
    lines = (folder / "code.yaml").read_text().splitlines()
    comment = list(itertools.takewhile(lambda line: line.startswith("#"), lines))
    code = {path.name: _Literal(path.read_text()) for path in sorted(folder.glob("*.py"))}
    config_map = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": f"{folder.name}-code"}, "data": code}
    return "\n".join([*comment, yaml.safe_dump(config_map, sort_keys=False, width=10_000)])


def main() -> int:
    stale = []
    for path in sorted(EXAMPLES.glob("*/code.yaml")):
        wanted = manifest(path.parent)
        if path.read_text() != wanted:
            stale.append(path.relative_to(EXAMPLES.parent))
            if "--check" not in sys.argv[1:]:
                path.write_text(wanted)
    if stale and "--check" in sys.argv[1:]:
        print(f"not up to date: {', '.join(map(str, stale))}; run make crds", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
