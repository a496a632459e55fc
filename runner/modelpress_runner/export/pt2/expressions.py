"""Symbolic sizes of a program: arithmetic over integers and symbols, and nothing else.

torch gives these texts to sympy's reader, which is `eval`. Here they are parsed and never evaluated before they are
known to be arithmetic, small enough that sympy takes no time for it.
"""

from __future__ import annotations

import ast
import math
import re

MAX_EXPRESSION = 256  # characters, its symbols without their assumptions
MAX_NODES = 128
MAX_TERMS = 64

SYMPY = frozenset(
    [
        "Integer",
        "Float",
        "Rational",
        "Add",
        "Mul",
        "Pow",
        "Mod",
        "Min",
        "Max",
        "Eq",
        "Ne",
        "Lt",
        "Le",
        "Gt",
        "Ge",
        "And",
        "Or",
        "Not",
        "floor",
        "ceiling",
        "Abs",
        "FloorDiv",
        "ModularIndexing",
        "Where",
        "PythonMod",
        "CleanDiv",
        "CeilToInt",
        "FloorToInt",
        "CeilDiv",
        "PowByNatural",
        "FloatTrueDiv",
        "IntTrueDiv",
        "TruncToFloat",
        "TruncToInt",
        "RoundToInt",
        "ToFloat",
        "Identity",
        "Equality",
        "Unequality",
        "StrictLessThan",
        "LessThan",
        "StrictGreaterThan",
        "GreaterThan",
    ]
)
_BINARY = frozenset(["Mult", "FloorDiv", "Mod", "Div", "Compare"])
SYMBOL = re.compile(r"[a-z]{1,4}\d{1,19}", re.ASCII)
_SYMBOL_CALL = re.compile(
    r"Symbol\('([a-z]{1,4}\d{1,19})'"
    r"(?:, (?:positive|integer|nonnegative|negative|zero|nonzero|real)=(?:True|False)){0,4}\)",
    re.ASCII,
)
_FLOAT = re.compile(r"-?\d{1,20}(?:\.\d{1,20})?(?:e[+-]?\d{1,2})?", re.ASCII)


def symbol(text: str) -> str | None:
    """The symbol that the text of a size is, as "s77"; None if it is another expression."""
    short = _SYMBOL_CALL.sub(r"\1", text)
    return short if SYMBOL.fullmatch(short) else None


def fault(text: str) -> str | None:
    """What is wrong with the text of a size, as "is no expression"; None: it is arithmetic as torch writes it."""
    short = _SYMBOL_CALL.sub(r"\1", text) if text.isascii() else text
    if len(short) > MAX_EXPRESSION or not short.isascii():
        return f"has the text {short[:64]!r}, which is longer than {MAX_EXPRESSION} characters"
    try:
        tree = ast.parse(short, mode="eval")
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return "is no expression"
    if sum(1 for _ in ast.walk(tree)) > MAX_NODES:
        return f"has the text {short[:64]!r}, which is larger than any size of a model"
    terms = _terms(tree.body)
    if terms is None:
        return f"has the text {short[:64]!r}, which is more than arithmetic"
    if terms > MAX_TERMS:
        return f"has the text {short[:64]!r}, which is larger than any size of a model"
    return None


def _terms(node: ast.AST) -> int | None:
    """Summands of an expression when it is multiplied out, which sympy does; None: it is no arithmetic."""
    if isinstance(node, ast.Constant):
        return 1 if type(node.value) is int and node.value < 2**63 else None
    if isinstance(node, ast.Name):
        return 1 if SYMBOL.fullmatch(node.id) or node.id in ("true", "false") else None
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return _terms(node.operand)
    if isinstance(node, ast.BinOp):
        return _binary(type(node.op).__name__, [node.left, node.right])
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        return _binary("Compare", [node.left, *node.comparators])
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in SYMPY:
        return _call(node.func.id, node)
    return None


def _call(name: str, node: ast.Call) -> int | None:
    if name == "Float":
        first = node.args[0] if len(node.args) == 1 else None
        known = isinstance(first, ast.Constant) and isinstance(first.value, str) and bool(_FLOAT.fullmatch(first.value))
        exact = [k.value for k in node.keywords if k.arg == "precision" and isinstance(k.value, ast.Constant)]
        return (
            1 if known and len(exact) == len(node.keywords) <= 1 and all(value.value == 53 for value in exact) else None
        )
    if node.keywords or not node.args:
        return None
    if name in ("Integer", "Rational"):
        plain = [arg.operand if isinstance(arg, ast.UnaryOp) else arg for arg in node.args]
        known = all(isinstance(arg, ast.Constant) and type(arg.value) is int for arg in plain)
        return 1 if known and all(_terms(arg) for arg in node.args) and len(plain) <= 2 else None
    return _binary(name, node.args)


def _binary(name: str, args: list[ast.expr]) -> int | None:
    counts = [_terms(arg) for arg in args]
    if any(count is None for count in counts):
        return None
    found = [count for count in counts if count is not None]
    if name in ("Pow", "PowByNatural"):
        power = args[1] if len(args) == 2 else None
        if isinstance(power, ast.Call) and len(power.args) == 1:
            power = power.args[0]
        if not isinstance(power, ast.Constant) or type(power.value) is not int or not 0 <= power.value <= 4:
            return None
        return int(found[0] ** max(power.value, 1))
    if name in ("Min", "Max"):
        # sympy compares each with each, and those inside again.
        return int(math.prod(count + 1 for count in found))
    if name in ("Add", "Sub"):
        return sum(found)
    if name in _BINARY or name in SYMPY:
        return math.prod(found)
    return None
