"""What a format is: a form in which a model is scored, timed and kept on disk."""

from __future__ import annotations

import abc
import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from modelpress_runner.export.layout import Layout

FreeAxes = Mapping[str, Mapping[int, str]]  # names of axes that stay free besides the batch, by input and axis
TARGET = "spec.target.format"


@dataclass(frozen=True)
class Form:
    """A model in a format.

    Attributes:
        model: what is called; the very module that was given, where the format is the module itself.
        size: bytes on disk.
        path: the file or folder that it was opened from; None where it never lay on a disk.
    """

    model: nn.Module
    size: int
    path: Path | None = None


class Format(abc.ABC):
    """One form of a model, found by its name in `target.format`.

    Attributes:
        name: as in `target.format`.
        extra: the extra of modelpress that brings what it needs; None: the runner's own packages do.
        measured: for the model card, what was measured: a clause behind "Measured on".
        needs_example: it cannot be made without example inputs.
        file: the name, within the artifact, of what `write` wrote, where an artifact keeps exactly that.
        exported: its name in `export.formats`, where it has one.
    """

    name: ClassVar[str]
    measured: ClassVar[str]
    extra: ClassVar[str | None] = None
    needs_example: ClassVar[bool] = False
    file: ClassVar[str | None] = None
    exported: ClassVar[str | None] = None

    def check(self, layout: Layout | None, path: str = TARGET) -> None:  # noqa: B027
        """Checks, before anything runs, that models can be brought into this format here.

        Args:
            layout: as for `write`.
            path: the field of the spec that asks for it.

        Raises:
            InvalidSpecError: they cannot.
        """

    @abc.abstractmethod
    def write(
        self, model: nn.Module, example: Any, path: Path, layout: Layout | None, free: FreeAxes | None = None
    ) -> Path | None:
        """Writes `model` to `path` or below it.

        Args:
            model: an eager module; it stays as it is.
            example: example inputs, batch first, or None.
            path: is not there yet.
            layout: the library's own layout that the model came in, if it came in one.
            free: axes that stay free besides the batch, where the form is one of fixed shapes.

        Returns:
            `path`, or None where the form is the module in memory.

        Raises:
            CompressionError: this model has no such form; the message says why.
        """

    @abc.abstractmethod
    def open(self, model: nn.Module, path: Path | None, layout: Layout | None) -> nn.Module:
        """What is called, scored and timed: read from `path`, or made of `model` where nothing was written."""

    @abc.abstractmethod
    def size(self, model: nn.Module, path: Path | None) -> int:
        """Bytes on disk of what was written."""

    def parts(self, path: Path) -> list[Path]:
        """The files that what is written to `path` may consist of."""
        return [path]

    def files(self, path: Path) -> list[Path]:
        """The files that make up what was written to `path`."""
        return [each for each in self.parts(path) if each.exists()]

    def loading(self) -> str:
        """For the model card: how a user loads this form, as Markdown; "" where the card's own words do."""
        return ""

    @contextlib.contextmanager
    def form(
        self,
        model: nn.Module,
        example: Any,
        layout: Layout | None = None,
        keep: Path | None = None,
        free: FreeAxes | None = None,
    ) -> Iterator[Form]:
        """`model` in this format, while the context is open.

        Args:
            model: an eager module.
            example: example inputs, or None.
            layout: as for `write`.
            keep: where to leave what is written; None: it goes with the context.
            free: as for `write`.

        Raises:
            CompressionError: as `write`.
        """
        with tempfile.TemporaryDirectory(prefix="modelpress-measure-") as folder:
            path = self.write(model, example, keep or Path(folder) / (self.file or self.name), layout, free)
            yield Form(self.open(model, path, layout), self.size(model, path), path)
