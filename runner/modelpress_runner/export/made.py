"""A file of a runtime that was made of a model already, by the runtime's own tools: kept until somebody wants it."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from pathlib import Path
from typing import Any

from torch import nn

from modelpress_runner.errors import CompressionError
from modelpress_runner.export.state import state_digest

_ATTRIBUTE = "_modelpress_made"


class Made:
    """The files of one format; they go with this object.

    Attributes:
        format: its name in `target.format`.
        folder: where they lie.
        files: their names.
    """

    def __init__(self, format: str) -> None:
        self.format = format
        self.folder = Path(tempfile.mkdtemp(prefix="modelpress-made-"))
        weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)
        self._digest = ""

    @property
    def files(self) -> list[Path]:
        """In order of their names."""
        return sorted(self.folder.iterdir())

    def attach(self, model: nn.Module) -> None:
        """They are what this model is in that format, as long as it stays as it is."""
        self._digest = state_digest(model)
        object.__setattr__(model, _ATTRIBUTE, self)

    def copy_to(self, path: Path, model: nn.Module) -> None:
        """Copies them into the folder of `path`.

        Raises:
            CompressionError: the model is another one by now.
        """
        if state_digest(model) != self._digest:
            raise CompressionError(
                f"the model was changed behind the stage in which {self.format} quantized it; let that stage be the "
                "last"
            )
        for file in self.files:
            shutil.copyfile(file, path.with_name(file.name))

    def __deepcopy__(self, memo: dict[int, Any]) -> Made:
        return self  # of a copy the files are the same


def made_of(model: nn.Module, format: str) -> Made | None:
    """What is there of a model in a format; None: nothing."""
    found = model.__dict__.get(_ATTRIBUTE)
    return found if isinstance(found, Made) and found.format == format else None
