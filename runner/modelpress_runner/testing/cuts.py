"""Cuts that are right and cuts that are wrong by construction, on nets of twelve kinds.

What is right is written down by hand for each net, as sets of channels that may go together: it does not come from any
analysis. A wrong cut differs from a right one in a way that is known to change the function.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from modelpress_runner.edits.axes import axis_of
from modelpress_runner.edits.cuts import Cut

# (module, axis, channels of the axis for each removable unit): [[0], [1], ...] is one channel for each unit.
Axis = tuple[str, str, Callable[[int], list[int]]]


@dataclass(frozen=True)
class CutGroup:
    """Units that may go: `axes` lose channels for each unit that goes."""

    units: int
    axes: tuple[Axis, ...]


@dataclass(frozen=True)
class Net:
    """One kind of net, its input, what may be cut of it, and sets of axes whose cut is wrong whichever channels go."""

    build: Callable[[], nn.Module]
    inputs: Callable[[], object]
    groups: tuple[CutGroup, ...]
    wrong: tuple[tuple[str, CutGroup], ...] = ()


def one(unit: int) -> list[int]:
    """A channel for each unit."""
    return [unit]


def block(size: int, start: int = 0) -> Callable[[int], list[int]]:
    """`size` channels for each unit, one behind the other, from `start` on."""
    return lambda unit: list(range(start + unit * size, start + (unit + 1) * size))


def strided(size: int, step: int) -> Callable[[int], list[int]]:
    """The channels at one place of each of `size` blocks of `step`."""
    return lambda unit: [unit + step * number for number in range(size)]


class _Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv1, self.norm1 = nn.Conv2d(8, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.conv2, self.norm2 = nn.Conv2d(12, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.head = nn.Linear(8 * 16, 5)

    def forward(self, x: torch.Tensor) -> Any:
        """As nn.Module.forward."""
        x = F.relu(self.norm(self.stem(x)))
        x = F.relu(x + self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))))
        return self.head(F.max_pool2d(x, 2).flatten(1))


class _Heads(nn.Module):
    """Self-attention; `heads` are counted from the width if `fixed` gives the width of one."""

    def __init__(self, fixed: int | None, scale: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(30, 16)
        self.q, self.k, self.v, self.o = (nn.Linear(16, 16) for _ in range(4))
        self.head, self.fixed, self.scale = nn.Linear(16, 4), fixed, scale

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> Any:
        """As nn.Module.forward."""
        x = self.embed(tokens)
        n, length, _ = x.shape
        heads = 4 if self.fixed is None else -1
        width = -1 if self.fixed is None else self.fixed
        q, k, v = (layer(x).view(n, length, heads, width).transpose(1, 2) for layer in (self.q, self.k, self.v))
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1] if self.scale else 4)
        weights = scores.masked_fill(mask[:, None, None] == 0, -1e9).softmax(-1)
        return self.head(self.o((weights @ v).transpose(1, 2).reshape(n, length, -1)).mean(1))


class _Feed(nn.Module):
    """A transformer's feed-forward, with a norm over the stream."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Embedding(20, 8), nn.LayerNorm(8)
        self.gate, self.up, self.down = nn.Linear(8, 24), nn.Linear(8, 24), nn.Linear(24, 8)
        self.head = nn.Linear(8, 6)

    def forward(self, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
        """As nn.Module.forward."""
        x = self.embed(tokens)
        h = self.norm(x)
        return {"scores": self.head(x + self.down(F.silu(self.gate(h)) * self.up(h)))}


class _Grouped(nn.Module):
    def __init__(self, groups: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1, groups=groups)
        self.conv3 = nn.Conv2d(16, 4, 1)

    def forward(self, x: torch.Tensor) -> Any:
        """As nn.Module.forward."""
        return self.conv3(torch.sigmoid(self.conv2(torch.sigmoid(self.conv1(x)))))


class _Normed(nn.Module):
    """GroupNorm with 4 groups of 3 channels; a mean over channels if `mean`."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm, self.conv2 = nn.Conv2d(3, 12, 3), nn.GroupNorm(4, 12), nn.Conv2d(12, 5, 3)

    def forward(self, x: torch.Tensor) -> Any:
        """As nn.Module.forward."""
        return self.conv2(F.relu(self.norm(self.conv1(x))))


class _Concat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(3, 10, 1)
        self.norm, self.last = nn.BatchNorm2d(19), nn.Conv2d(19, 4, 1)

    def forward(self, x: torch.Tensor) -> Any:
        """As nn.Module.forward."""
        return self.last(F.relu(self.norm(torch.cat([self.left(x), x, self.right(x)], 1))))


class _Wide(nn.Module):
    """Something hangs on how many channels there are."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.conv1, self.conv2, self.kind = nn.Conv1d(3, 12, 3, padding=1), nn.Conv1d(12, 4, 3), kind

    def forward(self, x: torch.Tensor) -> Any:
        """As nn.Module.forward."""
        x = F.gelu(self.conv1(x))
        if self.kind == "mean":
            x = x - x.mean(1, keepdim=True)
        elif self.kind == "scale":
            x = x / math.sqrt(x.shape[1])
        elif self.kind == "softmax":
            x = x.softmax(1)
        elif self.kind == "sort":
            x = x.sort(1).values
        return self.conv2(x)


class _Signal(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm, self.conv2 = (
            nn.Conv1d(2, 8, 3, padding=1),
            nn.BatchNorm1d(8),
            nn.Conv1d(8, 6, 3, padding=1),
        )
        self.hidden, self.head = nn.Linear(60, 20), nn.Linear(20, 3)

    def forward(self, x: torch.Tensor) -> Any:
        """As nn.Module.forward."""
        x = F.relu(self.conv2(F.relu(self.norm(self.conv1(x)))))
        return self.head(torch.tanh(self.hidden(x.flatten(1))))


class _Mobile(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.expand, self.norm = nn.Conv2d(3, 12, 1, bias=False), nn.BatchNorm2d(12)
        self.depthwise, self.act = nn.Conv2d(12, 12, 3, groups=12, padding=1), nn.PReLU(12)
        self.squeeze, self.excite = nn.Conv2d(12, 4, 1), nn.Conv2d(4, 12, 1)
        self.project = nn.Conv2d(12, 5, 1)

    def forward(self, x: torch.Tensor) -> Any:
        """As nn.Module.forward."""
        x = self.act(self.depthwise(F.hardswish(self.norm(self.expand(x)))))
        x = x * torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean((2, 3), keepdim=True)))))
        return self.project(x)


class _Routed(nn.Module):
    """Mixture of experts: the best of three by argmax."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(8, 3)
        self.up = nn.ModuleList(nn.Linear(8, 10) for _ in range(3))
        self.down = nn.ModuleList(nn.Linear(10, 8) for _ in range(3))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """As nn.Module.forward."""
        choice = self.router(x).argmax(-1)
        out = torch.zeros_like(x)
        for number, (up, down) in enumerate(zip(self.up, self.down, strict=True)):
            out = torch.where((choice == number)[..., None], down(F.gelu(up(x))), out)
        return out, choice


def _group(units: int, *axes: tuple[str, str] | Axis) -> CutGroup:
    return CutGroup(units, tuple(axis if len(axis) == 3 else (*axis, one) for axis in axes))


def _tokens() -> dict[str, torch.Tensor]:
    return {"tokens": torch.zeros(2, 8, dtype=torch.long), "mask": torch.ones(2, 8, dtype=torch.long)}


_ATTENTION = ("q", "k", "v")
_BY_HEAD = CutGroup(4, (*((name, "out", block(4)) for name in _ATTENTION), ("o", "in", block(4))))
_ACROSS = CutGroup(4, (*((name, "out", strided(4, 4)) for name in _ATTENTION), ("o", "in", strided(4, 4))))
_WIDTH = _group(12, ("conv1", "out"), ("conv2", "in"))


def _wide(kind: str) -> Net:
    if kind == "none":
        return Net(lambda: _Wide("none"), lambda: torch.zeros(2, 3, 9), (_WIDTH,))
    return Net(lambda: _Wide(kind), lambda: torch.zeros(2, 3, 9), (), ((f"{kind} over the channels", _WIDTH),))


NETS: dict[str, Net] = {
    "residual": Net(
        _Residual,
        lambda: torch.ones(2, 1, 8, 8),
        (
            _group(
                8,
                ("stem", "out"),
                ("norm", "out"),
                ("conv2", "out"),
                ("norm2", "out"),
                ("conv1", "in"),
                ("head", "in", block(16)),
            ),
            _group(12, ("conv1", "out"), ("norm1", "out"), ("conv2", "in")),
        ),
        (
            (
                "one channel of a map instead of the whole map",
                CutGroup(
                    8,
                    (
                        ("stem", "out", one),
                        ("norm", "out", one),
                        ("conv2", "out", one),
                        ("norm2", "out", one),
                        ("conv1", "in", one),
                        ("head", "in", strided(16, 8)),
                    ),
                ),
            ),
        ),
    ),
    "heads": Net(lambda: _Heads(4), _tokens, (_BY_HEAD,), (("mixed heads", _ACROSS),)),
    "narrow heads": Net(
        lambda: _Heads(None), _tokens, (_ACROSS,), (("whole heads where their number is fixed", _BY_HEAD),)
    ),
    "scaled heads": Net(
        lambda: _Heads(None, scale=True),
        _tokens,
        (CutGroup(16, ()),),
        (("a scale that hangs on the width", _ACROSS),),
    ),
    "feed-forward": Net(
        _Feed,
        lambda: torch.zeros(1, 6, dtype=torch.long),
        (_group(24, ("gate", "out"), ("up", "out"), ("down", "in")),),
        (
            (
                "a norm's statistics",
                _group(
                    8, ("embed", "out"), ("norm", "out"), ("gate", "in"), ("up", "in"), ("down", "out"), ("head", "in")
                ),
            ),
        ),
    ),
    "grouped": Net(
        lambda: _Grouped(2),
        lambda: torch.zeros(2, 3, 6, 6),
        (
            CutGroup(8, (("conv1", "out", strided(2, 8)), ("conv2", "in", strided(2, 8)))),
            CutGroup(8, (("conv2", "out", strided(2, 8)), ("conv3", "in", strided(2, 8)))),
        ),
    ),
    "group norm": Net(
        _Normed,
        lambda: torch.zeros(2, 3, 8, 8),
        (CutGroup(4, (("conv1", "out", block(3)), ("norm", "out", block(3)), ("conv2", "in", block(3)))),),
        (
            (
                "fewer channels in a norm's group",
                CutGroup(
                    3, (("conv1", "out", strided(4, 3)), ("norm", "out", strided(4, 3)), ("conv2", "in", strided(4, 3)))
                ),
            ),
        ),
    ),
    "concat": Net(
        _Concat,
        lambda: torch.zeros(2, 3, 5, 5),
        (
            CutGroup(6, (("left", "out", one), ("norm", "out", one), ("last", "in", one))),
            CutGroup(10, (("right", "out", one), ("norm", "out", block(1, 9)), ("last", "in", block(1, 9)))),
        ),
        (
            (
                "a shifted consumer",
                CutGroup(10, (("right", "out", one), ("norm", "out", block(1, 8)), ("last", "in", block(1, 8)))),
            ),
        ),
    ),
    "width": _wide("none"),
    "signal": Net(
        _Signal,
        lambda: torch.zeros(2, 2, 10),
        (
            _group(8, ("conv1", "out"), ("norm", "out"), ("conv2", "in")),
            _group(6, ("conv2", "out"), ("hidden", "in", block(10))),
            _group(20, ("hidden", "out"), ("head", "in")),
        ),
    ),
    "mobile": Net(
        _Mobile,
        lambda: torch.zeros(2, 3, 6, 6),
        (
            _group(
                12,
                ("expand", "out"),
                ("norm", "out"),
                ("depthwise", "out"),
                ("act", "out"),
                ("squeeze", "in"),
                ("excite", "out"),
                ("project", "in"),
            ),
            _group(4, ("squeeze", "out"), ("excite", "in")),
        ),
    ),
    "routed": Net(
        _Routed,
        lambda: torch.zeros(3, 5, 8),
        tuple(_group(10, (f"up.{n}", "out"), (f"down.{n}", "in")) for n in range(3)),
        (
            (
                "another expert's consumer",
                _group(10, ("up.0", "out"), ("down.1", "in")),
            ),
        ),
    ),
}
HANGING = {kind: _wide(kind) for kind in ("mean", "scale", "softmax", "sort")}


def right_cut(net: Net, rng: random.Random) -> list[Cut]:
    """A right cut: some units of some groups, at least one of each left."""
    groups = [group for group in net.groups if group.axes]
    chosen = rng.sample(groups, rng.randint(1, len(groups)))
    return _cuts(net, [(group, _some(group, rng)) for group in chosen])


def wrong_cut(net: Net, rng: random.Random) -> tuple[str, list[Cut]]:
    """A wrong cut, and in words what is wrong with it."""
    kinds = ["net"] * len(net.wrong) + (["channel", "missed"] if any(group.axes for group in net.groups) else [])
    kind = rng.choice(kinds)
    if kind == "net":
        name, group = rng.choice(net.wrong)
        return name, _cuts(net, [(group, _some(group, rng))])
    group = rng.choice([group for group in net.groups if group.axes])
    units = _some(group, rng)
    victim = rng.randrange(len(group.axes))
    if kind == "missed":
        return "a missed consumer", _cuts(net, [(group, units)], without=victim)
    other = units
    while other == units:
        other = sorted(rng.sample(range(group.units), len(units)))
    return "a wrong channel", _cuts(net, [(group, units)], swap=(victim, other))


def _some(group: CutGroup, rng: random.Random) -> list[int]:
    return sorted(rng.sample(range(group.units), rng.randint(1, group.units - 1)))


def _cuts(
    net: Net,
    chosen: list[tuple[CutGroup, list[int]]],
    without: int | None = None,
    swap: tuple[int, list[int]] | None = None,
) -> list[Cut]:
    model = net.build()
    gone: dict[tuple[str, str], set[int]] = {}
    for group, units in chosen:
        for number, (module, axis, channels) in enumerate(group.axes):
            if number == without:
                continue
            these = swap[1] if swap is not None and swap[0] == number else units
            gone.setdefault((module, axis), set()).update(c for unit in these for c in channels(unit))
    return [
        Cut(module, axis, tuple(c for c in range(axis_of(model, module, axis).size) if c not in channels))
        for (module, axis), channels in gone.items()
    ]
