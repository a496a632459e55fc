"""From units that go to the edits that cut them away."""

from __future__ import annotations

import torch

from modelpress_runner.dependency.groups import ChannelDependencies
from modelpress_runner.edits.attributes import Attribute
from modelpress_runner.edits.base import Edit
from modelpress_runner.edits.cuts import Cut
from modelpress_runner.edits.rescale import Rescale


def edits_of(dependencies: ChannelDependencies, removed: torch.Tensor) -> list[Edit]:
    """What takes the units, bool (units,), away: cuts, and the numbers and norms that follow them."""
    cuts = [
        Cut(axis.module, axis.axis, tuple(torch.nonzero(kept).flatten().tolist()))
        for axis, kept in dependencies.kept(removed)
    ]
    changed = dependencies.changed(removed)
    scaled = [
        Rescale(norm.module, norm.parameter, norm.epsilon, norm.offset, len(norm.units), left)
        for norm, left in dependencies.rescaled(removed)
    ]
    return [*cuts, *(Attribute(number.module, number.name, value) for number, value in changed), *scaled]
