"""What makes tiny models lies in a module of its own, so that several test files share it."""

from __future__ import annotations

import sys
from pathlib import Path

FOLDER = str(Path(__file__).parent.parent / "huggingface")
if FOLDER not in sys.path:
    sys.path.insert(0, FOLDER)
