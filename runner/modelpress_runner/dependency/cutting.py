"""From units that go to the edits that cut them away."""

from __future__ import annotations

import torch

from modelpress_runner.dependency.groups import ChannelDependencies
from modelpress_runner.edits.attributes import Attribute
from modelpress_runner.edits.base import Edit
from modelpress_runner.edits.cuts import Cut


def edits_of(dependencies: ChannelDependencies, removed: torch.Tensor) -> list[Edit]:
    """Cuts of all axes that lose units, and the numbers that change with them; `removed` is bool, one for each unit."""
    cuts = [
        Cut(axis.module, axis.axis, tuple(torch.nonzero(kept).flatten().tolist()))
        for axis, kept in dependencies.kept(removed)
    ]
    changed = dependencies.changed(removed)
    return [*cuts, *(Attribute(number.module, number.name, value) for number, value in changed)]
