"""A process that ends with the one that started it."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys

from modelpress.result import ExitCode

log = logging.getLogger("modelpress")
_PR_SET_PDEATHSIG = 1


def die_with(parent: int) -> None:
    """SIGKILL for this process when the process that started it ends (Linux); at once if it has ended already."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        log.error("the process %d that started this run has ended", parent)
        sys.exit(int(ExitCode.TERMINATED))
