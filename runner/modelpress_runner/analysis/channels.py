"""Which layers lose channels together, and which channels cannot go, with the reason."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from torch import nn

from modelpress_runner.dependency.analyse import find_dependencies
from modelpress_runner.edits.wrappers import unwrapped


@dataclass(frozen=True)
class ChannelGroup:
    """Layers whose channels go together.

    Attributes:
        layers: that make them; a cut of one is a cut of all.
        followers: that only hand them on, norms and depthwise convolutions.
        channels: how many can go, each by itself with what hangs on it; one at least stays.
    """

    layers: tuple[str, ...]
    followers: tuple[str, ...]
    channels: int


@dataclass(frozen=True)
class FrozenChannels:
    """Channels that stay.

    Attributes:
        layers: that make them.
        channels: how many.
        reason: why, with the operation and the line of code where there is one.
    """

    layers: tuple[str, ...]
    channels: int
    reason: str


@dataclass(frozen=True)
class ChannelDependency:
    """What the analysis of a model found.

    Attributes:
        groups: what can lose channels, in the order of the layers.
        frozen: what cannot.
        blocks: residual blocks that could go whole, by name.
        notes: what a user should know of the model.
    """

    groups: tuple[ChannelGroup, ...]
    frozen: tuple[FrozenChannels, ...]
    blocks: tuple[str, ...]
    notes: tuple[str, ...]


def channel_dependency(model: nn.Module, dummy_input: Any, exact: bool = True) -> ChannelDependency:
    """Finds out which channels of a model hang together, from one forward pass; the model stays as it is.

    Args:
        model: the model.
        dummy_input: example inputs, batch first.
        exact: False lets channels go that a LayerNorm takes its statistics over, as `prune.exact: false` does.

    Raises:
        CompressionError: the model cannot be copied, or does not run on the inputs.
    """
    found = find_dependencies(unwrapped(model), dummy_input, exact)
    groups = [ChannelGroup(group.producers, group.followers, len(group.units)) for group in found.groups]
    producers: dict[int, list[str]] = defaultdict(list)
    for axis in found.axes:
        if axis.axis == "out" and axis.producer:
            for unit in set(axis.units):
                producers[unit].append(axis.module)
    frozen: dict[tuple[tuple[str, ...], str], int] = defaultdict(int)
    for unit, reason in sorted(found.frozen.items()):
        if producers[unit]:
            frozen[tuple(producers[unit]), reason] += 1
    return ChannelDependency(
        tuple(groups),
        tuple(FrozenChannels(names, count, reason) for (names, reason), count in frozen.items()),
        tuple(layer.module for layer in found.layers),
        found.notes,
    )
