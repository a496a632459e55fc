"""The DeepSpeed configuration of a user, checked before DeepSpeed sees it."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from modelpress.plainjson import json_of
from modelpress_runner.errors import InvalidModelError

_BATCH, _MICRO, _STEPS = "train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"
_ADAM = ("adam", "adamw")
_NEVER = 2**31 - 1


def read(given: Any) -> dict[str, Any]:
    """The configuration as a dict of its own.

    Args:
        given: a dict, or the path of a JSON file.

    Raises:
        InvalidModelError: it is neither, or holds what cannot be.
    """
    if isinstance(given, str | os.PathLike):
        path = Path(given)
        try:
            given = json_of(path.read_bytes())
        except OSError as error:
            raise InvalidModelError(f"deepspeed: {path} cannot be read ({error.strerror}); correct the path") from error
        except ValueError as error:
            raise InvalidModelError(f"deepspeed: {path} is no JSON ({error}); correct the file") from error
    if not isinstance(given, Mapping):
        raise InvalidModelError(
            f"deepspeed is a {type(given).__name__}; give DeepSpeed's configuration, a dict or the path of a JSON file"
        )
    config = copy.deepcopy(dict(given))
    _check_auto(config, "deepspeed")
    for name in (_BATCH, _MICRO, _STEPS):
        value = config.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise InvalidModelError(f"deepspeed.{name} is {value!r}; give an integer from 1")
    if _BATCH not in config and _MICRO not in config:
        raise InvalidModelError(f"deepspeed has neither {_BATCH} nor {_MICRO}; give one of them")
    if stage(config) not in (0, 1, 2, 3):
        raise InvalidModelError(f"deepspeed.zero_optimization.stage is {stage(config)!r}; give 0, 1, 2 or 3")
    for part in ("optimizer", "scheduler"):
        if part in config and (not isinstance(config[part], Mapping) or "type" not in config[part]):
            raise InvalidModelError(f"deepspeed.{part} needs a type, as in {{'type': ..., 'params': {{...}}}}")
    return config


def _check_auto(value: Any, path: str) -> None:
    if isinstance(value, Mapping):
        for name, item in value.items():
            _check_auto(item, f"{path}.{name}")
    elif value == "auto":
        raise InvalidModelError(
            f"{path} is 'auto', which only the Trainer of transformers fills in; give a value, or use a "
            "TransformersEvaluator"
        )


def stage(config: Mapping[str, Any]) -> Any:
    """The ZeRO stage."""
    zero = config.get("zero_optimization", {})
    return zero.get("stage", 0) if isinstance(zero, Mapping) else zero


def for_engine(config: Mapping[str, Any], world: int, own_optimizer: bool) -> dict[str, Any]:
    """What DeepSpeed is given: the configuration with our defaults where it says nothing.

    Args:
        config: from `read`.
        world: number of processes.
        own_optimizer: whether the user gave the optimizer himself.

    Raises:
        InvalidModelError: the batch sizes do not go together.
    """
    out = copy.deepcopy(dict(config))
    batch, micro, steps = out.get(_BATCH), out.get(_MICRO), out.get(_STEPS)
    if batch is not None and micro is not None and batch != micro * (steps or batch // (micro * world)) * world:
        raise InvalidModelError(
            f"deepspeed.{_BATCH} is {batch}, but {_MICRO} {micro} x {_STEPS} {steps or 'a whole number'} x {world} "
            f"processes is not; leave out {_BATCH}, and it follows from the others"
        )
    if batch is not None and micro is None and batch % ((steps or 1) * world):
        raise InvalidModelError(
            f"deepspeed.{_BATCH} is {batch}, which does not divide by {_STEPS} {steps or 1} x {world} processes; "
            f"give {_MICRO} instead"
        )
    out.setdefault("steps_per_print", _NEVER)
    if own_optimizer:
        # It asks whether one knows that an optimizer is not among its own; an evaluator's user has given one.
        out.setdefault("zero_allow_untested_optimizer", True)
        out.setdefault("zero_force_ds_cpu_optimizer", False)
    elif "optimizer" in out and str(out["optimizer"]["type"]).lower() in _ADAM and not torch.cuda.is_available():
        # Its own Adam would have to be compiled first.
        params = out["optimizer"].setdefault("params", {})
        params.setdefault("torch_adam", True)
    return out
