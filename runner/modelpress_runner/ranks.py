"""The processes that train one model together, as torch.distributed has them; alone, every function is trivial."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import distributed

T = TypeVar("T")


def together() -> bool:
    """Whether a process group of more than one process is there."""
    return world() > 1


def world() -> int:
    """How many processes there are; 1 without a process group."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank() -> int:
    """The number of this process among them, from 0."""
    return distributed.get_rank() if world() > 1 else 0


def is_main() -> bool:
    """Whether this is the process that writes and reports."""
    return rank() == 0


def mean(value: torch.Tensor) -> torch.Tensor:
    """The mean of every rank's `value`, taken in float64 on the CPU where the backend can; same shape, equal on all."""
    if not together():
        return value.double()
    total = value.detach().double().to(_device()).clone()
    distributed.all_reduce(total)
    # Rank 0's sum for all: a reduction may differ between ranks in its last bits.
    distributed.broadcast(total, src=0)
    return total.cpu() / world()


def agreed(value: T) -> T:
    """Rank 0's `value` on every rank. Plain data and tensors only: it is pickled between processes of one run."""
    if not together():
        return value
    box = [value]
    distributed.broadcast_object_list(box, src=0)
    return box[0]


def every(value: T) -> list[T]:
    """Every rank's `value`, by rank, on every rank."""
    if not together():
        return [value]
    box: list[T] = [value] * world()
    distributed.all_gather_object(box, value)
    return box


def anyone(flag: bool) -> bool:
    """Whether `flag` holds on any rank."""
    return any(every(flag))


def barrier() -> None:
    """Waits for all ranks."""
    if together():
        distributed.barrier()


def _device() -> torch.device:
    """Where collectives work: NCCL knows no tensors in main memory."""
    if distributed.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
