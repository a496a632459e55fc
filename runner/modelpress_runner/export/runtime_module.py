"""mp.RuntimeModule: a model in a file of a runtime, called as the module that it was made from."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from modelpress_runner.errors import ArtifactError
from modelpress_runner.serving.session import open_session


class RuntimeModule(nn.Module):
    """A model that ONNX Runtime (or another runtime) computes.

    It takes tensors as the module took them, of any batch size, positional or by name, and returns tensors nested as
    the module returned them, on the CPU. It runs in eval mode only and has no weights to train. Its one parameter is
    empty: it is there for code that asks a model's parameters for their device.

    Args:
        path: of the file.
        threads: of a call; 0: as many as torch uses.

    Raises:
        MissingRuntimeError: the runtime is not installed; the message says how to install it.
        ArtifactError: it is no such file.
    """

    def __init__(self, path: str | Path, threads: int = 0) -> None:
        super().__init__()
        self._path = Path(path)
        self._session = open_session(self._path, threads or torch.get_num_threads())
        self.nothing = nn.Parameter(torch.empty(0), requires_grad=False)
        super().train(False)

    @property
    def runtime(self) -> str:
        """The package that computes it."""
        return self._session.runtime

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the arguments, in order."""
        return tuple(name for name, _, _ in self._session.signature.parameters)

    def train(self, mode: bool = True) -> RuntimeModule:
        """ArtifactError for train(True)."""
        if mode:
            raise ArtifactError(
                f"this model runs in {self.runtime}, for inference only; to train, load the artifact's weights with "
                "mp.load(uri, into=model)"
            )
        super().train(False)
        return self

    @contextlib.contextmanager
    def with_threads(self, threads: int) -> Iterator[None]:
        """Computes with so many threads inside."""
        before = self._session
        if threads != before.threads:
            self._session = open_session(self._path, threads)
        try:
            yield
        finally:
            self._session = before

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the model's forward returned. CallError, a TypeError, if the inputs are not what the model takes."""
        feed = self._session.signature.feed(args, kwargs, lambda value: isinstance(value, torch.Tensor))
        arrays = {name: tensor.detach().cpu().contiguous().numpy() for name, tensor in feed.items()}
        return self._session.signature.nested([torch.from_numpy(each) for each in self._session.run(arrays)])

    def extra_repr(self) -> str:
        return f"{self.runtime}: {self._session.signature.described()}"

    def __deepcopy__(self, memo: dict[int, Any]) -> RuntimeModule:
        return RuntimeModule(self._path, self._session.threads)
