"""The program: what torch.export makes of a module, opened without its code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from modelpress.store import layout as names
from modelpress_runner.errors import CompressionError
from modelpress_runner.export.formats.base import Format, FreeAxes
from modelpress_runner.export.layout import Layout


class Pt2(Format):
    """model.pt2."""

    name = "pt2"
    measured = "the program, model.pt2"
    needs_example = True
    file = names.PROGRAM
    exported = "pt2"

    def write(
        self, model: nn.Module, example: Any, path: Path, layout: Layout | None, free: FreeAxes | None = None
    ) -> Path | None:
        """Exports it."""
        from modelpress_runner.export.pt2.equivalence import NotPortableError
        from modelpress_runner.export.pt2.program import export_program

        try:
            export_program(model, example, path, free)
        except NotPortableError as error:
            raise CompressionError(
                f"the model does not export ({error.reason}); make it exportable, or measure it with eager",
                "spec.target.format",
            ) from error
        return path

    def open(self, model: nn.Module, path: Path | None, layout: Layout | None) -> nn.Module:
        """The program, as mp.load opens it."""
        from modelpress_runner.export.pt2.program import describe, open_program

        assert path is not None
        written = describe(path)  # right before, of the user's own model
        return open_program(path, written.operators, written.calls)

    def size(self, model: nn.Module, path: Path | None) -> int:
        """That of model.pt2."""
        assert path is not None
        return path.stat().st_size
