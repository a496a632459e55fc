"""BatchNorm statistics of a pruned model, taken anew.

They are those of the whole calibration data (Wu and Johnson 2021, arXiv 2105.07576, section 3); that a pruned model
needs them before its score says anything is Li et al. 2020, arXiv 2007.02491. While they are gathered every BatchNorm
normalizes with its batch's own statistics, so that one pass does for all of them.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from modelpress_runner.edits.axes import BATCH_NORM
from modelpress_runner.evaluators.hooks import ForwardHook
from modelpress_runner.passes.collectors import Collector, Pass
from modelpress_runner.runtime import distributed as ranks


def keeps_statistics(module: nn.Module) -> bool:
    """Whether the module is a BatchNorm with statistics of its own."""
    return isinstance(module, BATCH_NORM) and module.running_mean is not None and module.running_var is not None


class ChannelMoments(Collector):
    """First and second moments of what a BatchNorm takes, by channel, in float64."""

    states: ClassVar[dict[str, ranks.Reduction]] = {"total": "sum", "squares": "sum", "count": "sum"}

    def __init__(self, name: str, module: nn.Module, data: Pass) -> None:
        self._name, self._data = name, data
        held = module.running_mean
        assert isinstance(held, torch.Tensor)
        self.total, self.squares = (torch.zeros(len(held), dtype=torch.float64) for _ in range(2))
        self.count = torch.zeros((), dtype=torch.float64)

    def attach(self) -> None:
        """As Collector.attach."""
        self._data.register_forward_hook(self._name, ForwardHook(self._see))

    def update(self) -> None:
        """Everything is gathered as the BatchNorm is called."""

    def compute(self) -> torch.Tensor:
        """Mean and unbiased variance, (2, channels); unchecked where there was less than two values."""
        mean = self.total / self.count
        variance = (self.squares / self.count - mean**2).clamp(min=0) * self.count / (self.count - 1)
        return torch.stack([mean, variance])

    @property
    def seen(self) -> bool:
        """Whether there is a variance to tell."""
        return bool(self.count > 1)

    def differs(self, other: ChannelMoments) -> bool:
        """Whether it took something else than `other`, over the same data."""
        return not (torch.equal(self.total, other.total) and torch.equal(self.squares, other.squares))

    def _see(self, buffer: list[Any], module: nn.Module, args: tuple[Any, ...], output: Any) -> torch.Tensor | None:
        if not args or not isinstance(args[0], torch.Tensor):
            return None
        given = args[0].detach()
        values = given.transpose(0, 1).flatten(1) if given.dim() > 1 else given.unsqueeze(1)
        values = (values.cpu() if values.device.type == "mps" else values).to(torch.float64)
        self.total += values.sum(dim=1).cpu()
        self.squares += (values**2).sum(dim=1).cpu()
        self.count += values.shape[1]
        if values.shape[1] < 2:
            return None  # one value has no variance: it goes on as before
        assert isinstance(module, BATCH_NORM)
        return F.batch_norm(given, None, None, module.weight, module.bias, training=True, eps=module.eps)
