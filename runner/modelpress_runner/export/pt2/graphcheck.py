"""Checks the graph of a program before anything is made of it.

A graph is JSON, yet torch's own reader gives its texts to Python: symbolic sizes go through `eval` (sympify), names
become source code that is compiled, an operator may be any callable below `torch` (`torch.os.system`), guards are
executed. `graph` does none of this, and whoever else reads the file is not to be harmed either. So every text is held
against a list of what a graph needs, and everything else is refused: unknown keys, names that are no identifiers,
operators that are none, expressions beyond arithmetic, pickled or opaque objects.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Callable
from typing import Any

from modelpress.plainjson import json_of
from modelpress_runner.errors import ArtifactError
from modelpress_runner.export.pt2 import callees, expressions

MAX_DEPTH = 200
MAX_TEXT = 4096

# Names of modules are free but for the dot ("0", "conv-1"); they are keys, and never become source code.
_DOTTED = re.compile(r"[^\x00-\x1f\x7f.'\"\\]+(\.[^\x00-\x1f\x7f.'\"\\]+)*")
_PATH_NAME = re.compile(r"(weight|tensor)_(?:0|[1-9]\d{0,6})")
_VERSION = re.compile(r"[\w.+-]{1,64}", re.ASCII)
# Texts that operators take: names of modes, equations of einsum. No path and no address is among them.
_CHOICE = re.compile(r"[A-Za-z_]{0,32}|[A-Za-z., >-]{1,256}", re.ASCII)
_DEVICE = re.compile(r"[a-z]{1,16}")
_TREE_TYPES = frozenset(["builtins.tuple", "builtins.list", "builtins.dict"])


class _RefusedError(Exception):
    """The reason, without the place."""


def check_program(document: Any, name: str) -> None:
    """Refuses a program (the content of models/<name>.json) that must not be read.

    Which operators it may call is another question, see `callees.unlisted`.

    Raises:
        ArtifactError: with the place in the document and what is wrong there.
    """
    _run(name, lambda: _node(document, "program", f"{name}", 0))


def check_payload(document: Any, name: str, kind: str) -> None:
    """Refuses a payload config (the list of tensors) that names a pickle or a place outside the archive.

    Args:
        document: {"config": {name: {path_name, is_param, use_pickle, tensor_meta}}}
        name: for messages.
        kind: "weight" or "tensor", the prefix that payloads have.

    Raises:
        ArtifactError: with the place in the document and what is wrong there.
    """

    def check() -> None:
        if not isinstance(document, dict) or set(document) != {"config"} or not isinstance(document["config"], dict):
            raise _RefusedError(f"{name} is no list of tensors")
        for key, meta in document["config"].items():
            place = f"{name}.config.{key}"
            _match(_DOTTED, key, place)
            if not isinstance(meta, dict) or set(meta) != {"path_name", "is_param", "use_pickle", "tensor_meta"}:
                raise _RefusedError(f"{place} does not describe a tensor")
            if meta["use_pickle"] is not False:
                raise _RefusedError(f"{place} is a pickled tensor")
            if not isinstance(meta["is_param"], bool):
                raise _RefusedError(f"{place}.is_param is neither true nor false")
            if not _match(_PATH_NAME, meta["path_name"], place).startswith(f"{kind}_"):
                raise _RefusedError(f"{place} is not a {kind}")  # torch opens other names as pickles
            if not isinstance(meta["tensor_meta"], dict):
                raise _RefusedError(f"{place} has no shape")
            _sizes(meta["tensor_meta"], place)
            _node(meta["tensor_meta"], "tensor_meta", place, 0)

    _run(name, check)


def _run(name: str, check: Callable[[], None]) -> None:
    try:
        check()
    except _RefusedError as refused:
        raise ArtifactError(f"model.pt2 is not opened: {refused}; export the model again with modelpress") from None
    except RecursionError:
        raise ArtifactError(f"model.pt2 is not opened: {name} is nested too deeply") from None


def _sizes(meta: Any, place: str) -> list[Any]:
    values = [*_list(meta.get("sizes"), place), *_list(meta.get("strides"), place), meta.get("storage_offset")]
    if any(not isinstance(value, dict) for value in values):
        raise _RefusedError(f"{place} has no shape")
    if any(type(value.get("as_int")) is not int or not 0 <= value["as_int"] < 2**62 for value in values):
        raise _RefusedError(f"{place} has a size that is no number")
    return values


def _list(value: Any, place: str) -> list[Any]:
    if not isinstance(value, list) or len(value) > 64:
        raise _RefusedError(f"{place} has no shape")
    return value


# What may stand under a key. "text:x" is a text that must pass _TEXTS[x]; a list is checked item by item.
_KEYS: dict[str, dict[str, str]] = {
    "program": {
        "graph_module": "graph_module",
        "opset_version": "numbers",
        "range_constraints": "ranges",
        "schema_version": "numbers",
        "verifiers": "text:verifier",
        "torch_version": "text:version",
        "guards_code": "nothing",
    },
    "graph_module": {
        "graph": "graph",
        "signature": "signature",
        "module_call_graph": "call_entry",
        "metadata": "nothing",
        "treespec_namedtuple_fields": "nothing",
    },
    "graph": {
        "inputs": "argument",
        "outputs": "argument",
        "nodes": "graph_node",
        "tensor_values": "named:tensor_meta",
        "sym_int_values": "named:sym",
        "sym_bool_values": "named:sym",
        "sym_float_values": "named:sym",
        "is_single_tensor_return": "scalar",
        "custom_obj_values": "nothing",
    },
    "graph_node": {
        "target": "text:operator",
        "inputs": "named_argument",
        "outputs": "argument",
        "metadata": "nothing",
        "is_hop_single_tensor_return": "scalar",
        "name": "text:identifier?",
    },
    "named_argument": {"name": "text:keyword", "arg": "argument", "kind": "scalar"},
    "name": {"name": "text:identifier"},
    "graph_argument": {"name": "text:identifier", "graph": "graph"},
    "as_name": {"as_name": "text:identifier", "as_int": "scalar", "as_float": "scalar", "as_bool": "scalar"},
    "optional_tensor": {"as_tensor": "name", "as_none": "scalar"},
    "complex": {"real": "scalar", "imag": "scalar"},
    "argument": {
        **dict.fromkeys(("as_tensor", "as_tensors", "as_nested_tensors"), "name"),
        **dict.fromkeys(("as_optional_tensor", "as_optional_tensors"), "optional_tensor"),
        **dict.fromkeys(("as_sym_int", "as_sym_ints", "as_sym_float", "as_sym_floats"), "as_name"),
        **dict.fromkeys(("as_sym_bool", "as_sym_bools"), "as_name"),
        **dict.fromkeys(("as_none", "as_bool", "as_bools", "as_int", "as_ints", "as_int_lists"), "scalar"),
        **dict.fromkeys(("as_float", "as_floats", "as_float_lists"), "scalar"),
        **dict.fromkeys(("as_scalar_type", "as_memory_format", "as_layout"), "scalar"),
        **dict.fromkeys(("as_string", "as_strings"), "text:choice"),
        "as_device": "device",
        "as_graph": "graph_argument",
        "as_operator": "text:operator",
        "as_complex": "complex",
        "as_string_to_argument": "named:argument",
    },
    "tensor_meta": {
        **dict.fromkeys(("sizes", "strides", "storage_offset"), "sym"),
        **dict.fromkeys(("dtype", "requires_grad", "layout"), "scalar"),
        "device": "device",
    },
    "device": {"type": "text:device", "index": "scalar"},
    "sym": {**dict.fromkeys(("as_int", "as_bool", "as_float"), "scalar"), "as_expr": "expression"},
    "expression": {"expr_str": "text:expression", "hint": "hint"},
    "hint": dict.fromkeys(("as_int", "as_bool", "as_float"), "scalar"),
    "signature": {"input_specs": "input_spec", "output_specs": "output_spec"},
    "input_spec": {
        "user_input": "argument_of",
        "parameter": "state",
        "buffer": "state",
        "tensor_constant": "state",
        "constant_input": "constant_input",
    },
    "output_spec": {
        "user_output": "argument_of",
        "loss_output": "state",
        "buffer_mutation": "state",
        "parameter_mutation": "state",
        "user_input_mutation": "state",
    },
    "argument_of": {"arg": "argument"},
    "state": {
        "arg": "name",
        **dict.fromkeys(("parameter_name", "buffer_name", "tensor_constant_name"), "text:dotted"),
        "user_input_name": "text:identifier",
        "persistent": "scalar",
    },
    "constant_input": {"name": "text:identifier", "value": "constant"},
    "constant": {**dict.fromkeys(("as_none", "as_int", "as_float", "as_bool"), "scalar"), "as_string": "text:free"},
    "call_entry": {"fqn": "text:dotted?", "signature": "call_signature"},
    "call_signature": {
        "inputs": "argument",
        "outputs": "argument",
        "in_spec": "text:tree",
        "out_spec": "text:tree",
        "forward_arg_names": "text:identifier",
    },
    "range": {"min_val": "scalar", "max_val": "scalar"},
}


def _node(value: Any, rule: str, place: str, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise _RefusedError(f"{place} is nested too deeply")
    if isinstance(value, list):
        for index, item in enumerate(value):
            _node(item, rule, f"{place}[{index}]", depth + 1)
        if rule == "nothing" and value:
            raise _RefusedError(f"{place} is not empty")
    elif rule == "nothing":
        if value:
            raise _RefusedError(f"{place} is not empty")
    elif value is None:
        return
    elif rule.startswith("text:"):
        _TEXTS[rule.removeprefix("text:")](value, place)
    elif rule == "scalar":
        if not isinstance(value, int | float) and value not in ("Infinity", "-Infinity", "NaN"):
            raise _RefusedError(f"{place} is no number")
    elif not isinstance(value, dict):
        raise _RefusedError(f"{place} is a {type(value).__name__}, not an object")
    elif rule == "numbers":
        for key, item in value.items():
            _match(callees.IDENTIFIER, key, place)
            _node(item, "scalar", f"{place}.{key}", depth + 1)
    elif rule == "ranges":
        for key, item in value.items():
            _match(expressions.SYMBOL, key, place)
            _node(item, "range", f"{place}.{key}", depth + 1)
    elif rule.startswith("named:"):
        for key, item in value.items():
            _identifier(key, place)
            _node(item, rule.removeprefix("named:"), f"{place}.{key}", depth + 1)
    else:
        known = _KEYS[rule]
        for key, item in value.items():
            if key not in known:
                raise _RefusedError(f"{place} has {str(key)[:64]!r}, which no program that modelpress writes has")
            _node(item, known[key], f"{place}.{key}", depth + 1)


def _text(value: Any, place: str) -> str:
    if not isinstance(value, str):
        raise _RefusedError(f"{place} is a {type(value).__name__}, not a text")
    if len(value) > MAX_TEXT:
        raise _RefusedError(f"{place} is longer than {MAX_TEXT} characters")
    return value


def _match(pattern: re.Pattern[str], value: Any, place: str) -> str:
    text = _text(value, place)
    if not pattern.fullmatch(text):
        raise _RefusedError(f"{place} has the text {text[:64]!r}, which is no name")
    return text


def _identifier(value: Any, place: str) -> None:
    if keyword.iskeyword(_match(callees.IDENTIFIER, value, place)):
        raise _RefusedError(f"{place} has the text {value!r}, which is a word of Python")


def _operator(value: Any, place: str) -> None:
    text = _text(value, place)
    if not callees.is_function_of_a_model(text):
        raise _RefusedError(f"{place} calls {text[:96]!r}, which is no operator of a model")


def _expression(value: Any, place: str) -> None:
    fault = expressions.fault(_text(value, place))
    if fault is not None:
        raise _RefusedError(f"{place} {fault}")


def _tree(value: Any, place: str) -> None:
    text = value if isinstance(value, str) and len(value) <= 2**20 else _text(value, place)
    try:
        parsed = json_of(text, 3 * MAX_DEPTH)
    except ValueError:
        raise _RefusedError(f"{place} is not JSON") from None
    if not isinstance(parsed, list) or len(parsed) != 2 or parsed[0] != 1:
        raise _RefusedError(f"{place} is no structure that this version reads")
    _branch(parsed[1], place, 0)


def _branch(value: Any, place: str, depth: int) -> None:
    if depth > MAX_DEPTH or not isinstance(value, dict) or set(value) != {"type", "context", "children_spec"}:
        raise _RefusedError(f"{place} is no structure of tuples, lists and dicts")
    if value["type"] is None:
        if value["context"] is not None or value["children_spec"]:
            raise _RefusedError(f"{place} is no structure of tuples, lists and dicts")
        return
    if value["type"] not in _TREE_TYPES or not isinstance(value["children_spec"], list):
        raise _RefusedError(f"{place} has the type {str(value['type'])[:64]!r}; only tuples, lists and dicts are read")
    if value["type"] == "builtins.dict":
        try:
            keys = json_of(value["context"], 1) if isinstance(value["context"], str) else None
        except ValueError:
            keys = None
        if not isinstance(keys, list) or any(not isinstance(key, str | int) for key in keys):
            raise _RefusedError(f"{place} has keys that are neither texts nor integers")
    elif value["context"] != "null":
        raise _RefusedError(f"{place} is no structure of tuples, lists and dicts")
    for child in value["children_spec"]:
        _branch(child, place, depth + 1)


def _verifier(value: Any, place: str) -> None:
    if value not in ("TRAINING", "ATEN"):
        raise _RefusedError(f"{place} is {str(value)[:64]!r}; only TRAINING and ATEN programs are read")


def _optional(check: Callable[[Any, str], None]) -> Callable[[Any, str], None]:
    return lambda value, place: None if value == "" else check(value, place)


def _matching(pattern: re.Pattern[str]) -> Callable[[Any, str], None]:
    return lambda value, place: void(_match(pattern, value, place))


def void(_: Any) -> None:
    """Drops a value."""


_TEXTS: dict[str, Callable[[Any, str], None]] = {
    "identifier": _identifier,
    "identifier?": _optional(_identifier),
    "keyword": _optional(_matching(callees.IDENTIFIER)),
    "dotted": _matching(_DOTTED),
    "dotted?": _optional(_matching(_DOTTED)),
    "operator": _operator,
    "expression": _expression,
    "tree": _tree,
    "verifier": _verifier,
    "version": _matching(_VERSION),
    "device": _matching(_DEVICE),
    "choice": _matching(_CHOICE),
    "free": lambda value, place: void(_text(value, place)),
}
