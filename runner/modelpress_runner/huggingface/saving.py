"""What all folders of the transformers library that are written here have in common."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from modelpress_runner.errors import first_line
from modelpress_runner.export.layout import LayoutError


@contextlib.contextmanager
def whole_or_gone(folder: Path) -> Iterator[None]:
    """A folder that is being written: an error leaves none.

    Raises:
        LayoutError: whatever was raised within.
    """
    try:
        yield
    except LayoutError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    except Exception as error:  # whatever transformers makes of a model that it did not expect
        shutil.rmtree(folder, ignore_errors=True)
        raise LayoutError(f"transformers does not write and read it ({first_line(error)})") from error


def save_as(model: Any, config: Any, folder: Path) -> None:
    """Writes a transformers.PreTrainedModel under another configuration; it keeps its own."""
    own, generation = model.config, getattr(model, "generation_config", None)
    model.config = config
    try:
        model.save_pretrained(folder)
    finally:
        model.config = own
        if generation is not None:
            model.generation_config = generation


def without_cache(model: Any) -> Any:
    """The model, which from now on keeps no keys and values of its calls."""
    if getattr(model.config, "use_cache", None):
        model.config.use_cache = False
    return model
