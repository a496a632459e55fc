"""modelpress: Kubernetes-native model compression.

Importing this package is cheap (under 0.5 s) and loads none of torch, kopf, kubernetes or optuna. What needs torch is
loaded when it is first used and comes with `pip install 'modelpress[runner]'`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ._version import __version__

# public name -> (module, extra that brings it)
_LAZY = {
    "TorchEvaluator": ("modelpress_runner.evaluators.torch_evaluator", "runner"),
    "LightningEvaluator": ("modelpress_runner.evaluators.lightning.evaluator", "lightning"),
    "DeepspeedTorchEvaluator": ("modelpress_runner.evaluators.deepspeed.evaluator", "deepspeed"),
    "TransformersEvaluator": ("modelpress_runner.evaluators.transformers.evaluator", "transformers"),
    "CompressionModule": ("modelpress_runner.subject.compression_module", "runner"),
    "Subject": ("modelpress_runner.subject.subject", "runner"),
    "trace": ("modelpress_runner.evaluators.trace", "runner"),
    "compress": ("modelpress_runner.in_process.compress", "runner"),
    "CompressionResult": ("modelpress_runner.in_process.compress", "runner"),
    "prepare_compression": ("modelpress_runner.in_process.prepare", "runner"),
    "layers": ("modelpress_runner.analysis.layers", "runner"),
    "channel_dependency": ("modelpress_runner.analysis.channels", "runner"),
    "sensitivity": ("modelpress_runner.analysis.sensitivity", "runner"),
    "report": ("modelpress_runner.in_process.reporting", "runner"),
    "RuntimeModule": ("modelpress_runner.export.runtime_module", "runner"),
    "load": ("modelpress_runner.artifact.load", "runner"),
    "run": ("modelpress.local", ""),
    "Experiment": ("modelpress.experiment", ""),
    "SearchSpace": ("modelpress.experiment", ""),
}

__all__ = ["__version__", *sorted(_LAZY)]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'modelpress' has no attribute {name!r}")
    module, extra = _LAZY[name]
    try:
        value = getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        if not extra or (error.name or "").split(".")[0] in ("modelpress", "modelpress_runner"):
            raise
        raise ImportError(
            f"modelpress.{name} needs the package {error.name!r}; install it with: pip install 'modelpress[{extra}]'"
        ) from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})


if TYPE_CHECKING:  # for editors and type checkers only
    from modelpress.experiment import Experiment as Experiment
    from modelpress.experiment import SearchSpace as SearchSpace
    from modelpress.local import run as run
    from modelpress_runner.analysis.channels import channel_dependency as channel_dependency
    from modelpress_runner.analysis.layers import layers as layers
    from modelpress_runner.analysis.sensitivity import sensitivity as sensitivity
    from modelpress_runner.artifact.load import load as load
    from modelpress_runner.evaluators.deepspeed.evaluator import DeepspeedTorchEvaluator as DeepspeedTorchEvaluator
    from modelpress_runner.evaluators.lightning.evaluator import LightningEvaluator as LightningEvaluator
    from modelpress_runner.evaluators.torch_evaluator import TorchEvaluator as TorchEvaluator
    from modelpress_runner.evaluators.trace import trace as trace
    from modelpress_runner.evaluators.transformers.evaluator import TransformersEvaluator as TransformersEvaluator
    from modelpress_runner.export.runtime_module import RuntimeModule as RuntimeModule
    from modelpress_runner.in_process.compress import CompressionResult as CompressionResult
    from modelpress_runner.in_process.compress import compress as compress
    from modelpress_runner.in_process.prepare import prepare_compression as prepare_compression
    from modelpress_runner.in_process.reporting import report as report
    from modelpress_runner.subject.compression_module import CompressionModule as CompressionModule
    from modelpress_runner.subject.subject import Subject as Subject
