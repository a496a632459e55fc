"""What an edit is: one change of a model that can be written down and made again."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from torch import nn

from modelpress_runner.edits.masks import Masks


class Edit(abc.ABC):
    """A change of a model's structure. A recipe's edits, in their order, make the compressed model's structure of the
    dense one's; checkpoints, shrink.json and mp.load(into=) replay them.

    An edit is immutable plain data: equal edits on equal models give equal models. Weights are not part of it.

    Attributes:
        kind: its name in files.
    """

    kind: ClassVar[str]

    @abc.abstractmethod
    def apply(self, model: nn.Module, masks: Masks | None = None) -> None:
        """Changes `model` in place, and its `masks` alike where they are given.

        Parameters that change are new objects, with their dtype, device and requires_grad, so that optimizers must be
        built again.

        Raises:
            InvalidModelError: the model is not the one that the edit was made for; it may be changed in part.
        """

    @abc.abstractmethod
    def to_plain(self) -> dict[str, Any]:
        """JSON-ready data, without the kind."""

    @classmethod
    @abc.abstractmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Self:
        """The inverse of to_plain.

        Raises:
            ValueError: the data is damaged; the message is a clause that says what it needs.
        """


_KINDS: dict[str, type[Edit]] = {}


def register(kind: type[Edit]) -> type[Edit]:
    """Makes a kind of edit known to files, as a decorator of its class.

    Raises:
        ValueError: there is another kind of this name.
    """
    known = _KINDS.setdefault(kind.kind, kind)
    if known.__qualname__ != kind.__qualname__ or known.__module__ != kind.__module__:
        raise ValueError(
            f"there is a kind of edit called {kind.kind!r} already: {known.__module__}.{known.__qualname__}"
        )
    return kind


def edit_kind(name: str) -> type[Edit]:
    """The kind of this name; KeyError if there is none."""
    return _KINDS[name]
