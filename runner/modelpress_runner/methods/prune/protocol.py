"""What every pruning method is."""

from __future__ import annotations

import abc
from typing import Any, ClassVar, Protocol

import torch
from torch import nn

from modelpress.api.v1alpha1.algorithms import Algorithm, algorithm
from modelpress_runner.evaluators.hooks import BackwardHook, ForwardHook


class PruneMethod:
    """Scores the parts of one module; the lowest scores are removed first.

    What can be said of a method without torch stands in its row of modelpress.api.v1alpha1.algorithms, which names its
    object. Modules are matched by class name, their own or that of a base class.

    Attributes:
        name: of its row.
        also: types besides the row's that an entry may name.
        comparable: scores of different layers are of one kind; a global ranking takes them as they are.
    """

    name: ClassVar[str]
    also: ClassVar[tuple[str, ...]] = ()
    comparable: ClassVar[bool] = False

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
        raise TypeError(f"the scores of {self.name} are collected from training steps")


class Pass(Protocol):
    """A pass over data, as a collector sees it: every evaluator is one, and so is a loop of the user's own."""

    def gradient(self, parameter: nn.Parameter) -> torch.Tensor | None:
        """The whole gradient of a parameter, seen before an optimizer step; None: there is none."""

    def register_forward_hook(self, module: str, hook: ForwardHook) -> None:
        """Puts `hook` on the module of this name until the pass is over."""

    def register_backward_hook(self, module: str, hook: BackwardHook) -> None:
        """Puts `hook` on the module of this name until the pass is over."""


class Collector(abc.ABC):
    """Gathers the scores of one module from the steps of a pass."""

    def start(self) -> None:  # noqa: B027
        """The pass begins: hooks can be put in place, `Pass.register_forward_hook` for one."""

    @abc.abstractmethod
    def step(self) -> None:
        """A step has run forward and, where gradients are needed, backward; parameters are whole."""

    @abc.abstractmethod
    def total(self) -> torch.Tensor:
        """This rank's scores of all steps together, as PruneMethod.score gives them. Nothing else leaves the device.

        Raises:
            CompressionError: there is nothing to score by.
        """

    def state_dict(self) -> dict[str, Any]:
        """What was gathered so far, for a checkpoint: tensors and plain data.

        As it is here, all attributes that are tensors, numbers or None; a class that gathers in others says so itself.
        """
        kinds = (torch.Tensor, bool, int, float, type(None))
        return {name: value for name, value in vars(self).items() if isinstance(value, kinds)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where `state_dict` was."""
        vars(self).update(state)


class DataDrivenMethod(PruneMethod):
    """A method whose row needs activations or gradients: it scores by a pass over data.

    A method that needs activations puts its hooks in place when its collector starts.
    """

    def collector(self, name: str, module: nn.Module, data: Pass) -> Collector:
        """A collector for one module, which the model knows by `name`.

        Raises:
            InvalidModelError: the module cannot be scored, whatever is trained.
        """
        raise NotImplementedError
