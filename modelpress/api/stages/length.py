"""The length of a training: epochs or maxSteps of a block that may have either."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from modelpress.api.errors import Problem

_UNITS = {"epochs": "epoch", "maxSteps": "step"}


class Lasting(Protocol):
    """A block that may say how long it trains."""

    @property
    def epochs(self) -> int | None:
        """Passes over the training data."""

    @property
    def max_steps(self) -> int | None:
        """Steps of the optimizer."""


def needed(block: Lasting, path: str) -> Iterator[Problem]:
    """There must be a length."""
    if block.epochs is None and block.max_steps is None:
        yield Problem(path, "nothing says how long to train", "add epochs or maxSteps")


def refused(block: Lasting, path: str, why: str) -> Iterator[Problem]:
    """There must be none."""
    for alias, value in (("epochs", block.epochs), ("maxSteps", block.max_steps)):
        if value is not None:
            yield Problem(f"{path}.{alias}", why, "remove it")


def in_words(block: Mapping[str, Any]) -> str:
    """` for 3 epochs`, of a block as plain data; "" where it has no length."""
    number, noun = next(((block[key], noun) for key, noun in _UNITS.items() if block.get(key)), (0, ""))
    return f" for {number} {noun}{'' if number == 1 else 's'}" if number else ""
