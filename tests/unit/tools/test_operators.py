"""The tool that makes the list of operators sees what honest models call."""

from __future__ import annotations

import itertools
import runpy
from pathlib import Path
from typing import Any

from modelpress_runner.export.pt2 import callees

ROOT = Path(__file__).resolve().parents[3]


def test_what_the_zoo_calls_is_in_the_list() -> None:
    """The first model's operators are found, in its form for eval, and each stands in the list."""
    tool: dict[str, Any] = runpy.run_path(str(ROOT / "tools" / "operators.py"))
    found = set(itertools.islice(tool["zoo"](), 28))
    assert {"aten.relu.default", "aten.sigmoid.default", "aten.mish.default"} <= found <= callees.listed()
