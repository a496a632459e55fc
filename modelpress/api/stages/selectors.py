"""What selects modules in an entry of a configList: names of classes, names, expressions."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from typing import Protocol

from modelpress.api.errors import Problem


class Selecting(Protocol):
    """An entry."""

    @property
    def op_types(self) -> Sequence[str] | None:
        """Class names."""

    @property
    def op_names_re(self) -> Sequence[str] | None:
        """Expressions."""


def selector_problems(entry: Selecting, where: str) -> Iterator[Problem]:
    """Class names that are none, and expressions that are none."""
    for index, name in enumerate(entry.op_types or []):
        if "." in name:
            last = name.rpartition(".")[2]
            message = f"'{name}' is no class name: it has a dot"
            yield Problem(f"{where}.opTypes[{index}]", message, f"write {last}" if last else "write the class name")
    for index, pattern in enumerate(entry.op_names_re or []):
        error = regex_error(pattern)
        if error:
            message = f"'{pattern}' is no regular expression: {error}"
            yield Problem(f"{where}.opNamesRe[{index}]", message, _regex_fix(pattern))


def regex_error(pattern: str) -> str | None:
    """Why a text is no regular expression; None: it is one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            re.compile(pattern)
        except (re.error, OverflowError, RecursionError) as error:
            return str(error)
    return None


def _regex_fix(pattern: str) -> str:
    if pattern.startswith("*"):
        return f"write '.{pattern}'"
    return "correct it, or use opNames for exact names"
