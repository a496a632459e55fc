"""Interface of pruning methods."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from modelpress.api.v1alpha1.algorithms import Algorithm, algorithm
from modelpress_runner.dependency.groups import ChannelDependencies
from modelpress_runner.passes.collectors import Collector, Pass


class PruneMethod:
    """Scores the parts of one module; the lowest scores are removed first.

    What can be said of a method without torch stands in its row of modelpress.api.v1alpha1.algorithms, which names its
    object. Modules are matched by class name, their own or that of a base class.

    Attributes:
        name: of its row.
        extra_op_types: types besides the row's that an entry may name.
        globally_comparable: scores of different layers are of one kind; a global ranking takes them as they are.
        by_output: within a layer, single weights are compared with those of the same output only.
        takes_followers: a module that only hands channels on, as a norm does, may stand for its dependency group; the
            layers that make the channels need not be selected.
        compensates: what is left of a module gets new weights, which make up for those that went: see
            CompensatingMethod.
    """

    name: ClassVar[str]
    extra_op_types: ClassVar[tuple[str, ...]] = ()
    globally_comparable: ClassVar[bool] = False
    by_output: ClassVar[bool] = False
    takes_followers: ClassVar[bool] = False
    compensates: ClassVar[bool] = False

    @property
    def facts(self) -> Algorithm:
        """Its row."""
        return algorithm("prune", self.name)

    @property
    def structured(self) -> bool:
        """Whether a score stands for an output channel; if not, for a single weight."""
        return self.facts.structured

    @property
    def op_types(self) -> tuple[str, ...]:
        """Types that are pruned if an entry names none."""
        return self.facts.default_types

    def score(self, module: nn.Module, generator: torch.Generator) -> torch.Tensor:
        """Scores on the device of the weight, in float32 or better.

        If structured, (output channels,), in float64 where the device has it; else shaped like module.weight. No wide
        copy of a weight should be made: see `channels.by_channel`.

        `generator` is the module's own; a method without chance leaves it alone. Of a data-driven method it is not
        asked: see DataDrivenMethod.
        """
        raise TypeError(f"the scores of {self.name} are collected from a pass over data")

    def score_units(
        self, model: nn.Module, dependencies: ChannelDependencies, units: torch.Tensor
    ) -> torch.Tensor | None:
        """Scores of the units, bool (units,), by everything that goes with each, float64, (units,), others arbitrary;
        None: a unit's score is the mean of its group's members' scores."""
        return None


class DataDrivenMethod(PruneMethod):
    """A method whose row needs activations or gradients: it scores by a pass over data.

    Its collectors compute what PruneMethod.score would give. They put their hooks in place when they are attached.
    """

    def collector(self, name: str, module: nn.Module, data: Pass) -> Collector:
        """A collector for one module, which the model knows by `name`.

        Raises:
            InvalidModelError: the module cannot be scored, whatever is trained.
        """
        raise NotImplementedError

    def scores(self, collected: torch.Tensor, module: nn.Module) -> torch.Tensor:
        """What PruneMethod.score would give, from what the collector computed: that itself, as it is here."""
        return collected


@dataclass(frozen=True)
class Wanted:
    """How many of a module's weights go, where the method chooses them one by one.

    Attributes:
        count: of weights, or of groups of `numbers`.
        gone: bool, in the shape of the weight: those that went before, which are among the count.
        numbers: (N, M): of every M inputs of an output N are kept, in `count` of the groups; None: single weights.
    """

    count: int
    gone: torch.Tensor
    numbers: tuple[int, int] | None = None


class CompensatingMethod(DataDrivenMethod):
    """A method that scores single weights, and gives those that are left new values.

    A local ranking of single weights, or of N:M, is its own business (`chosen`): what goes next may depend on what the
    last one did. Any other pattern and scope is ranked by its scores, and `compensated` is told what goes.
    """

    compensates: ClassVar[bool] = True

    def bytes(self, module: nn.Module) -> int:
        """What its collector takes for a module: of so many modules as fit scores are collected at a time."""
        raise NotImplementedError

    def chosen(self, module: nn.Module, collected: torch.Tensor, wanted: Wanted) -> tuple[torch.Tensor, torch.Tensor]:
        """What goes, bool, and the new weight, zero there; both in the shape of the weight, the second in its type."""
        raise NotImplementedError

    def compensated(self, module: nn.Module, collected: torch.Tensor, removed: torch.Tensor) -> torch.Tensor:
        """The new weight, where it is told what goes, bool, in the shape of the weight."""
        raise NotImplementedError
