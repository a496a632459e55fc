"""Training one model in several processes: torch's DistributedDataParallel around the bound model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from modelpress_runner.runtime import distributed as ranks
from modelpress_runner.usercode.calling import user_code


class ParallelModel(DistributedDataParallel):
    """DistributedDataParallel that also answers for the attributes of the model inside.

    Calls that compute a loss must go to the model itself: gradients are averaged for its forward().
    """

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("module"), name)


def move_to_rank_device(model: nn.Module) -> None:
    """Moves a model to this rank's GPU where the process group works on GPUs only, so that it can be wrapped."""
    if ranks.is_distributed() and distributed.get_backend() == "nccl":
        model.to(torch.device("cuda", torch.cuda.current_device()))


def wrapped(model: nn.Module, options: Mapping[str, Any] | None = None) -> nn.Module:
    """`model` for training: in DistributedDataParallel if there is a process group and something to train.

    Every rank begins with rank 0's weights. `options` are keyword arguments of DistributedDataParallel.
    """
    if not ranks.is_distributed() or not any(parameter.requires_grad for parameter in model.parameters()):
        return model
    with user_code("wrapping the model in DistributedDataParallel"):
        return ParallelModel(model, **(options or {}))
