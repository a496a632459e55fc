"""How many bits each layer's weight gets for a budget: layers lose bits in the order of what that does to the model's
outputs for each byte saved, and the first place on that path that fits is taken (methods.prune.budget)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from modelpress.api.v1alpha1 import BitBudget
from modelpress_runner.edits.quantizers import QuantizerSpec, make
from modelpress_runner.errors import InvalidSpecError
from modelpress_runner.methods.prune.budget import Path, first_within
from modelpress_runner.methods.quantize.effects import Effects
from modelpress_runner.methods.quantize.times import Times

Bits = dict[str, int | None]  # None: as it is


@dataclass(frozen=True)
class Option:
    """What a layer may have: bits, what it costs (bytes of its weight, or ms), and what that does to the outputs."""

    bits: int | None
    cost: float
    effect: float


def stored_bytes(weight: torch.Tensor, spec: QuantizerSpec) -> int:
    """Bytes of a weight's integers, scales and zero points."""
    quantizer = make(spec, weight)
    each = 8 // quantizer.bits if 8 % quantizer.bits == 0 else 1
    held: int = sum(value.numel() * value.element_size() for value in quantizer.state_dict().values())
    return -(-weight.numel() // each) + held


def hull(options: Sequence[Option]) -> list[Option]:
    """Those that are worth having, from what costs most to what costs least: none that another beats in both, and each
    step loses more for what it saves than the one before."""
    kept: list[Option] = []
    for option in sorted(options, key=lambda each: (-each.cost, each.effect)):
        if kept and option.cost >= kept[-1].cost:
            continue
        while kept and option.effect <= kept[-1].effect:
            kept.pop()
        while len(kept) > 1 and _slope(kept[-2], kept[-1]) >= _slope(kept[-1], option):
            kept.pop()
        kept.append(option)
    return kept


def _slope(more: Option, fewer: Option) -> float:
    return (fewer.effect - more.effect) / (more.cost - fewer.cost)


@dataclass(frozen=True)
class Layers:
    """The layers' options, hulls from the greatest cost to the least, and the path on which costs fall."""

    names: tuple[str, ...]
    options: tuple[list[Option], ...]
    path: Path

    @classmethod
    def of(cls, options: Mapping[str, Sequence[Option]]) -> Layers:
        """Of equal steps that of the earlier layer comes first."""
        hulls = tuple(hull(each) for each in options.values())
        steps = [
            (_slope(own[at - 1], own[at]), number, at) for number, own in enumerate(hulls) for at in range(1, len(own))
        ]
        return cls(tuple(options), hulls, Path((0,) * len(hulls), tuple((n, at) for _, n, at in sorted(steps))))

    def bits(self, steps: int) -> Bits:
        """What each layer has after so many steps."""
        places = self.path.removed(steps)
        return {name: own[at].bits for name, own, at in zip(self.names, self.options, places, strict=True)}

    def cost(self, steps: int) -> float:
        """Of all layers together."""
        places = self.path.removed(steps)
        return sum(own[at].cost for own, at in zip(self.options, places, strict=True))


def layer_options(
    weights: Mapping[str, torch.Tensor],
    specs: Mapping[str, Callable[[int], QuantizerSpec]],
    effects: Effects,
    keep: bool,
    times: Times | None = None,
    by_bytes: bool = True,
    only_faster: bool = False,
) -> dict[str, list[Option]]:
    """The options of each layer.

    Args:
        weights: by layer.
        specs: what its quantizer is with so many bits.
        effects: of the bits that it may have.
        keep: it may stay as it is.
        times: what they take, where they were timed.
        by_bytes: bytes are the cost; else times are, and a layer without one stays as it is.
        only_faster: bits with which a layer is not faster are no option.
    """
    out: dict[str, list[Option]] = {}
    for name, weight in weights.items():
        row = effects[name]
        own = {} if times is None else times.get(name, {})
        if only_faster:
            row = {bits: effect for bits, effect in row.items() if bits in own and own[bits].faster}
        if times is not None and not by_bytes:
            whole = next((time.before for time in own.values()), 0.0)
            out[name] = [Option(None, whole, 0.0)] if keep or not own else []
            out[name] += [Option(bits, own[bits].after, effect) for bits, effect in row.items() if bits in own]
            continue
        out[name] = [Option(None, weight.numel() * weight.element_size(), 0.0)] if keep else []
        out[name] += [Option(bits, stored_bytes(weight, specs[name](bits)), effect) for bits, effect in row.items()]
    return out


def solve(
    layers: Layers, budget: BitBudget, whole: float, cost: Callable[[int], float], path: str
) -> tuple[Bits, float]:
    """Bits for a budget, and what they cost.

    Args:
        layers: with their path.
        budget: of the stage.
        whole: what the model costs before.
        cost: what it costs after so many steps.
        path: of the budget.

    Raises:
        InvalidSpecError: nothing on the path is within it.
    """
    bound = budget.max if budget.max is not None else (budget.max_ratio or 0.0) * whole
    known: dict[int, float] = {}
    last = len(layers.path.steps)
    place = first_within(last, bound, cost, known)
    if place is None:
        raise InvalidSpecError(
            f"{budget.metric} cannot come down to {bound:g}: with the fewest bits of all that is selected it is "
            f"{known[last]:.6g}; select more, allow fewer bits, or raise the budget",
            path,
        )
    return layers.bits(place), known[place]
