"""All pruning methods by name."""

from __future__ import annotations

from modelpress_runner.methods.prune.protocol import PruneMethod
from modelpress_runner.methods.prune.scores.l1 import L1
from modelpress_runner.methods.prune.scores.l2 import L2
from modelpress_runner.methods.prune.scores.level import Level
from modelpress_runner.methods.prune.scores.random import Random
from modelpress_runner.methods.prune.scores.taylor import Taylor

METHODS: dict[str, PruneMethod] = {method.name: method for method in (Level(), L1(), L2(), Random(), Taylor())}


def method(name: str) -> PruneMethod:
    """The method of this name; KeyError if there is none."""
    return METHODS[name]
