"""The in-memory client keeps the contract that the real one is held to."""

from __future__ import annotations

import pytest

from modelpress_operator.memory import MemoryClient
from modelpress_operator.testing import ClusterClientContract


class TestMemoryClient(ClusterClientContract):
    """See the contract."""

    @pytest.fixture
    def client(self) -> MemoryClient:
        """A server of its own for each test."""
        return MemoryClient()

    @pytest.fixture
    def namespace(self) -> str:
        """Any."""
        return "team-a"
