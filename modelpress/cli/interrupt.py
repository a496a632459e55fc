"""Ctrl-C while the program is still being loaded: nothing has begun, so it ends at once, and quietly."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

INTERRUPTED = 130


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Inside, SIGINT ends the process with exit code 130. For imports only: nothing is cleaned up."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield  # ignored, as by nohup, or somebody else's
        return
    signal.signal(signal.SIGINT, lambda number, frame: os._exit(INTERRUPTED))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
