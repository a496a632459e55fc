"""Silence around torch's exporter."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """The exporter warns and logs about what this module checks itself; its errors carry all that matters."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        # It also prints the graph of a model that it cannot export.
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
