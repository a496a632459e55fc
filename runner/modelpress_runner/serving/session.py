"""A file opened by its runtime: one class for each runtime, found by the file's suffix."""

from __future__ import annotations

import abc
import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np

from modelpress_runner.serving.errors import MissingRuntimeError, RuntimeFileError
from modelpress_runner.serving.signature import Signature

Forms = tuple[tuple[str, np.dtype[Any], tuple[int, ...]], ...]


class Session(abc.ABC):
    """A model in a file, ready to run; arrays in, arrays out.

    Attributes:
        runtime: the package that runs it.
        signature: how it is called.
        threads: how many threads a call uses.
    """

    runtime: ClassVar[str]
    signature: Signature
    threads: int
    _fits: Forms | None = None  # of the last call

    @abc.abstractmethod
    def run(self, feed: Mapping[str, np.ndarray[Any, Any]]) -> Sequence[np.ndarray[Any, Any]]:
        """One call, inputs by their name in the file.

        Raises:
            CallError: they are not what the model takes.
        """

    def _forms(self, feed: Mapping[str, np.ndarray[Any, Any]]) -> tuple[Forms, bool]:
        """Names, types and shapes of a call's inputs, and whether the last call's were the same; else they are checked.

        Raises:
            CallError: they are not what the model takes.
        """
        forms = tuple([(name, value.dtype, value.shape) for name, value in feed.items()])
        again = forms == self._fits
        if not again:
            self.signature.check(feed)
            self._fits = forms
        return forms, again

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """A call as of the module that the file was made from, with arrays instead of tensors."""
        feed = self.signature.feed(args, kwargs, lambda value: isinstance(value, np.ndarray))
        return self.signature.nested(self.run(feed))


def open_session(path: Path, threads: int = 1) -> Session:
    """Opens a file that modelpress wrote: model.onnx by ONNX Runtime, model.xml by OpenVINO.

    Raises:
        MissingRuntimeError: the runtime is not installed.
        RuntimeFileError: it is no such file, or not one that modelpress wrote.
    """
    if path.suffix == ".onnx":
        from modelpress_runner.serving.ort import OrtSession

        return OrtSession(path, threads)
    if path.suffix == ".xml":
        from modelpress_runner.serving.ov import OvSession

        return OvSession(path, threads)
    raise RuntimeFileError(f"{path.name} is no file of a runtime; give one that ends in .onnx or .xml")


def package(name: str, extra: str) -> ModuleType:
    """Imports a package.

    Raises:
        MissingRuntimeError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != name.partition(".")[0]:
            raise
        raise MissingRuntimeError(name.partition(".")[0], extra) from error
