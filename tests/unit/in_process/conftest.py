"""A loop of the user's own, as a fixture."""

from __future__ import annotations

import pytest
from own_loop import Task


@pytest.fixture
def task() -> Task:
    return Task()
