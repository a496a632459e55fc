"""Random number generators of the user's own, as in DataLoader(..., generator=g), found behind his functions.

Scalers of gradients (torch.amp.GradScaler) are found with them: they too carry a state from step to step.

A run that goes on from a checkpoint calls the entrypoint again, which makes such generators afresh. They are found by
the same way in the same code, so their state can be saved and set under the name of that way.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import random
import sys
import types
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from modelpress_runner.usercode.calling import is_library_file

_MOST_DEPTH = 6
_MOST_ITEMS = 64
_MOST_OBJECTS = 10_000
_Kinds = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random, torch.amp.GradScaler)
_LEAVES = (str, bytes, int, float, complex, type(None), torch.Tensor, np.ndarray, nn.Module, types.ModuleType, type)
_SCALARS = frozenset({str, bytes, bool, int, float, complex, type(None), torch.Tensor, np.ndarray})  # lists are full of
_OURS = frozenset({"modelpress", "modelpress_runner"})


def save(roots: Mapping[str, Any]) -> dict[str, Any]:
    """States of all generators behind `roots`, by the way to them; tensors and plain data only."""
    return {path: state_of(generator) for path, generator in walk(roots)}


def restore(roots: Mapping[str, Any], states: Mapping[str, Any]) -> list[str]:
    """Sets generators to saved states; the ways of those that are no longer there, or of another kind."""
    found = dict(walk(roots))
    missing = []
    for path, state in states.items():
        if path not in found or type(found[path]).__name__ != state["kind"]:
            missing.append(path)
        else:
            set_state(found[path], state["state"])
    return missing


@contextlib.contextmanager
def aside(roots: Mapping[str, Any]) -> Iterator[None]:
    """What runs inside leaves all generators behind `roots` as they were."""
    states = save(roots)
    try:
        yield
    finally:
        restore(roots, states)


def state_of(generator: Any) -> dict[str, Any]:
    kind = type(generator).__name__
    if isinstance(generator, torch.Generator):
        return {"kind": kind, "state": generator.get_state()}
    if isinstance(generator, np.random.Generator):
        return {"kind": kind, "state": _plain(generator.bit_generator.state)}
    if isinstance(generator, np.random.RandomState):
        return {"kind": kind, "state": _plain(generator.get_state(legacy=False))}
    if isinstance(generator, torch.amp.GradScaler):
        return {"kind": kind, "state": generator.state_dict()}
    version, numbers, gauss = generator.getstate()
    return {"kind": kind, "state": [version, list(numbers), gauss]}


def set_state(generator: Any, state: Any) -> None:
    if isinstance(generator, torch.Generator):
        generator.set_state(state)
    elif isinstance(generator, np.random.Generator):
        generator.bit_generator.state = _numpy(state)
    elif isinstance(generator, np.random.RandomState):
        generator.set_state(_numpy(state))
    elif isinstance(generator, torch.amp.GradScaler):
        if state:  # that of one which is not enabled is empty
            generator.load_state_dict(state)
            # What it noted of a step that was broken off in the middle must not meet the next optimizer.
            generator._per_optimizer_states.clear()
    else:
        version, numbers, gauss = state
        generator.setstate((version, tuple(numbers), gauss))


def _plain(value: Any) -> Any:
    """NumPy's state without NumPy's types: an array becomes [type, numbers]; integers may have 128 bits."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return ["array", value.dtype.str, [int(item) for item in value]]
    return value.item() if isinstance(value, np.generic) else value


def _numpy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _numpy(item) for key, item in value.items()}
    if isinstance(value, list):
        return np.array(value[2], dtype=value[1])
    return value


def walk(roots: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """All generators behind `roots` in a fixed order, each once."""
    seen: set[int] = set()
    pending = collections.deque((name, value, 0) for name, value in roots.items())
    while pending and len(seen) < _MOST_OBJECTS:
        path, value, depth = pending.popleft()
        if id(value) in seen or depth > _MOST_DEPTH:
            continue
        seen.add(id(value))
        if isinstance(value, _Kinds):
            if value is not getattr(random, "_inst", None):
                yield path, value
            continue
        pending.extend(
            (f"{path}.{name}", item, depth + 1) for name, item in _parts(value) if type(item) not in _SCALARS
        )


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, type) and not _is_library(value.__module__):
        yield from ((name, item) for name, item in vars(value).items() if not name.startswith("__"))
    elif isinstance(value, staticmethod | classmethod):
        yield "function", value.__func__
    elif isinstance(value, types.FunctionType):
        if not _is_library(value.__module__):
            yield from _captured(value)
    elif isinstance(value, types.MethodType):
        yield "self", value.__self__
        yield "function", value.__func__
    elif isinstance(value, functools.partial):
        yield from (("func", value.func), ("args", value.args), ("keywords", value.keywords))
    elif isinstance(value, _LEAVES):
        return
    elif isinstance(value, dict):
        yield from ((str(key), item) for key, item in list(value.items())[:_MOST_ITEMS] if isinstance(key, str | int))
    elif isinstance(value, list | tuple):
        yield from ((str(index), item) for index, item in enumerate(value[:_MOST_ITEMS]))
    elif _is_worth_looking_into(value):
        yield from list(vars(value).items())[:_MOST_ITEMS]


def _captured(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """What a function can reach: its closure, the globals that it names, its defaults."""
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield name, cell.cell_contents
        except ValueError:  # not filled yet
            continue
    for name in _names(function.__code__):
        if name in function.__globals__:
            yield name, function.__globals__[name]
    yield "defaults", function.__defaults__ or ()
    yield "kwdefaults", function.__kwdefaults__ or {}


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _is_worth_looking_into(value: Any) -> bool:
    """Objects of the user's classes, and what feeds training with data."""
    if not hasattr(value, "__dict__"):
        return False
    return not _is_library(type(value).__module__) or isinstance(
        value, torch.utils.data.DataLoader | torch.utils.data.Sampler | torch.utils.data.Dataset
    )


def _is_library(module: str | None) -> bool:
    top = (module or "").partition(".")[0]
    if top in _OURS or top in sys.builtin_module_names:
        return True
    file = getattr(sys.modules.get(module or ""), "__file__", None)
    return file is not None and is_library_file(file)
