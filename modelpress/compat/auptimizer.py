"""What Auptimizer's training scripts use of `aup`: `from modelpress.compat import auptimizer as aup`.

create_compressor, BasicConfig, print_result, aup_args and aup_save_model; see docs/guides/migrate.md.
"""

from __future__ import annotations

import importlib
import types
from typing import Any

_MODULE = "modelpress_runner.in_process.auptimizer"
_NAMES = ("BasicConfig", "Compressor", "aup_args", "aup_save_model", "create_compressor", "print_result")

__all__ = list(_NAMES)


def __getattr__(name: str) -> Any:
    if name == "compression":
        return types.SimpleNamespace(create_compressor=__getattr__("create_compressor"))
    if name not in _NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(_MODULE), name)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] in ("modelpress", "modelpress_runner"):
            raise
        message = (
            f"{__name__}.{name} needs the package {error.name!r}; install it with: pip install 'modelpress[runner]'"
        )
        raise ImportError(message) from error
