"""The module in memory, and the same compiled."""

from __future__ import annotations

import inspect
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn

from modelpress_runner.errors import InvalidSpecError
from modelpress_runner.export.formats.base import TARGET, Format, FreeAxes
from modelpress_runner.export.layout import Layout
from modelpress_runner.export.weights import safetensors_bytes

# torch.compile counts compilations by function: behind eight modules of one class (nn.Sequential, say) it would run the
# next one as it is, and that would be timed.
_ALONE: dict[str, Any] = (
    {"isolate_recompiles": True} if "isolate_recompiles" in inspect.signature(torch.compile).parameters else {}
)


class Eager(Format):
    """The module itself."""

    name = "eager"
    measured = "the module in memory (its size: model.safetensors)"

    def write(
        self, model: nn.Module, example: Any, path: Path, layout: Layout | None, free: FreeAxes | None = None
    ) -> Path | None:
        """Nothing is written."""
        return None

    def open(self, model: nn.Module, path: Path | None, layout: Layout | None) -> nn.Module:
        """The module."""
        return model

    def size(self, model: nn.Module, path: Path | None) -> int:
        """That of model.safetensors."""
        return safetensors_bytes(model)


class Compiled(Eager):
    """The module under torch.compile: what it costs where somebody compiles it."""

    name = "compiled"
    measured = "the module under torch.compile (its size: model.safetensors)"

    def check(self, layout: Layout | None, path: str = TARGET) -> None:
        """On a CPU torch.compile writes C++ and calls a compiler."""
        if not torch.cuda.is_available() and not any(map(shutil.which, (os.environ.get("CXX", "g++"), "clang++"))):
            raise InvalidSpecError(
                "torch.compile needs a C++ compiler on this machine, and there is none; install g++, set CXX, or use "
                "eager or pt2",
                path,
            )

    def open(self, model: nn.Module, path: Path | None, layout: Layout | None) -> nn.Module:
        """Compiled with its first call, for each shape that it is called with; the module itself stays as it is."""
        compiled = torch.compile(model, **_ALONE)
        assert isinstance(compiled, nn.Module)
        return compiled

    def loading(self) -> str:
        """It is compiled where it runs."""
        return (
            "It was measured compiled. Do the same with the module:\n\n"
            "```python\nimport torch\n\nmodel = torch.compile(mp.load(uri, into=build_model()))\n```"
        )
