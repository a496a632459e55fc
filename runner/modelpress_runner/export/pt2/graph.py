"""Makes a graph that runs of the JSON that `graphcheck` passed: operators and their arguments, nothing evaluated.

torch has a reader of its own, which also makes a tensor of symbolic shape of each value, evaluating the texts of
sizes for it: 2 to 6 ms an operator, ten times as much as the rest. A graph runs without; only the shapes of its inputs
serve, for messages.
"""

from __future__ import annotations

import functools
import keyword
import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from modelpress_runner.errors import first_line
from modelpress_runner.export.pt2.callees import resolve
from modelpress_runner.export.pt2.expressions import symbol

Shape = tuple[int | str | None, ...]
STATE = ("parameter", "buffer", "tensor_constant")
MUTATION = {
    "buffer_mutation": "buffer_name",
    "parameter_mutation": "parameter_name",
    "user_input_mutation": "user_input_name",
}
_MODULES = {"_operator": operator, "math": math, "torch": torch}
_POSITIONAL, _KEYWORD = 1, 2


@dataclass(frozen=True)
class Input:
    """One that the graph takes."""

    name: str
    kind: str
    """"user_input", or one of `STATE`."""
    target: str | None = None
    """Name of the tensor; of state."""
    expected: Any = None
    """Of the user's: a tensor's `Shape` (the symbol where a size is free, None where computed), or the constant."""


@dataclass(frozen=True)
class Graph:
    """A graph and what goes in and out."""

    module: fx.GraphModule
    inputs: list[Input]
    outputs: list[tuple[str, str | None]]
    """(kind, target): one of `MUTATION` and what it changes, or "user_output" and None."""
    names: tuple[str, ...]
    in_spec: pytree.TreeSpec
    out_spec: pytree.TreeSpec


def read_graph(document: Any) -> Graph:
    """The graph of a program.

    Args:
        document: content of models/<name>.json that `graphcheck.check_program` passed.

    Raises:
        ValueError: it is no program's, with what it lacks.
    """
    try:
        return _graph(document)
    except (KeyError, TypeError, IndexError, AttributeError, AssertionError, RuntimeError) as error:
        raise ValueError(f"its graph lacks {first_line(error)}") from error


def _graph(document: Any) -> Graph:
    module = document["graph_module"]
    graph, signature, call = module["graph"], module["signature"], module["module_call_graph"][0]["signature"]
    inputs = [_input(spec, given, graph) for spec, given in zip(signature["input_specs"], graph["inputs"], strict=True)]
    outputs = [_output(spec) for spec in signature["output_specs"]]
    in_spec, out_spec = (pytree.treespec_loads(call[key]) for key in ("in_spec", "out_spec"))
    taken = sum(each.kind == "user_input" for each in inputs)
    given = sum(kind not in MUTATION for kind, _ in outputs)
    counts = (in_spec.num_leaves, out_spec.num_leaves, len(graph["outputs"]))
    if counts != (taken, given, len(outputs)):
        raise ValueError(f"it takes {taken} and gives {given} of {len(outputs)} values, and says {counts}")
    names = tuple(call.get("forward_arg_names") or ())
    return Graph(_Reader().read(graph), inputs, outputs, names, in_spec, out_spec)


def _input(spec: Any, given: Any, graph: Any) -> Input:
    kind, held = _only(spec)
    if kind == "constant_input":
        return Input(held["name"], "user_input", expected=_constant(*_only(held["value"])))
    if kind in STATE:
        return Input(held["arg"]["name"], kind, held[f"{kind}_name"])
    if kind != "user_input":
        raise ValueError(f"it has an input of the kind {kind}")
    form, value = _only(held["arg"])
    if form in _CONSTANTS:
        return Input("", kind, expected=_constant(form, value))
    if form != "as_tensor" or given != held["arg"]:
        raise ValueError(f"it has an input of the form {form}")
    name = value["name"]
    return Input(name, kind, expected=tuple(_size(size) for size in graph["tensor_values"][name]["sizes"]))


def _size(size: Any) -> int | str | None:
    return operator.index(size["as_int"]) if "as_int" in size else symbol(size["as_expr"]["expr_str"])


def _output(spec: Any) -> tuple[str, str | None]:
    kind, held = _only(spec)
    return (kind, held[MUTATION[kind]]) if kind in MUTATION else ("user_output", None)


class _Reader:
    """Reads one graph; those that operators take have readers of their own. No name of the file is a name of it."""

    def __init__(self) -> None:
        self.root = nn.Module()
        self.graph = fx.Graph()
        self.values: dict[str, fx.Node] = {}

    def read(self, graph: Any) -> fx.GraphModule:
        for index, given in enumerate(graph["inputs"]):
            name = _name(*_only(given))
            self._keep(name, self.graph.placeholder(f"input_{index}"))
        for node in graph["nodes"]:
            self._node(node)
        results = [self._argument(output) for output in graph["outputs"]]
        self.graph.output(results[0] if graph["is_single_tensor_return"] else tuple(results))
        return fx.GraphModule(self.root, self.graph)

    def _keep(self, name: str | None, value: fx.Node) -> None:
        if name in self.values:
            raise ValueError(f"it has {name!r} twice")
        if name is not None:
            self.values[name] = value

    def _node(self, node: Any) -> None:
        target = _target(node["target"])
        given = [(each, self._argument(each["arg"])) for each in node["inputs"]]
        if isinstance(target, torch._ops.OpOverload):
            args, kwargs = _call(target, given)
        elif isinstance(target, torch._ops.HigherOrderOperator):
            args = [value for each, value in given if each["kind"] == _POSITIONAL or not each["name"]]
            kwargs = {each["name"]: value for each, value in given if each["kind"] != _POSITIONAL and each["name"]}
        else:
            args, kwargs = [value for _, value in given], {}
        made = self.graph.call_function(target, tuple(args), kwargs)
        outputs = node["outputs"]
        if len(outputs) != 1:
            self._items(made, [_only(output) for output in outputs])
            return
        form, value = _only(outputs[0])
        single = node.get("is_hop_single_tensor_return") in (None, True)
        if isinstance(value, list):
            self._items(made, [(form[:-1], each) for each in value])
        elif isinstance(target, torch._ops.HigherOrderOperator) and not single:
            self._items(made, [(form, value)])
        else:
            self._keep(_name(form, value), made)

    def _items(self, made: fx.Node, outputs: list[tuple[str, Any]]) -> None:
        for index, (form, value) in enumerate(outputs):
            item = self.graph.call_function(operator.getitem, (made, index))
            if isinstance(value, list):
                self._items(item, [(form[:-1], each) for each in value])
            else:
                self._keep(_name(form, value), item)

    def _argument(self, argument: Any) -> Any:
        form, value = _only(argument)
        if form in _CONSTANTS or form in _LISTS:
            return _constant(form, value)
        if form == "as_tensor":
            return self.values[value["name"]]
        if form == "as_tensors":
            return [self.values[each["name"]] for each in value]
        if form == "as_nested_tensors":
            return [[self.values[each["name"]] for each in inner] for inner in value]
        if form == "as_optional_tensors":
            return [self._optional(each) for each in value]
        if form == "as_optional_tensor":
            return self._optional(value)
        if form in ("as_sym_int", "as_sym_float", "as_sym_bool"):
            return self._symbolic(value)
        if form in ("as_sym_ints", "as_sym_floats", "as_sym_bools"):
            return [self._symbolic(each) for each in value]
        if form == "as_operator":
            return _target(value)
        if form == "as_string_to_argument":
            return {name: self._argument(each) for name, each in value.items()}
        if form == "as_graph":
            name = f"graph_{len(self.root._modules)}"
            self.root.add_module(name, _Reader().read(value["graph"]))
            return self.graph.get_attr(name)
        raise ValueError(f"it has an argument of the form {form}")

    def _optional(self, value: Any) -> fx.Node | None:
        form, held = _only(value)
        return self.values[held["name"]] if form == "as_tensor" else None

    def _symbolic(self, value: Any) -> Any:
        form, held = _only(value)
        return self.values[held] if form == "as_name" else _constant(form, held)


def _call(target: torch._ops.OpOverload, given: list[tuple[Any, Any]]) -> tuple[list[Any], dict[str, Any]]:
    """Arguments by the operator's schema, positional where the file says so, or where they have no default."""
    values = {each["name"]: (each.get("kind"), value) for each, value in given}
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    for name, positional in _schema(target):
        if name not in values:
            if positional:
                raise ValueError(f"it calls {target} without {name}")
            continue
        kind, value = values.pop(name)
        if kind == _POSITIONAL or (kind != _KEYWORD and positional) or keyword.iskeyword(name):
            args.append(value)
        else:
            kwargs[name] = value
    if values:
        raise ValueError(f"it calls {target} with {next(iter(values))}")
    return args, kwargs


@functools.cache
def _schema(target: torch._ops.OpOverload) -> tuple[tuple[str, bool], ...]:
    held = target._schema.arguments
    return tuple((each.name, not each.has_default_value() and not each.kwarg_only) for each in held)


def _only(union: Any) -> tuple[str, Any]:
    ((form, value),) = union.items()
    return form, value


def _name(form: str, value: Any) -> str | None:
    """The name of a value that an operator gives or a graph takes; None: it is none, or a constant."""
    if form == "as_tensor":
        return str(value["name"])
    return str(value["as_name"]) if form in ("as_sym_int", "as_sym_float", "as_sym_bool") else None


def _target(text: str) -> Callable[..., Any]:
    home, _, name = text.partition(".")
    if text.startswith("torch.ops."):
        return resolve(text.removeprefix("torch.ops."))  # type: ignore[no-any-return]
    return getattr(_MODULES[home], name)  # type: ignore[no-any-return]


def _constant(form: str, value: Any) -> Any:
    if form in _LISTS:
        return [_constant(_LISTS[form], each) for each in value]
    return _CONSTANTS[form](value)


def _of(table: str) -> Callable[[int], Any]:
    """Reads a number of torch's own numbering of types, layouts or formats."""

    def read(value: int) -> Any:
        from torch._export.serde import serialize  # seconds, which only a reader should pay

        return getattr(serialize, f"_SERIALIZE_TO_TORCH_{table}")[value]

    return read


_CONSTANTS: dict[str, Callable[[Any], Any]] = {
    "as_none": lambda _: None,
    "as_bool": bool,
    "as_int": operator.index,
    "as_float": float,
    "as_string": str,
    "as_complex": lambda value: complex(float(value["real"]), float(value["imag"])),
    "as_scalar_type": _of("DTYPE"),
    "as_layout": _of("LAYOUT"),
    "as_memory_format": _of("MEMORY_FORMAT"),
    "as_device": lambda value: torch.device(value["type"], *[value["index"]] * (value.get("index") is not None)),
}
_LISTS = {
    "as_bools": "as_bool",
    "as_ints": "as_int",
    "as_floats": "as_float",
    "as_strings": "as_string",
    "as_int_lists": "as_ints",
    "as_float_lists": "as_floats",
}
