"""Another library's own layout of a model, beside the two forms that every artifact has."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from torch import nn


class LayoutError(Exception):
    """A model cannot be written in another library's layout; the message is a clause that says why."""


class Layout(Protocol):
    """Another library's own layout of a model, which an artifact has beside its own two forms."""

    name: str  # of its folder in the artifact
    otherwise: Layout | None  # what may hold a model that this one cannot

    def write(self, model: nn.Module, dummy_input: Any, folder: Path) -> None:
        """Writes `model` into `folder`, which it makes, and proves that it can be read back.

        Raises:
            LayoutError: the layout cannot hold this model; there is no folder then.
        """

    def open(self, folder: Path) -> nn.Module:
        """The model in a folder that `write` wrote."""
