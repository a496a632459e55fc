"""What formats that a runtime of their own runs have in common."""

from __future__ import annotations

import abc
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from modelpress_runner.errors import CompressionError, InvalidSpecError
from modelpress_runner.export.formats.base import TARGET, Format, FreeAxes
from modelpress_runner.export.layout import Layout
from modelpress_runner.export.made import made_of


class RuntimeFormat(Format):
    """Files that are exported with a proof, and opened as mp.load opens them.

    Attributes:
        form_name: what messages call it.
        beside: name of the file that may lie beside the first one.
    """

    needs_example = True
    form_name: ClassVar[str]
    beside: ClassVar[str]

    @abc.abstractmethod
    def need(self) -> None:
        """Raises MissingRuntimeError unless its packages are installed."""

    @abc.abstractmethod
    def export(self, model: nn.Module, example: Any, path: Path, free: FreeAxes | None) -> None:
        """Writes its files; raises NotPortableError."""

    def check(self, layout: Layout | None, path: str = TARGET) -> None:
        """Its packages are installed."""
        from modelpress_runner.serving.errors import MissingRuntimeError

        try:
            self.need()
        except MissingRuntimeError as error:
            raise InvalidSpecError(str(error), path) from error

    def write(
        self, model: nn.Module, example: Any, path: Path, layout: Layout | None, free: FreeAxes | None = None
    ) -> Path | None:
        """Exports it, with its proof, or takes what its runtime's own tools made of it."""
        made = made_of(model, self.name)
        if made is not None:
            made.copy_to(path, model)
            return path
        from modelpress_runner.export.pt2.equivalence import NotPortableError

        try:
            self.export(model, example, path, free)
        except NotPortableError as error:
            raise CompressionError(
                f"the model has no form in {self.form_name} ({error.reason}); make it exportable, or take another "
                "format",
                TARGET,
            ) from error
        return path

    def open(self, model: nn.Module, path: Path | None, layout: Layout | None) -> nn.Module:
        """As mp.load opens it."""
        from modelpress_runner.export.runtime_module import RuntimeModule

        assert path is not None
        return RuntimeModule(path)

    def size(self, model: nn.Module, path: Path | None) -> int:
        """That of its files."""
        assert path is not None
        return sum(each.stat().st_size for each in self.files(path))

    def parts(self, path: Path) -> list[Path]:
        """The file itself, and its tensors beside it."""
        return [path, path.with_name(self.beside)]
