"""Layers that can go whole: residual blocks, seen in the pass that the analysis makes, and tried one by one.

A block adds something to what it takes and gives the sum, or a LayerNorm of it (BERT's layers). So it can be left out
and shapes stay. Which ones to leave out is for somebody else to say.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.weak import WeakTensorKeyDictionary

from modelpress_runner.edits.base import Edit
from modelpress_runner.edits.bypass import Bypass
from modelpress_runner.edits.replay import replay
from modelpress_runner.errors import CompressionError, first_line
from modelpress_runner.runtime import rng
from modelpress_runner.runtime.graph import call, map_tensors, tensors_in

_SUMS = ("add", "add_", "sub")
_KEEPS = (*_SUMS, "native_dropout", "alias", "detach", "_to_copy", "contiguous", "clone")
_NORM = "native_layer_norm"  # keeps marks of what was a term of a sum before it


class Blocks:
    """Finds modules that give what they take plus something."""

    def __init__(self) -> None:
        self._sums: Any = WeakTensorKeyDictionary()  # by tensor the marks of what is a term of it
        self._added: set[int] = set()  # marks that were seen to have something added
        self._open: list[tuple[str, int, tuple[int, ...]]] = []
        self._marks = 0
        self.found: dict[str, Bypass] = {}
        self._not: set[str] = set()  # once seen to be none

    def operation(self, name: str, args: Sequence[Any], out: Any) -> None:
        """Notes what an operation's result is a sum of."""
        if name not in (*_KEEPS, _NORM):
            return
        given = [arg for arg in args if isinstance(arg, torch.Tensor)]
        terms = {mark for arg in (given[:1] if name == _NORM else given) for mark in self._sums.get(arg, ())}
        if name in _SUMS and len(given) > 1:
            self._added |= terms
        if name == _NORM:
            terms &= self._added
        if terms:
            for result in tensors_in(out):
                self._sums[result] = terms | set(self._sums.get(result, ()))

    def enter(self, name: str, given: Any) -> None:
        """A module begins."""
        first = next((each for each in given if isinstance(each, torch.Tensor)), None)
        self._marks += 1
        if first is not None:
            self._sums[first] = {*self._sums.get(first, ()), self._marks}
        self._open.append((name, self._marks, tuple(first.shape) if first is not None else ()))

    def leave(self, name: str, output: Any) -> None:
        """A module ends."""
        if not self._open or self._open[-1][0] != name:
            return
        _, mark, shape = self._open.pop()
        values = list(output) if isinstance(output, tuple) else [output]
        first = values[0] if values else None
        whole = isinstance(first, torch.Tensor) and tuple(first.shape) == shape and all(v is None for v in values[1:])
        if name and whole and mark in self._sums.get(first, ()):
            self.found[name] = Bypass(name, not isinstance(output, tuple), len(values))
        else:
            self._not.add(name)

    def listed(self, model: nn.Module) -> list[Bypass]:
        """Blocks with parameters, in order, that are that each time they run."""
        return [
            self.found[name]
            for name, module in model.named_modules()
            if name in self.found and name not in self._not and any(True for _ in module.parameters())
        ]


def check_without(model: nn.Module, edits: Sequence[Edit], dummy_input: Any) -> None:
    """Runs a copy of `model` without the layers that `edits` take; it stays as it is.

    Raises:
        CompressionError: it does not run, its outputs have other shapes, or it has as many parameters as before.
    """
    twin = copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()}).eval()
    before = _shapes(twin, dummy_input)
    count = len(list(twin.parameters()))
    replay(twin, edits)
    named = ", ".join(f"'{edit.module}'" for edit in edits if isinstance(edit, Bypass))
    try:
        after = _shapes(twin, dummy_input)
    except Exception as error:
        raise CompressionError(
            f"without {named} the model does not run: {type(error).__name__}: {first_line(error)}"
        ) from error
    if before != after:
        raise CompressionError(f"without {named} the model's outputs change: shapes {before} became {after}")
    if len(list(twin.parameters())) >= count:
        raise CompressionError(f"without {named} the model has no parameter less")


def _shapes(model: nn.Module, dummy_input: Any) -> list[tuple[int, ...]]:
    with rng.fork_rng(0), torch.no_grad():
        return [tuple(tensor.shape) for tensor in tensors_in(call(model, map_tensors(dummy_input, torch.clone)))]
