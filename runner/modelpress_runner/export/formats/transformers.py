"""The folder of save_pretrained, of models that came from there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from modelpress_runner.errors import CompressionError, InvalidSpecError
from modelpress_runner.export.formats.base import TARGET, Format, FreeAxes
from modelpress_runner.export.layout import Layout, LayoutError


class Transformers(Format):
    """The model as from_pretrained reads it."""

    name = "transformers"
    extra = "transformers"
    measured = "the model as transformers reads the folder transformers (its size: model.safetensors there)"
    needs_example = True

    def check(self, layout: Layout | None, path: str = TARGET) -> None:
        """Only a model that came in this layout can be written in it."""
        if layout is None or layout.name != self.name:
            message = "only a model that is given as huggingFace has this form; use eager or pt2"
            raise InvalidSpecError(message, path)

    def write(
        self, model: nn.Module, example: Any, path: Path, layout: Layout | None, free: FreeAxes | None = None
    ) -> Path | None:
        """As the layout does, with its proof."""
        assert layout is not None
        try:
            layout.write(model, example, path)
        except LayoutError as error:
            message = f"the model cannot be measured as {self.name} has it: {error}; use eager or pt2"
            raise CompressionError(message, "spec.target.format") from error
        return path

    def open(self, model: nn.Module, path: Path | None, layout: Layout | None) -> nn.Module:
        """As the layout does."""
        assert layout is not None
        assert path is not None
        return layout.open(path)

    def size(self, model: nn.Module, path: Path | None) -> int:
        """That of its safetensors files."""
        assert path is not None
        return sum(each.stat().st_size for each in path.glob("*.safetensors"))

    def loading(self) -> str:
        """With its own library."""
        return (
            "As a transformers model, from the folder `transformers` beside this file. It was read back when it was "
            "written, and gave the same outputs:\n\n"
            "```python\nfrom transformers import AutoModel  # or the class of its task\n\n"
            'model = AutoModel.from_pretrained("transformers")\n```'
        )
