"""How a model in a file is called: its arguments and outputs, nested as those of the module that it was made from.

It is kept in the file itself, as JSON. A tree is one of {"tensor": name}, {"list": [...]}, {"tuple": [...]},
{"dict": {key: ...}}, {"value": null, number or bool}.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from modelpress.plainjson import json_of
from modelpress_runner.serving.errors import CallError, RuntimeFileError

VERSION = 1
KEY = "modelpress.signature"
Tree = dict[str, Any]
_KINDS = ("tensor", "list", "tuple", "dict", "value")
_DEEP = 32


@dataclass(frozen=True)
class TensorSpec:
    """An input of the file.

    Attributes:
        name: in the file.
        dtype: as numpy calls it.
        shape: a number, or the name of an axis that is free.
        low: least element of the example input.
        high: greatest element of it.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    low: float = 0.0
    high: float = 1.0

    def described(self) -> str:
        """`(batch, 64) int64`."""
        inner = ", ".join(str(size) for size in self.shape) + ("," if len(self.shape) == 1 else "")
        return f"({inner}) {self.dtype}"


@dataclass(frozen=True)
class Signature:
    """The call of a model in a file.

    Attributes:
        parameters: (name, keyword only, tree) of each argument, in order.
        inputs: tensors in the file, in order.
        outputs: tree.
        output_names: tensors in the file, in order.
    """

    parameters: tuple[tuple[str, bool, Tree], ...]
    inputs: tuple[TensorSpec, ...]
    outputs: Tree
    output_names: tuple[str, ...]

    def feed(self, args: Sequence[Any], kwargs: Mapping[str, Any], is_tensor: Callable[[Any], bool]) -> dict[str, Any]:
        """Tensors by their name in the file, of a call as of the module.

        Raises:
            CallError: these are not the arguments of the model.
        """
        names = [name for name, _, _ in self.parameters]
        if len(args) > sum(not named for _, named, _ in self.parameters):
            raise CallError(f"the model takes {self.described()}; given: {len(args)} positional arguments")
        given = dict(zip(names, args, strict=False))
        twice = sorted(given.keys() & kwargs.keys())
        given.update(kwargs)
        unknown = [name for name in given if name not in names]
        missing = [name for name in names if name not in given]
        if twice or unknown or missing:
            wrong = [f"{name} twice" for name in twice] + [f"{name}, which it does not take" for name in unknown]
            wrong += [f"no {name}" for name in missing]
            raise CallError(
                f"the model takes {self.described()}; given: {', '.join(wrong)} (what was not in the example "
                "inputs is not part of it)"
            )
        found: dict[str, Any] = {}
        for name, _, tree in self.parameters:
            _collect(given[name], tree, name, found, is_tensor)
        return found

    def nested(self, tensors: Sequence[Any]) -> Any:
        """The outputs of a call, nested as the module gave them."""
        return _built(self.outputs, dict(zip(self.output_names, tensors, strict=True)))

    def described(self) -> str:
        """The inputs and their shapes, for messages."""
        specs = {spec.name: spec.described() for spec in self.inputs}
        return ", ".join(f"{name}: {_shown(tree, specs)}" for name, _, tree in self.parameters)

    def check(self, feed: Mapping[str, Any]) -> None:
        """Raises CallError unless each tensor is of the type and shape that its input has."""
        sizes: dict[str, tuple[int, str]] = {}
        for spec in self.inputs:
            shape, dtype = tuple(feed[spec.name].shape), str(feed[spec.name].dtype).removeprefix("torch.")
            fits = len(shape) == len(spec.shape) and all(
                size == want if isinstance(want, int) else sizes.setdefault(want, (size, spec.name))[0] == size
                for size, want in zip(shape, spec.shape, strict=True)
            )
            if not fits or dtype != spec.dtype:
                raise CallError(f"the input {spec.name} is {shape} {dtype}; the model takes {spec.described()}")

    def to_json(self) -> str:
        """As text; equal signatures give equal text."""
        plain = {
            "version": VERSION,
            "parameters": [{"name": name, "keyword": named, "tree": tree} for name, named, tree in self.parameters],
            "inputs": [vars(spec) | {"shape": list(spec.shape)} for spec in self.inputs],
            "outputs": self.outputs,
            "outputNames": list(self.output_names),
        }
        return json.dumps(plain, separators=(",", ":"), allow_nan=False)

    @classmethod
    def of_json(cls, text: str, file: str) -> Signature:
        """The signature in the file called `file`.

        Raises:
            RuntimeFileError: it is none.
        """
        try:
            plain = json_of(text)
            if plain["version"] != VERSION:
                raise RuntimeFileError(
                    f"{file} is of version {str(plain['version'])[:16]}, this modelpress reads {VERSION}; use the "
                    "modelpress that wrote it"
                )
            found = cls(
                tuple((str(p["name"]), bool(p["keyword"]), _checked(p["tree"])) for p in plain["parameters"]),
                tuple(
                    TensorSpec(
                        str(spec["name"]),
                        str(spec["dtype"]),
                        tuple(size if isinstance(size, int) else str(size) for size in spec["shape"]),
                        float(spec["low"]),
                        float(spec["high"]),
                    )
                    for spec in plain["inputs"]
                ),
                _checked(plain["outputs"]),
                tuple(str(name) for name in plain["outputNames"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise RuntimeFileError(f"{file}: what it says of its call is damaged; fetch the artifact again") from error
        taken = [name for _, _, tree in found.parameters for name in names(tree)]
        if sorted(taken) != sorted(s.name for s in found.inputs) or not set(names(found.outputs)) <= {
            *found.output_names
        }:
            raise RuntimeFileError(f"{file}: what it says of its call is damaged; fetch the artifact again")
        return found


def tree_of(value: Any, name_of: Callable[[Any], str | None]) -> Tree:
    """The tree of plain containers.

    Args:
        value: dicts, lists and tuples of leaves.
        name_of: the name of a tensor; None: a leaf is none.

    Raises:
        TypeError: a leaf is neither tensor nor number nor None, or a key is no string; the message is a clause.
    """
    name = name_of(value)
    if name is not None:
        return {"tensor": name}
    if isinstance(value, dict):
        wrong = [key for key in value if not isinstance(key, str)]
        if wrong:
            raise TypeError(f"a dict has the key {wrong[0]!r}; only strings can be kept")
        return {"dict": {key: tree_of(item, name_of) for key, item in value.items()}}
    if isinstance(value, tuple | list):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [tree_of(item, name_of) for item in value]}
    if value is None or isinstance(value, bool | int | float):
        return {"value": value}
    raise TypeError(f"there is a {type(value).__name__}; only tensors, numbers and None can be kept")


def names(tree: Tree) -> list[str]:
    """Names of the tensors in a tree, in order."""
    kind, inner = next(iter(tree.items()))
    if kind == "tensor":
        return [inner]
    parts = inner.values() if kind == "dict" else inner if kind in ("list", "tuple") else ()
    return [name for part in parts for name in names(part)]


def _checked(tree: Any, depth: int = 0) -> Tree:
    if not isinstance(tree, dict) or len(tree) != 1 or depth > _DEEP:
        raise ValueError("no tree")
    kind, inner = next(iter(tree.items()))
    if kind not in _KINDS or (kind == "tensor" and not isinstance(inner, str)):
        raise ValueError("no tree")
    for part in inner.values() if kind == "dict" else inner if kind in ("list", "tuple") else ():
        _checked(part, depth + 1)
    return tree


def _built(tree: Tree, tensors: Mapping[str, Any]) -> Any:
    kind, inner = next(iter(tree.items()))
    if kind == "tensor":
        return tensors[inner]
    if kind == "dict":
        return {key: _built(part, tensors) for key, part in inner.items()}
    if kind == "value":
        return inner
    parts = [_built(part, tensors) for part in inner]
    return tuple(parts) if kind == "tuple" else parts


def _collect(value: Any, tree: Tree, where: str, found: dict[str, Any], is_tensor: Callable[[Any], bool]) -> None:
    kind, inner = next(iter(tree.items()))
    if kind == "tensor":
        if not is_tensor(value):
            raise CallError(f"{where} is a {type(value).__name__}; the model takes a tensor there")
        found[inner] = value
    elif kind == "value":
        if is_tensor(value) or value != inner:
            raise CallError(f"{where} was {inner!r} when the model was exported, and cannot be anything else")
    else:
        keys = list(inner) if kind == "dict" else list(range(len(inner)))
        fits = isinstance(value, Mapping if kind == "dict" else list | tuple) and len(value) == len(keys)
        if not fits or (kind == "dict" and set(value) != set(keys)):
            raise CallError(f"{where} must be a {kind} of {len(keys)} as when the model was exported")
        for key in keys:
            _collect(value[key], inner[key], f"{where}[{key!r}]", found, is_tensor)


def _shown(tree: Tree, specs: Mapping[str, str]) -> str:
    kind, inner = next(iter(tree.items()))
    if kind == "tensor":
        return specs[inner]
    if kind == "value":
        return repr(inner)
    if kind == "dict":
        return "{" + ", ".join(f"{key}: {_shown(part, specs)}" for key, part in inner.items()) + "}"
    return "[" + ", ".join(_shown(part, specs) for part in inner) + "]"
