"""`python -m modelpress.cli.asked MODULE REQUEST RESULT`: runs the main of a module, and ends quietly by Ctrl-C.

The terminal sends SIGINT to all of its processes, so the one that asked says what is to be said.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from .exits import Exit
from .interrupt import quiet


def main(arguments: Sequence[str]) -> int:
    """Runs `MODULE.main([REQUEST, RESULT])`; its exit code."""
    module, *rest = arguments
    try:
        with quiet():
            run = importlib.import_module(module).main
        return int(run(rest))
    except KeyboardInterrupt:
        return Exit.INTERRUPTED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
