"""GPTQ (Frantar et al. 2022, arXiv 2210.17323): columns are rounded one after another, and those that are left make up
for the error, by the second moments of what the layer takes."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from modelpress_runner.edits.quantizers import Quantizer
from modelpress_runner.errors import CompressionError
from modelpress_runner.methods.quantize import numerics
from modelpress_runner.methods.quantize.layerwise import Block, LayerwiseMethod, Settled
from modelpress_runner.methods.quantize.products import error, matrix, shaped
from modelpress_runner.methods.quantize.protocol import scale_type
from modelpress_runner.runtime.heap import give_back

_ROWS = 512  # of a weight at a time
_COLUMNS = 128  # whose errors are spread at a time
_RAISES = 4  # of the damping, tenfold each, before it is given up


@dataclass
class Grid:
    """The numbers of a weight as a matrix (outputs, inputs): scales and zero points of each output and group.

    Attributes:
        scale, zero: (outputs, groups), float32 and int32.
        group: columns that share one.
        qmin, qmax, scheme: as of Numbers.
        how: minMax or mse.
        kept: the type that scales are kept in.
    """

    scale: torch.Tensor
    zero: torch.Tensor
    group: int
    qmin: int
    qmax: int
    scheme: str
    how: str
    kept: torch.dtype = torch.float32

    @classmethod
    def of(cls, quantizer: Quantizer, outputs: int, inputs: int, how: str, kept: torch.dtype = torch.float32) -> Grid:
        """As the quantizer is set."""
        group = quantizer.group or inputs
        held = (quantizer.scale, quantizer.zero_point)
        scale, zero = (each.expand(outputs) if each.dim() == 0 else each for each in held)
        return cls(
            scale.reshape(outputs, -1).clone(),
            zero.reshape(outputs, -1).clone(),
            group,
            quantizer.qmin,
            quantizer.qmax,
            quantizer.spec.numbers.scheme,
            how,
            kept,
        )

    def set(self, number: int, columns: torch.Tensor) -> None:
        """Sets group `number` by its columns, (outputs, group)."""
        values = columns.float()
        low, high = values.amin(1), values.amax(1)
        if self.how == "mse":
            low, high = numerics.least_error(values, self.qmin, self.qmax, self.scheme)
        scale, zero = numerics.scale_and_zero(low, high, self.qmin, self.qmax, self.scheme)
        self.scale[:, number], self.zero[:, number] = scale.to(self.kept), zero

    def integers(self, column: torch.Tensor, number: int) -> torch.Tensor:
        """The integers of a column, (outputs,), of group `number`, by the arithmetic of AffineQuantizer.integers."""
        scale, zero = self.scale[:, number], self.zero[:, number]
        return torch.round(column.float() * (1.0 / scale) + zero).clamp(self.qmin, self.qmax).to(torch.int32)

    def floats(self, integers: torch.Tensor) -> torch.Tensor:
        """What a matrix of integers stands for, float32."""
        each = self.group
        scale, zero = (value.repeat_interleave(each, 1)[:, : integers.shape[1]] for value in (self.scale, self.zero))
        return (integers - zero) * scale


def nearest(weight: torch.Tensor, grid: Grid) -> torch.Tensor:
    """The integers of a matrix, each for itself."""
    out = torch.empty(weight.shape, dtype=torch.int16, device=weight.device)
    for at in range(weight.shape[1]):
        out[:, at] = grid.integers(weight[:, at], at // grid.group)
    return out


def costs(weight: torch.Tensor, integers: torch.Tensor, grid: Grid, products: torch.Tensor) -> torch.Tensor:
    """Squared error of each output that integers make, (outputs,)."""
    parts = []
    for begin in range(0, len(weight), _ROWS):
        at = slice(begin, begin + _ROWS)
        own = replace(grid, scale=grid.scale[at], zero=grid.zero[at])
        parts.append(error(own.floats(integers[at]) - weight[at], products))
    return torch.cat(parts)


def solve(
    weight: torch.Tensor,
    products: torch.Tensor,
    grid: Grid,
    *,
    damping: float,
    act_order: bool = False,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """The integers of a weight, int16; sets the scales of `grid` where groups have their own.

    Args:
        weight: (outputs, inputs).
        products: (inputs, inputs), the sum of outer products of what the layer takes, of the same type.
        grid: set by the weights as they are.
        damping: of the mean second moment, added to each.
        act_order: the largest inputs first.
        mask: of pruned weights, which are zero and stay so; their errors are made up for, too.

    Raises:
        CompressionError: the moments cannot be factored, whatever the damping.
    """
    width = weight.shape[1]
    diagonal = products.diagonal().clone()
    silent = diagonal <= 0
    order = torch.arange(width, device=weight.device)
    if act_order:
        order = torch.argsort(diagonal, descending=True, stable=True)
        products = products[order][:, order]
    work = weight[:, order]  # a copy
    factor = _factor(products, silent[order], damping)
    kept = None if mask is None else mask[:, order] != 0
    out = torch.zeros(weight.shape, dtype=torch.int16, device=weight.device)
    moves = grid.group < width and not act_order
    step = grid.group * max(1, _COLUMNS // grid.group) if grid.group < width else _COLUMNS
    for begin in range(0, width, step):
        end = min(begin + step, width)
        errors = torch.zeros(weight.shape[0], end - begin, dtype=work.dtype, device=work.device)
        for at in range(begin, end):
            number = int(order[at]) // grid.group
            if moves and at % grid.group == 0:
                grid.set(number, work[:, at : at + grid.group])
            integers = grid.integers(work[:, at], number)
            if kept is not None:
                integers = torch.where(kept[:, at], integers, grid.zero[:, number])
            out[:, at] = integers
            rounded = ((integers - grid.zero[:, number]) * grid.scale[:, number]).to(work.dtype)
            errors[:, at - begin] = (work[:, at] - rounded) / factor[at, at]
            work[:, at + 1 : end] -= torch.outer(errors[:, at - begin], factor[at, at + 1 : end])
        work[:, end:] -= errors @ factor[begin:end, end:]
    back = torch.empty_like(out)
    back[:, order] = out
    return back


def _factor(products: torch.Tensor, silent: torch.Tensor, damping: float) -> torch.Tensor:
    """The upper Cholesky factor of the inverse of the damped moments; what is never seen is no one's business."""
    mean = float(products.diagonal().mean())
    if not math.isfinite(mean):
        raise CompressionError("inputs are NaN or infinite; check the calibration data")
    mean = mean or 1.0
    for number in range(_RAISES + 1):
        held = products.clone()  # everything happens in there: of a wide layer it is large
        held.diagonal().add_(damping * 10**number * mean)
        held[silent, silent] = 1.0
        failed = torch.zeros((), dtype=torch.int32, device=held.device)
        torch.linalg.cholesky_ex(held, out=(held, failed))
        if int(failed):
            continue
        torch.cholesky_inverse(held, out=held)
        torch.linalg.cholesky_ex(held, upper=True, out=(held, failed))
        if not int(failed):
            return held
    raise CompressionError("second moments of inputs cannot be factored; give more calibration data, or raise damping")


class Gptq(LayerwiseMethod):
    """Each output for itself; where rounding to the nearest is better on the data, it stays."""

    name = "gptq"

    def settle(self, block: Block) -> dict[str, Settled]:
        """As LayerwiseMethod.settle."""
        out: dict[str, Settled] = {}
        for name, taken in block.taken.items():
            layer = block.layers[name]
            quantizer, held = layer.weight_quantizer, layer.get_parameter("weight")
            if quantizer is None:
                continue
            products = taken.products.to(held.device)
            weight = matrix(layer, held.detach()).to(products.dtype)
            pruned = block.masks.get(name, {}).get("weight")
            mask = None if pruned is None else matrix(layer, pruned)
            how, kept = block.settings.weight_observer, scale_type(block.settings, held)
            plain, solved = (Grid.of(quantizer, weight.shape[0], weight.shape[1], how, kept) for _ in range(2))
            damping, act_order = block.settings.damping, block.settings.act_order
            try:
                found = solve(weight, products, solved, damping=damping, act_order=act_order, mask=mask)
            except CompressionError as problem:
                raise CompressionError(f"'{name}': {problem}") from problem
            simple = nearest(weight, plain)
            own, other = costs(weight, found, solved, products), costs(weight, simple, plain, products)
            worse = own > other
            found = torch.where(worse[:, None], simple, found)
            if quantizer.axis is not None:
                scale = torch.where(worse[:, None], plain.scale, solved.scale)
                zero = torch.where(worse[:, None], plain.zero, solved.zero)
                quantizer.scale.copy_(scale.reshape(quantizer.scale.shape))
                quantizer.zero_point.copy_(zero.reshape(quantizer.zero_point.shape))
            signal = float(error(weight, products).sum())
            noise = float(torch.minimum(own, other).sum())
            taken.products = products.new_zeros(0, 0)  # it is not needed any more
            del products, weight, simple
            give_back()  # the widest layer comes last in most blocks
            out[name] = Settled(
                noise / signal if signal else math.nan, shaped(layer, found, held.shape).to(torch.int16)
            )
        return out


METHOD = Gptq()
