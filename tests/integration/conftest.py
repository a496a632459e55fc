"""What integration tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from warm_runner import WarmRunner


@pytest.fixture(scope="session")
def runners() -> Iterator[WarmRunner]:
    """Runners that have torch imported already; they are processes of their own."""
    with WarmRunner() as warm:
        yield warm
