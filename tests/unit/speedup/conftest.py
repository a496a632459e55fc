"""The models under test lie in a module of their own, so that a child process can import them too."""

from __future__ import annotations

import sys
from pathlib import Path

FOLDER = str(Path(__file__).parent.parent / "speedup")
if FOLDER not in sys.path:
    sys.path.insert(0, FOLDER)
