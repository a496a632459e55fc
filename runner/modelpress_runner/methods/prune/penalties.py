"""Terms in the loss that drive what a prune stage will remove towards zero, as participants of a training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from modelpress_runner.edits.axes import module_axis
from modelpress_runner.edits.masks import Masks
from modelpress_runner.errors import CompressionError
from modelpress_runner.methods.prune.channels import weight_of
from modelpress_runner.training.calls import Call
from modelpress_runner.training.participants import Participant

PROJECTION = 100  # optimizer steps between two projections of ADMM


class Penalty(Participant):
    """Adds a term over the weights of some modules to every loss, until so many optimizer steps are made.

    Args:
        strength: what the term is multiplied with.
        modules: by name.
        last: the step after which it is over; None: it lasts as long as the training.
    """

    def __init__(self, strength: float, modules: Sequence[str], last: int | None = None) -> None:
        self._strength, self._modules, self._last = strength, tuple(modules), last
        self._named: dict[str, nn.Module] = {}
        self._steps = 0

    def attach(self, model: nn.Module) -> None:
        self._named = {name: model.get_submodule(name) for name in self._modules}
        check_whole(self._named)

    def detach(self) -> None:
        self._named = {}

    def loss(self, call: Call | None, loss: torch.Tensor) -> torch.Tensor:
        if self._last is not None and self._steps >= self._last:
            return loss
        return loss + self._strength * sum(
            self.term(name, module).to(loss.device) for name, module in self._named.items()
        )

    def after_step(self, step: int) -> None:
        self._steps = step

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self._steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._steps = state["steps"]

    def term(self, name: str, module: nn.Module) -> torch.Tensor:
        """Of one module, a scalar with its gradient; added to the loss in float32 or better."""
        raise NotImplementedError


class L1(Penalty):
    """The sum of |w|; over factors of norms it is network slimming's (Liu et al. 2017, arXiv 1708.06519)."""

    def term(self, name: str, module: nn.Module) -> torch.Tensor:
        """As Penalty.term."""
        return weight_of(module).float().abs().sum()


class GroupLasso(Penalty):
    """The sum over output channels of the norm of their weights (Wen et al. 2016, arXiv 1608.03665)."""

    def term(self, name: str, module: nn.Module) -> torch.Tensor:
        """As Penalty.term."""
        axis = module_axis(module, name, "out")
        rows = axis.rows(axis.main, weight_of(module).float())
        norms: torch.Tensor = torch.linalg.vector_norm(rows, dim=1)
        return norms.sum()


class ADMM(Penalty):
    """Half the squared distance of the weights to Z - U (Zhang et al. 2018, arXiv 1804.03294).

    Z is what pruning would leave of W + U; every so many steps Z = projection(W + U) and U <- U + W - Z. Pruning itself
    comes later: what it takes is near zero by then.

    Args:
        project: the masks that pruning would set, if the modules' weights were as they are at that moment.
        frequency: optimizer steps between two projections.
    """

    def __init__(
        self, strength: float, modules: Sequence[str], last: int | None, project: Callable[[], Masks], frequency: int
    ) -> None:
        super().__init__(strength, modules, last)
        self._project, self._frequency = project, frequency
        self._goal: dict[str, torch.Tensor] = {}  # Z - U
        self._dual: dict[str, torch.Tensor] = {}  # U

    def begin(self) -> None:
        for name, module in self._named.items():
            self._dual[name] = torch.zeros_like(weight_of(module), requires_grad=False)
        self._update()
        for name, dual in self._dual.items():  # which begins at zero: the first Z is where to go
            self._goal[name], self._dual[name] = self._goal[name] + dual, torch.zeros_like(dual)

    def touches(self, step: int) -> str | None:
        return "writes" if self._is_due(step) else None

    def after_step(self, step: int) -> None:
        if step != self._steps and self._is_due(step):
            self._update()
        super().after_step(step)

    def term(self, name: str, module: nn.Module) -> torch.Tensor:
        """As Penalty.term."""
        weight = weight_of(module)
        goal = self._goal[name] = self._goal[name].to(weight.device)
        return (weight.float() - goal.float()).square().sum() / 2

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "goal": dict(self._goal), "dual": dict(self._dual)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._goal, self._dual = dict(state["goal"]), dict(state["dual"])

    def _is_due(self, step: int) -> bool:
        return step % self._frequency == 0 and (self._last is None or step < self._last)

    @torch.no_grad()
    def _update(self) -> None:
        weights = {name: weight_of(module) for name, module in self._named.items()}
        kept = {name: weight.detach().clone() for name, weight in weights.items()}
        for name, weight in weights.items():
            self._dual[name] = self._dual[name].to(weight.device)
            weight.data.add_(self._dual[name])
        try:
            masks = self._project()
            for name, weight in weights.items():
                near = weight.detach() * masks[name]["weight"].to(weight.device)
                dual = weight.detach() - near  # (W + U) - Z
                self._goal[name], self._dual[name] = near - dual, dual
        finally:
            for name, weight in weights.items():
                weight.data.copy_(kept[name])


def check_whole(modules: dict[str, nn.Module]) -> None:
    """Raises CompressionError where parameters are parted among processes, so that no term can be taken of them."""
    parted = next((name for name, module in modules.items() if not weight_of(module).numel()), None)
    if parted is not None:
        raise CompressionError(
            f"the weight of '{parted}' is parted among processes (ZeRO 3), and sparsify needs it whole; take another "
            "stage of ZeRO"
        )
