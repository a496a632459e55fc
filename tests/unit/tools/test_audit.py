"""The audit of the locks finds what a lock must not have, and the project's own have nothing of it."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]
AUDIT: dict[str, Any] = runpy.run_path(str(ROOT / "tools" / "audit.py"))
HASH = "--hash=sha256:" + "0" * 64


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("a==1.0", "has no sha256"),
        ("a==1.0 --hash=md5:00", "has no sha256"),
        (f"a>=1.0 {HASH}", "is not pinned"),
        (f"a==1.* {HASH}", "is not pinned"),
        (f"a {HASH}", "is not pinned"),
        (f"a @ https://example.com/a.whl {HASH}", "is not pinned"),
        ("--index-url https://example.com/simple", "the option --index-url"),
        (f"b==2.0 {HASH}", "b is 2.0, in first.txt 1.0"),
        (f"c==1.0 {HASH}", "c 1.0 is not >=2, as dependencies of pyproject.toml says"),
    ],
)
def test_what_is_found(entry: str, said: str) -> None:
    """One finding for each."""
    locks = {"first.txt": f"b==1.0 \\\n    {HASH}\n", "second.txt": f"{entry}\n"}
    (found,) = AUDIT["findings"](locks, {"dependencies": ["c>=2"]})
    assert said in found


def test_the_projects_locks_are_sound() -> None:
    """All of them, those of the tools that install and build included."""
    assert {"uv.txt", "build.txt", "dev.txt", "operator.txt", "runner.txt"} <= {
        path.name for path in (ROOT / "requirements").glob("*.txt")
    }
    assert AUDIT["main"]() == 0
