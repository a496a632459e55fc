"""What integration tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from warm_processes import WarmProcesses


@pytest.fixture(scope="session")
def runners() -> Iterator[WarmProcesses]:
    """Runners that have torch imported already; they are processes of their own."""
    with WarmProcesses("runner") as warm:
        yield warm


@pytest.fixture(scope="session")
def operators() -> Iterator[WarmProcesses]:
    """Operators that have their libraries imported already."""
    with WarmProcesses("operator") as warm:
        yield warm
