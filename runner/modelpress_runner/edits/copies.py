"""Copies of models that are whole: nothing in them may still run the original's code on the original's weights.

copy.deepcopy copies modules, tensors and bound methods, but functions stay the objects that they are. A function that a
module keeps (a `forward` that was put on it, a lambda over `self`, a hook) and that holds the model, or a part of it,
goes on with the original's.
"""

from __future__ import annotations

import copy
import functools
import types
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from modelpress_runner.edits.computed import all_computed
from modelpress_runner.errors import InvalidModelError

_MOST = 20_000  # objects looked at behind one attribute


def copied(model: nn.Module, path: str | None = None) -> nn.Module:
    """A deep copy of the model, on weights of its own.

    Args:
        model: stays as it is.
        path: field of the spec for messages.

    Raises:
        InvalidModelError: it cannot be copied, or its copy would run the original.
    """
    check_copies(model, path)
    try:
        return copy.deepcopy(model)
    except Exception as error:
        found = all_computed(model)
        if found:
            more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
            raise InvalidModelError(f"the model cannot be copied: {found[0]}{more}", path) from error
        raise InvalidModelError(
            f"the model cannot be copied ({type(error).__name__}: {error}); a tensor attribute that is the result of a "
            "computation must be a buffer or be detached",
            path,
        ) from error


def check_copies(model: nn.Module, path: str | None = None) -> None:
    """Raises InvalidModelError if a copy of `model` would run the original's code on the original's weights."""
    parts = {id(module): name for name, module in model.named_modules()}
    parts |= {id(tensor): name for name, tensor in model.named_parameters()}
    parts |= {id(tensor): name for name, tensor in model.named_buffers()}
    for name, module in model.named_modules():
        for attribute, value in _own(module):
            held = _held(value, parts)
            if held is not None:
                function, part = held
                where = f"'{name}.{attribute}'" if name else f"the attribute '{attribute}' of the model"
                kept = f"'{part}'" if part else "the model itself"
                raise InvalidModelError(
                    f"a copy of the model would run the original's weights: {where} keeps the function {function}, "
                    f"which holds {kept}; make it a method of the class, or give the model as it was before something "
                    "was put on it",
                    path,
                )


def _own(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """What a module keeps beside its parts: its attributes, and its hooks one by one."""
    for attribute, value in vars(module).items():
        if attribute in ("_parameters", "_buffers", "_modules", "_compiled_call_impl"):
            continue
        if attribute.startswith("_") and "hooks" in attribute and isinstance(value, dict):
            yield from ((attribute.strip("_").removesuffix("s"), hook) for hook in value.values())
        else:
            yield attribute, value


def _held(value: Any, parts: Mapping[int, str]) -> tuple[str, str] | None:
    """The first function behind `value` that holds a part of the model, with the part's name."""
    seen: set[int] = set()
    todo: list[tuple[Any, str]] = [(value, "")]  # with the function on the way
    while todo and len(seen) < _MOST:
        item, function = todo.pop()
        if id(item) in parts and function:
            return function, parts[id(item)]
        if id(item) in seen or isinstance(item, nn.Module | torch.Tensor | type | types.ModuleType):
            continue
        seen.add(id(item))
        if isinstance(item, types.FunctionType):
            todo += [(inner, _name(item)) for inner in _captured(item)]
        elif isinstance(item, types.MethodType):
            # deepcopy copies the object of a bound method; behind a function it stays.
            todo += [(item.__self__, function), (item.__func__, function)]
        elif isinstance(item, functools.partial):
            todo += [(item.func, function), *((each, function) for each in (*item.args, *item.keywords.values()))]
        elif isinstance(item, Mapping):
            todo += [(each, function) for each in item.values()]
        elif isinstance(item, list | tuple | set | frozenset):
            todo += [(each, function) for each in item]
    return None


def _captured(function: types.FunctionType) -> Iterator[Any]:
    """What a function reads from around it: its closure, its defaults, and the globals that its code names."""
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not filled yet
            continue
    yield from function.__defaults__ or ()
    yield from (function.__kwdefaults__ or {}).values()
    for name in _names(function.__code__):
        if name in function.__globals__:
            yield function.__globals__[name]


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _name(function: types.FunctionType) -> str:
    where = function.__code__
    return f"{function.__qualname__} ({where.co_filename.rsplit('/', 1)[-1]}:{where.co_firstlineno})"
