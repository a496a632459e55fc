"""Texts of symbolic sizes: arithmetic passes, and nothing that runs code or takes time."""

from __future__ import annotations

import ast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelpress_runner.export.pt2 import expressions


@pytest.mark.parametrize(
    "text",
    [
        "Symbol('s77', positive=True, integer=True)",
        "Mul(Integer(5), Symbol('s0', positive=True, integer=True))",
        "Min(Integer(4), Add(Symbol('u1', integer=True), Integer(-1)))",
        "FloorDiv(s3, 2) + 2*s3 - 1",
        "Pow(s3, Integer(2))",
        "s3**2 >= 4",
    ],
)
def test_arithmetic_is_let_through(text: str) -> None:
    """Expressions as torch writes them pass."""
    assert expressions.fault(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "s3.__class__",
        "[].append(1)",
        "(lambda: 1)()",
        "Symbol(evil)",
        "Integer('__import__(1)')",
        "eval('1')",
        "9**9**9",
        "Pow(s3, 10**10)",
        "s3[0]",
        "f'{s3}'",
        "x" * 5000,
        "1 if s3 else 2",
        "(s3 := 1)",
        "",
    ],
)
def test_more_than_arithmetic_is_refused(text: str) -> None:
    """Attributes, calls of anything else, large powers and other syntax do not pass."""
    assert expressions.fault(text) is not None


@pytest.mark.parametrize(
    "text",
    [
        "Pow(" * 6 + "Pow(2,64)" + ",64)" * 6,
        "2**64**64",
        "Rational('1e999999999')",
        "Float('0.1', precision=1000000000)",
        "Max(" + ",".join(f"s{index}" for index in range(20)) + ")",
        "Min(s0,Max(s1," * 12 + "s2" + "))" * 12,
        "*".join(f"(s{index}+1)" for index in range(12)),
        "(s0+s1+s2+s3+s4)**4",
        "(s0+1)**64",
        "s\u0661",
        "1e300",
        str(2**63),
        "-" * 250 + "1",
    ],
)
def test_sizes_that_take_time_are_refused(text: str) -> None:
    """What sympy would multiply out, compare or spell for minutes is larger than any size of a model."""
    assert expressions.fault(text) is not None


@given(st.text(alphabet="s0123456789()+-*/ '.,_[]Symbolexact=", max_size=40))
@settings(max_examples=200, deadline=None)
def test_expressions_never_reach_an_attribute(text: str) -> None:
    """Whatever passes holds no attribute access, no subscript and no call but of the known functions."""
    if expressions.fault(text) is not None:
        return
    for part in ast.walk(ast.parse(text, mode="eval")):
        assert not isinstance(part, ast.Attribute | ast.Subscript | ast.Lambda)
        if isinstance(part, ast.Call):
            assert isinstance(part.func, ast.Name)
            assert part.func.id in expressions.SYMPY
