"""What a program calls: which of it a graph may name at all, which stands in the list, which is registered here."""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from importlib import resources
from typing import Any

import torch

# Higher-order operators take graphs, and are a closed list. No other callable of torch may be named.
HIGHER_ORDER = frozenset(["cond", "while_loop", "wrap_with_set_grad_enabled", "wrap_with_autocast"])
OPERATOR = frozenset(
    [
        "add",
        "sub",
        "mul",
        "floordiv",
        "truediv",
        "mod",
        "pow",
        "neg",
        "eq",
        "ne",
        "lt",
        "le",
        "gt",
        "ge",
        "and_",
        "or_",
        "not_",
        "getitem",
        "index",
        "pos",
        "abs",
    ]
)
MATH = frozenset(["ceil", "floor", "trunc", "sqrt"])
SYMBOLIC = frozenset(["sym_float", "sym_int", "sym_max", "sym_min", "sym_not", "sym_ite", "_sym_sqrt"])
# Namespaces that come with torch and hold no mathematics: files, networks, profilers, compilers.
FORBIDDEN_NAMESPACES = frozenset(
    [
        "prim",
        "rpc",
        "c10d",
        "_c10d_functional",
        "c10d_functional",
        "_c10d_functional_autograd",
        "symm_mem",
        "dist",
        "_dtensor",
        "inductor",
        "profiler",
        "static_runtime",
        "debugprims",
        "rngprims",
        "aoti_torch",
        "export",
        "testlib",
        "_test",
        "streams",
        "bc_fx",
    ]
)
FORBIDDEN_OPERATORS = frozenset(["aten.from_file", "aten.save", "aten.warn"])
BUILTIN_NAMESPACES = frozenset(
    ["aten", "prims", "quantized", "quantized_decomposed", "higher_order", "mkldnn", "onednn"]
)
IDENTIFIER = re.compile(r"[A-Za-z_]\w{0,511}", re.ASCII)
_FUNCTIONS = (
    {("_operator", name) for name in OPERATOR}
    | {("math", name) for name in MATH}
    | {("torch", name) for name in SYMBOLIC}
)
_VALUES = frozenset(["tensor_values", "sym_int_values", "sym_float_values", "sym_bool_values"])


def is_function_of_a_model(text: str) -> bool:
    """Whether a text names an operator, a higher-order one, or a function of numbers, of those that a graph needs."""
    head, _, rest = text.partition(".")
    if (head, rest) in _FUNCTIONS:
        return True
    parts = text.split(".")
    named = all(IDENTIFIER.fullmatch(part) for part in parts)
    if named and parts[:3] == ["torch", "ops", "higher_order"] and len(parts) == 4 and parts[3] in HIGHER_ORDER:
        return True
    if named and parts[:2] == ["torch", "ops"] and len(parts) == 5:
        namespace, name = parts[2], parts[3]
        allowed = namespace not in FORBIDDEN_NAMESPACES and f"{namespace}.{name}" not in FORBIDDEN_OPERATORS
        if allowed and not (namespace.startswith("__") or namespace in ("higher_order", "loaded_libraries")):
            found = resolve(".".join(parts[2:]))
            # One that nobody has registered is no danger either: it is named later, as a missing import.
            if found is None or isinstance(found, torch._ops.OpOverload):
                return True
    return False


def counted(document: Any) -> Counter[str]:
    """How often a program calls what, "torch.ops.namespace.name.overload" or a function, each as it stands there.

    Args:
        document: a program that `graphcheck.check_program` passed.
    """
    return Counter(text for key, text in _texts(document, "") if key in ("target", "as_operator"))


def operators(called: Iterable[str]) -> set[str]:
    """The names of operators among what is called, "namespace.name.overload"."""
    return {text.removeprefix("torch.ops.") for text in called if text.startswith("torch.ops.")}


def missing_operators(names: Iterable[str]) -> set[str]:
    """Those operators that no imported package has registered."""
    return {name for name in names if resolve(name) is None}


def unlisted(names: Iterable[str], named: Collection[str] = ()) -> set[str]:
    """Those operators that neither stand in the list nor are named by the caller.

    Args:
        names: operators of a program that `graphcheck.check_program` passed.
        named: what else may be called, "namespace::name" each.
    """
    return {
        name
        for name in names
        if name not in listed() and not name.startswith("higher_order.") and spelled(name) not in named
    }


def spelled(operator: str) -> str:
    """ "namespace.name.overload" as a caller names it: "namespace::name"."""
    return "::".join(operator.split(".")[:2])


@functools.cache
def listed() -> frozenset[str]:
    """Operators that every program may call, see operators.txt."""
    text = resources.files(__package__).joinpath("operators.txt").read_text(encoding="utf-8")
    return frozenset(line for line in text.splitlines() if line and not line.startswith("#"))


def resolve(name: str) -> Any:
    """The operator "namespace.name.overload"; None if nothing of the name is registered."""
    found: Any = torch.ops
    for part in name.split("."):
        try:
            found = getattr(found, part)
        except (AttributeError, RuntimeError):
            return None
    return found


def _texts(document: Any, key: str) -> Iterator[tuple[str, str]]:
    left = [(key, document)]
    while left:
        key, value = left.pop()
        if isinstance(value, str):
            yield key, value
        elif isinstance(value, dict):
            # Only graphs have these keys; an argument that is called "graph" has none of them.
            left += ((name, item) for name, item in value.items() if key != "graph" or name not in _VALUES)
        elif isinstance(value, list):
            left += [(key, item) for item in value]
