"""Recorded constructor calls, so that an optimizer or scheduler can be built again for a changed model.

`trace(torch.optim.SGD)(model.parameters(), lr=0.1)` gives a real SGD and remembers the call beside it (not in it: the
state_dict of a scheduler holds its whole `__dict__`). `Plan.of` turns calls into plans in which parameters are names;
`Plan.build` makes the objects again from the parameters that bear these names in another model.
"""

from __future__ import annotations

import functools
import itertools
import sys
import types
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import nn

from modelpress_runner.edits.bypass import Bypassed
from modelpress_runner.edits.entries import shortened
from modelpress_runner.errors import CompressionError, InvalidModelError

_ITERATORS: tuple[type[Iterable[Any]], ...] = (
    types.GeneratorType,
    map,
    filter,
    zip,
    itertools.chain,
    itertools.islice,
    type({}.keys()),
    type({}.values()),
    type({}.items()),
)


@dataclass(frozen=True)
class RecordedCall:
    """One recorded call. Arguments are copies of the user's containers; generators have become lists."""

    factory: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def name(self) -> str:
        """What was called, as a person would write it."""
        return getattr(self.factory, "__name__", repr(self.factory))


_calls: weakref.WeakKeyDictionary[Any, RecordedCall] = weakref.WeakKeyDictionary()


class Traced:
    """A class or function whose calls are recorded. Everything else behaves as the wrapped one."""

    def __init__(self, factory: Callable[..., Any]) -> None:
        self.__wrapped__ = factory
        self.__doc__ = factory.__doc__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # An optimizer writes its defaults into the dicts of parameter groups that it is given: record other copies.
        args, kwargs = _materialise(args), _materialise(kwargs)
        call = _call(self.__wrapped__, args, kwargs)
        made = self.__wrapped__(*args, **kwargs)
        try:
            _calls[made] = call
        except TypeError:
            raise TypeError(
                f"mp.trace({call.name}) gave a {type(made).__name__}, which cannot be traced; trace what makes an "
                "optimizer, a scheduler or another object of its own class"
            ) from None
        return made

    def __getattr__(self, name: str) -> Any:
        if name == "__wrapped__":  # a copy under construction has none yet
            raise AttributeError(name)
        return getattr(self.__wrapped__, name)

    def __instancecheck__(self, instance: Any) -> bool:
        return isinstance(instance, cast(type, self.__wrapped__))

    def __subclasscheck__(self, kind: type) -> bool:
        return issubclass(kind, cast(type, self.__wrapped__))

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[Any, ...]:
        """A class that is derived from a traced one is derived from the one behind it, and not traced itself."""
        return (self.__wrapped__,)

    def __repr__(self) -> str:
        return f"mp.trace({getattr(self.__wrapped__, '__qualname__', self.__wrapped__)})"


def trace(factory: Callable[..., Any]) -> Any:
    """Wraps a class or function so that what it makes can be built again for a changed model. Also a class decorator.

    A decorated class stays the class that it is: only its own objects remember how they were made, those of classes
    that are derived from it do not.

    Args:
        factory: the class of an optimizer, scheduler, Trainer or data module, or any other class or function that gives
            an object.

    Raises:
        TypeError: `factory` cannot be called, or, at the call, what it gave cannot be remembered (a tuple, a number).
    """
    if isinstance(factory, Traced):
        return factory
    if not callable(factory):
        raise TypeError(f"mp.trace takes a class or a function, not a {type(factory).__name__}")
    if isinstance(factory, type) and (_MARK in vars(factory) or not _stands(factory)):
        return _remembering(factory)
    return Traced(factory)


_MARK = "__modelpress_traced__"


def _stands(kind: type) -> bool:
    """Whether a class can be found under its own name; one that is being defined, by a decorator, cannot yet."""
    found: Any = sys.modules.get(kind.__module__)
    for part in kind.__qualname__.split("."):
        found = getattr(found, part, None)
    return found is kind


def _remembering(kind: type) -> Any:
    """The class itself, whose objects remember the call that made them."""
    if _MARK in vars(kind):
        return kind
    original = kind.__init__  # type: ignore[misc]

    @functools.wraps(original)
    def remembering(self: Any, *args: Any, **kwargs: Any) -> None:
        if type(self) is not kind:
            original(self, *args, **kwargs)
            return
        args, kwargs = _materialise(args), _materialise(kwargs)
        call = _call(kind, args, kwargs)
        original(self, *args, **kwargs)
        _calls[self] = call

    try:
        kind.__init__ = remembering  # type: ignore[misc]
        setattr(kind, _MARK, True)
    except TypeError:  # not a class of Python's own making
        return Traced(kind)
    return kind


def _call(factory: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> RecordedCall:
    return RecordedCall(factory, _copy(args), _copy(kwargs))


def call_of(made: Any) -> RecordedCall | None:
    """The recorded call that gave `made`; None if it was not traced."""
    try:
        return _calls.get(made)
    except TypeError:
        return None


def parts_of(given: Any) -> Any:
    """What a traced object was made of, by name, as random number generators may be among it; else `given` itself."""
    call = call_of(given)
    return given if call is None else {"factory": call.factory, "args": call.args, "kwargs": call.kwargs}


@dataclass(frozen=True)
class _Name:
    """Stands for the parameter or buffer of that name; `shape` is for messages."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class _ModuleName:
    name: str


@dataclass(frozen=True)
class _Other:
    """Stands for another traced object."""

    key: int


class Names:
    """Qualified names of one model's parameters, buffers and modules; of tied ones the first."""

    def __init__(self, model: nn.Module) -> None:
        self.tensors: dict[int, str] = {}
        self.modules: dict[int, str] = {}
        for name, tensor in itertools.chain(
            model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False)
        ):
            self.tensors.setdefault(id(tensor), name)
        for name, module in model.named_modules():
            self.modules.setdefault(id(module), name)


@dataclass
class RebuildPlan:
    """How to build traced objects again: calls by key, in the order in which they need each other."""

    calls: dict[int, tuple[RecordedCall, tuple[Any, ...], dict[str, Any]]]
    roots: list[int]
    lists: dict[str, tuple[int, ...]] = field(default_factory=dict)  # of modules, with what had gone of them by then

    @classmethod
    def of(cls, objects: Iterable[Any], model: nn.Module) -> RebuildPlan:
        """Plans for traced `objects` that were made from the parameters of `model`.

        Raises:
            InvalidModelError: an object was not traced, or holds parameters that are not the model's.
        """
        plan = cls({}, [], shortened(model))
        names = Names(model)
        for made in objects:
            plan.roots.append(plan._add(made, names))
        return plan

    def _add(self, made: Any, names: Names) -> int:
        key = id(made)
        if key in self.calls:
            return key
        call = call_of(made)
        if call is None:
            kind = type(made).__name__
            raise InvalidModelError(
                f"the {kind} was not traced, so it cannot be built again for a smaller model; make it with "
                f"mp.trace({kind})(...) or give a function that makes it"
            )
        seen: dict[str, Any] = {"named": 0, "foreign": []}
        args = self._resolve(call.args, names, call, seen)
        kwargs = self._resolve(call.kwargs, names, call, seen)
        if seen["foreign"]:
            shapes = ", ".join(str(shape) for shape in seen["foreign"][:3])
            raise InvalidModelError(
                f"{call.name} holds {len(seen['foreign'])} parameters that are not in the model (shapes {shapes}); "
                "make it from the parameters of the very model that is compressed, or give a function that makes it"
            )
        self.calls[key] = (call, args, kwargs)
        return key

    def _resolve(self, value: Any, names: Names, call: RecordedCall, seen: dict[str, Any]) -> Any:
        if isinstance(value, torch.Tensor):
            if id(value) in names.tensors:
                return _Name(names.tensors[id(value)], tuple(value.shape))
            if isinstance(value, nn.Parameter):
                seen["foreign"].append(tuple(value.shape))
            return value
        if isinstance(value, nn.Module):
            return _ModuleName(names.modules[id(value)]) if id(value) in names.modules else value
        if call_of(value) is not None:
            return _Other(self._add(value, names))
        if isinstance(value, torch.optim.lr_scheduler.LRScheduler):
            kind = type(value).__name__
            raise InvalidModelError(
                f"{call.name} was made of a {kind} that was not traced; make that with mp.trace({kind})(...) too"
            )
        if isinstance(value, torch.optim.Optimizer):
            kind = type(value).__name__
            raise InvalidModelError(
                f"{call.name} was made for a {kind} that was not traced; make that with mp.trace({kind})(...) too"
            )
        return _rebuild(value, lambda item: self._resolve(item, names, call, seen))

    def fits(self, model: nn.Module) -> bool:
        """Whether every parameter and module that the calls name is in `model`."""
        tensors, modules, gone = self._named(model)

        def known(value: Any) -> bool:
            if isinstance(value, _Name):
                return value.name in tensors or value.name.startswith(gone)
            if isinstance(value, _ModuleName):
                return value.name in modules
            if type(value) in (list, tuple):
                return all(map(known, value))
            return all(map(known, value.values())) if type(value) is dict else True

        return all(known(args) and known(kwargs) for _, args, kwargs in self.calls.values())

    def build(self, model: nn.Module) -> list[Any]:
        """The objects, made anew for `model`.

        Raises:
            CompressionError: a parameter or module that one of them needs is no longer in the model.
        """
        tensors, modules, gone = self._named(model)
        made: dict[int, Any] = {}

        def left(value: Any) -> Any:
            """A list without the parameters of layers and experts that were taken out."""
            if type(value) not in (list, tuple) or not gone:
                return value
            return type(value)(
                item
                for item in value
                if not (isinstance(item, _Name) and item.name not in tensors and item.name.startswith(gone))
            )

        def fill(value: Any, call: RecordedCall) -> Any:
            if isinstance(value, _Name):
                if value.name not in tensors:
                    raise CompressionError(
                        f"{call.name} trains {value.name!r}, which the compressed model no longer has; give a function "
                        "that makes the optimizer from whatever parameters there are"
                    )
                return tensors[value.name]
            if isinstance(value, _ModuleName):
                if value.name not in modules:
                    raise CompressionError(
                        f"{call.name} needs the module {value.name!r}, which the compressed model no longer has"
                    )
                return modules[value.name]
            if isinstance(value, _Other):
                return made[value.key]
            if isinstance(value, torch.Tensor):
                return value.clone()  # a learning rate that is a tensor is changed in place by schedulers
            return _rebuild(left(value), lambda item: fill(item, call))

        for key, (call, args, kwargs) in self.calls.items():
            made[key] = call.factory(*fill(args, call), **fill(kwargs, call))
        return [made[key] for key in self.roots]

    def _named(self, model: nn.Module) -> tuple[dict[str, torch.Tensor], dict[str, nn.Module], tuple[str, ...]]:
        """Tensors and modules by the names that they had when this was planned, and what the names of parameters may
        begin with that went with whole layers or experts."""
        gone = [f"{name}." for name, module in model.named_modules() if isinstance(module, Bypassed)]
        moved: dict[str, str] = {}
        for name, numbers in shortened(model).items():
            before = self.lists.get(name, range(numbers[-1] + 1))
            if tuple(before) != numbers:
                gone.append(f"{name}.")
            moved |= {f"{name}.{now}.": f"{name}.{before.index(number)}." for now, number in enumerate(numbers)}

        def planned(name: str) -> str:
            now = next((prefix for prefix in moved if f"{name}.".startswith(prefix)), None)
            return name if now is None else (moved[now] + f"{name}.".removeprefix(now))[:-1]

        tensors = itertools.chain(
            model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False)
        )
        return (
            {planned(name): tensor for name, tensor in tensors},
            {planned(name): module for name, module in model.named_modules(remove_duplicate=False)},
            tuple(gone),
        )


def _materialise(value: Any) -> Any:
    if isinstance(value, _ITERATORS):
        value = list(value)
    return _rebuild(value, _materialise)


def _copy(value: Any) -> Any:
    if isinstance(value, torch.Tensor) and not isinstance(value, nn.Parameter) and value.dim() == 0:
        return value.detach().clone() if not value.requires_grad else value
    return _rebuild(value, _copy)


def _rebuild(value: Any, each: Callable[[Any], Any]) -> Any:
    """A copy of plain lists, tuples and dicts with `each` applied to their items; anything else as it is."""
    if type(value) is list:
        return [each(item) for item in value]
    if type(value) is tuple:
        return tuple(each(item) for item in value)
    if type(value) is set:
        return value
    if isinstance(value, Mapping) and type(value).__name__ in ("dict", "OrderedDict"):
        return {key: each(item) for key, item in value.items()}
    return value
