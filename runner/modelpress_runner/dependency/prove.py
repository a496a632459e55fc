"""Proof that a shrunk model is the masked model, only smaller, whatever its weights are.

A shrink only leaves out terms that are exactly zero, so masked and shrunk model differ by the order of summation:
by rounding. That must hold for the model's weights and for any others, because a model is trained on after it is
shrunk, and because equality for one set of weights may be luck (fresh attention is nearly uniform, whatever the
channels of a head are). So both are compared in float64 on the real weights and on several draws of all weights, norms
and buffers, on several inputs. One difference beyond rounding refutes.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from modelpress_runner.dependency.counterparts import Counterparts, UnprovableError, Values
from modelpress_runner.dependency.exact import Seen
from modelpress_runner.dependency.redraw import Draw
from modelpress_runner.dependency.varied import CHANGES, Change, Examples
from modelpress_runner.edits.base import Edit
from modelpress_runner.errors import CompressionError, first_line
from modelpress_runner.runtime.graph import tensors_in
from modelpress_runner.runtime.heap import give_back

DRAWS = 3  # on which both forms must agree
SMALLEST_PROOF = 1  # draws that must have been possible at all

# Largest difference, relative to the largest value of an output, that needs no further question.
_ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2}
_REAL = {torch.complex128: torch.float64, torch.complex64: torch.float32, torch.complex32: torch.float16}
# A larger one is rounding if disturbing all weights by so much (a sum in another order is an exact sum with terms
# changed by that) changes the masked model's output alike. Where that moves the output by more than _UNSTABLE, rounding
# decides what comes out (a near tie, chaos), and another draw has to tell.
_JITTER = {torch.float64: 1e-13, torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}
_UNSTABLE = {torch.float64: 1e-5, torch.float32: 1e-3, torch.float16: 1e-1, torch.bfloat16: 2e-1}
_LIKE_NOISE = 100.0
_PROBES = 3

# The first three are what is wanted; the others are for models that overflow or break on them.
_PLAN = (
    Draw(1, 1.5),
    Draw(2, 0.75),
    Draw(3, 2.5),
    Draw(4, 1.0, buffers=False),
    Draw(5, 0.3, buffers=False),
    Draw(6, 1.0, buffers=False, near=0.5),
    Draw(7, 1.0, buffers=False, near=0.1),
)


@dataclass(frozen=True)
class Proof:
    """What was compared.

    Attributes:
        parameters: of both models, a shared one counted once.
        macs: of one forward pass on the dummy input, fused kernels off.
        difference: the largest of all outputs of all comparisons, relative to the largest value of the output.
        draws: of weights, on which both agreed.
        precision: that it was computed in, "float64" unless the model does not run in it.
        approximation: how far LayerNorms that go without channels move the outputs on the dummy input, relative to
            their largest value; None: it was not asked for.
    """

    parameters: tuple[int, int]
    macs: tuple[int, int]
    difference: float
    draws: int
    precision: str
    approximation: float | None = None


class _UndecidedError(Exception):
    """A comparison that says nothing; the message is the reason."""


def prove(model: nn.Module, edits: Sequence[Edit], dummy_input: Any, loose: bool = False) -> Proof:
    """Compares `model`, whose masks are applied, with what `edits` make of it; it stays as it is.

    Proven: fewer parameters, fewer multiply-accumulates of one forward pass (of convolutions and matrix products, where
    there are any), outputs of the same number and shapes, and equal outputs: on the real weights, and on DRAWS draws of
    all weights in which what is cut away is zero; on the dummy input, and on inputs that fill ranges, of other batch
    sizes and lengths where the model takes them. `loose`: but for LayerNorms, which go without channels that are cut.

    Raises:
        CompressionError: one of them does not hold, the model does not run, or nothing could be compared.
    """
    return _Comparison(model, edits, dummy_input, loose).run(real=True)


def prove_structure(
    model: nn.Module, edits: Sequence[Edit], dummy_input: Any, draws: int = DRAWS, loose: bool = False
) -> Proof:
    """As `prove`, of so many draws only: `model` need not be masked.

    Raises:
        CompressionError: as `prove`.
    """
    return _Comparison(model, edits, dummy_input, loose).run(real=False, draws=draws)


class _Comparison:
    def __init__(self, model: nn.Module, edits: Sequence[Edit], dummy_input: Any, loose: bool) -> None:
        self._loose = loose
        self._forms = Counterparts(model, edits)
        before, after = self._forms.sizes
        if after >= before:
            raise CompressionError(f"the shrink removed nothing: {before} parameters before, {after} after")
        self._examples = Examples(dummy_input)
        self._dummy = dummy_input
        self._wide: torch.dtype | None = None
        self._infinite = False  # the real model gives infinities
        self._worst = 0.0
        self._before = Seen()

    def run(self, real: bool, draws: int = DRAWS) -> Proof:
        try:
            return self._run(real, draws)
        finally:
            self._forms.release()
            give_back()

    def _run(self, real: bool, draws: int) -> Proof:
        expected = self._find_precision(needs_finite=real)
        moved = self._moved(expected) if real and self._loose else None
        macs = self._compare_dummy(expected, real)
        change = self._find_change(real)
        agreed, reasons = 0, []
        rows = self._examples.rows
        sizes = (2, 1, 3) if rows is not None else (None,)
        for number, draw in enumerate(_PLAN):
            if agreed == draws or (number >= DRAWS and agreed):
                break
            shaped = replace(change, rows=sizes[number % len(sizes)], shorter=number % 2 == 1)
            try:
                self._compare_drawn(draw, shaped, change)
            except _UndecidedError as undecided:
                reasons.append(str(undecided))
            else:
                agreed += 1
        if agreed < SMALLEST_PROOF:
            raise UnprovableError(
                f"the shrink can be neither proven nor refuted: of {len(reasons)} draws of the model's weights none "
                f"told ({reasons[-1]})"
            )
        precision = "its own precision" if self._wide is None else str(self._wide).removeprefix("torch.")
        return Proof(self._forms.sizes, macs, self._worst, agreed, precision, moved)

    def _moved(self, loose: list[torch.Tensor]) -> float:
        """How far the outputs are, where LayerNorms go without what is masked, from those where they do not."""
        strict = tensors_in(self._forms.run("masked", self._examples.dummy()))
        gaps = [_gap(old, new) for old, new in zip(strict, loose, strict=True) if old.is_floating_point()]
        return max(gaps, default=0.0)

    # What can be run --------------------------------------------------------------------------------------------------

    def _find_precision(self, needs_finite: bool) -> list[torch.Tensor]:
        """Finds the widest precision in which the masked model runs on the dummy input, and gives what it gives."""
        error: Exception | None = None
        for wide in (torch.float64, torch.float32, None):
            if wide is torch.float64 and any(p.device.type == "mps" for p in self._forms.masked.parameters()):
                continue
            seen = self._before = Seen()
            self._forms.set(Values(), wide)
            try:
                outputs = tensors_in(self._forms.run("masked", self._examples.dummy(), seen, self._loose))
            except Exception as raised:
                error = raised
                continue
            if any(bool(torch.isnan(t).any()) for t in outputs) and needs_finite:
                raise UnprovableError("the model gives NaN on the dummy input, so nothing can be compared")
            self._infinite = any(bool(torch.isinf(t).any()) for t in outputs)
            if outputs and all(not bool(torch.isfinite(t).any()) for t in outputs if t.numel()) and needs_finite:
                raise UnprovableError("the model gives infinity on the dummy input, so nothing can be compared")
            self._wide, self._examples = wide, Examples(self._dummy, seen.tables)
            return outputs
        assert error is not None
        raise UnprovableError(
            f"the model fails on the dummy input: {type(error).__name__}: {first_line(error)}"
        ) from error

    def _find_change(self, real: bool) -> Change:
        """The most that can be changed of the dummy input; with `real`, both forms are compared on that, too."""
        for change in CHANGES:
            self._forms.set(Values(), self._wide)
            try:
                expected = self._masked(self._examples.varied(change, 1))
            except _UndecidedError:
                continue
            if real:
                try:
                    self._judge(Values(), functools.partial(self._examples.varied, change, 1), expected)
                except _UndecidedError:
                    continue
            return change
        return Change(numbers=False, indices=False, masks=False)

    # Comparisons ------------------------------------------------------------------------------------------------------

    def _compare_dummy(self, expected: list[torch.Tensor], real: bool) -> tuple[int, int]:
        """Runs the shrunk form on the dummy input, compares if the masks are `real`, and counts MACs."""
        after = Seen()
        if real:
            with contextlib.suppress(_UndecidedError):  # a dummy input of zeros is full of ties; draws tell
                self._judge(Values(), self._examples.dummy, expected, after)
        else:
            self._shrunk(self._examples.dummy(), after)
        macs, new_macs = self._before.flops // 2, after.flops // 2
        if macs and new_macs >= macs:
            raise CompressionError(f"the shrink saved no work: {macs} MACs before, {new_macs} after")
        return macs, new_macs

    def _compare_drawn(self, draw: Draw, shaped: Change, change: Change) -> None:
        seed = 10 + draw.seed
        last: _UndecidedError | None = None
        for each in dict.fromkeys((shaped, replace(shaped, shorter=False), change)):
            values = Values(draw)
            try:
                if draw.near is None:
                    values = self._forms.calibrated(self._examples.varied(each, seed), values, self._wide)
                self._forms.set(values, self._wide)
                expected = self._masked(self._examples.varied(each, seed))
            except _UndecidedError as undecided:
                last = undecided
                continue
            except Exception as error:
                last = _UndecidedError(f"{type(error).__name__}: {first_line(error)}")
                continue
            floats = [t for t in expected if t.is_floating_point() or t.is_complex()]
            if floats and not any(bool(t.count_nonzero()) for t in floats):
                last = _UndecidedError("all outputs were zero")
                continue
            self._judge(values, functools.partial(self._examples.varied, each, seed), expected)
            return
        assert last is not None
        raise last

    def _judge(
        self, values: Values, inputs: Callable[[], Any], expected: list[torch.Tensor], seen: Seen | None = None
    ) -> None:
        """Compares the shrunk form, with `values` set, with what the masked one gave.

        Raises:
            CompressionError: they differ.
            _UndecidedError: rounding decides what the masked form gives.
        """
        found = self._shrunk(inputs(), seen)
        shapes, new_shapes = ([tuple(t.shape) for t in tensors] for tensors in (expected, found))
        if shapes != new_shapes:
            raise CompressionError(f"the shrink changed the model's outputs: shapes {shapes} became {new_shapes}")
        gaps = [_gap(old, new) for old, new in zip(expected, found, strict=True)]
        limits = [_limit(_ROUNDING, t) for t in expected]
        if all(gap <= limit for gap, limit in zip(gaps, limits, strict=True)):
            self._worst = max([self._worst, *gaps])
            return
        noise = [0.0] * len(expected)
        jitter = _JITTER[self._wide or torch.float32]
        for number in range(_PROBES):
            self._forms.set(replace(values, jitter=jitter, number=100 + number), self._wide)
            again = self._masked(inputs())
            if [t.shape for t in again] != [t.shape for t in expected]:
                raise _UndecidedError("rounding decides the shapes of its outputs")
            noise = [max(n, _gap(old, new)) for n, old, new in zip(noise, expected, again, strict=True)]
        self._forms.set(values, self._wide)
        for gap, limit, around, tensor in zip(gaps, limits, noise, expected, strict=True):
            if gap <= limit:
                continue
            if around > _limit(_UNSTABLE, tensor):
                raise _UndecidedError("rounding decides what it gives")
            if not gap <= _LIKE_NOISE * around:
                raise CompressionError(
                    f"the shrunk model's output differs from the masked model's by {gap:.3g} of its largest value "
                    f"(allowed: {max(limit, _LIKE_NOISE * around):.1g}), so something else in the model depends on the "
                    "removed channels"
                )
        self._worst = max([self._worst, *gaps])

    def _masked(self, inputs: Any) -> list[torch.Tensor]:
        try:
            outputs = tensors_in(self._forms.run("masked", inputs, loose=self._loose))
        except Exception as error:
            raise _UndecidedError(f"{type(error).__name__}: {first_line(error)}") from error
        if any(bool(torch.isnan(t).any()) for t in outputs):
            raise _UndecidedError("the outputs were NaN")
        if not self._infinite and any(bool(torch.isinf(t).any()) for t in outputs):
            raise _UndecidedError("the outputs were infinite")
        return outputs

    def _shrunk(self, inputs: Any, seen: Seen | None = None) -> list[torch.Tensor]:
        try:
            return tensors_in(self._forms.run("shrunk", inputs, seen))
        except Exception as error:
            raise CompressionError(
                f"the shrunk model does not run: {type(error).__name__}: {first_line(error)}"
            ) from error


def _gap(old: torch.Tensor, new: torch.Tensor) -> float:
    """The largest difference, relative to the largest finite value; of whole numbers 1 if any differs.

    Infinities must be the same; where they are not, or something is NaN, it is infinite.
    """
    if old.numel() == 0:
        return 0.0
    if not (old.is_floating_point() or old.is_complex()):
        return 0.0 if torch.equal(old, new) else 1.0
    finite = torch.isfinite(old)
    if not bool((torch.isfinite(new) == finite).all()) or not torch.equal(old[~finite], new[~finite]):
        return math.inf
    if not bool(finite.any()):
        return 0.0
    wide = torch.complex128 if old.is_complex() else torch.float64
    if old.device.type == "mps":
        wide = old.dtype
    old, new = old[finite].to(wide), new[finite].to(wide)
    scale = float(old.abs().max())
    gap = float((old - new).abs().max())
    return gap / scale if scale > 0 else (math.inf if gap > 0 else 0.0)


def _limit(table: dict[torch.dtype, float], tensor: torch.Tensor) -> float:
    return table.get(_REAL.get(tensor.dtype, tensor.dtype), 0.0)
