"""The processes that train one model together, as torch.distributed has them; alone, every function is trivial."""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from torch import distributed, nn

T = TypeVar("T")

# Rank 0 works alone now and then (a dependency analysis, a benchmark) while the others wait for what comes of it. A
# rank that dies closes its connections, so that nobody waits that long for it.
PATIENCE = dt.timedelta(hours=2)
# What gloo, NCCL and their stores say where a peer has gone away.
_GONE = (
    *("connection closed by peer", "connection reset by peer", "broken pipe", "socket closed", "got 0 bytes"),
    *("remote process exited", "communicator was aborted", "application timeout caused pair closure"),
    *("recvvalue failed", "sendbytes failed", "connection refused", "connection was likely closed"),
)


def join() -> None:
    """Meets the other processes, as RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT say; with a GPU each over NCCL."""
    local = int(os.environ.get("LOCAL_RANK", "0"))
    beside = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or "1")
    os.environ.setdefault("LOCAL_WORLD_SIZE", str(beside))  # torchrun says it, DeepSpeed's launcher by another name
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpus >= beside:
        torch.cuda.set_device(local)
    distributed.init_process_group("nccl" if gpus >= beside else "gloo", timeout=PATIENCE)


def leave() -> None:
    """Parts from the other processes, all at once: each is alone from here on."""
    if distributed.is_available() and distributed.is_initialized():
        barrier()
        distributed.destroy_process_group()


def gone(error: BaseException) -> bool:
    """Whether an exception, or one behind it, says that another process has gone away."""
    return any(
        isinstance(each, distributed.DistNetworkError)
        or (isinstance(each, RuntimeError) and any(words in str(each).lower() for words in _GONE))
        for each in _behind(error)
    )


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


def agreed_tensors(value: dict[str, dict[str, torch.Tensor]]) -> dict[str, dict[str, torch.Tensor]]:
    """Rank 0's tensors by two names, each on the device of this rank's own of those names."""
    if not together():
        return value
    found = agreed({outer: {name: item.cpu() for name, item in inner.items()} for outer, inner in value.items()})
    return {
        outer: {
            name: item.to(value[outer][name].device) if name in value.get(outer, {}) else item
            for name, item in inner.items()
        }
        for outer, inner in found.items()
    }


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


def by_main(work: Callable[[], T]) -> T:
    """What `work` gives on rank 0, on every rank; the others wait. What it raises there, every rank raises."""
    if not together():
        return work()
    value: T | None = None
    error: Exception | None = None
    if is_main():
        try:
            value = work()
        except Exception as raised:
            error = raised
    told = agreed(None if error is None else _portable(error))
    if error is not None:
        raise error
    if told is not None:
        raise told
    return agreed(value)  # type: ignore[return-value]


@torch.no_grad()
def same(model: nn.Module) -> float:
    """Gives every rank rank 0's parameters and buffers; the largest difference of a parameter from rank 0's, on any
    rank, relative to the largest value of that parameter.
    """
    if not together():
        return 0.0
    worst = 0.0
    tensors = {id(value): value for value in (*model.parameters(), *model.buffers())}
    parameters = {id(value) for value in model.parameters()}
    for key, value in tensors.items():
        if value.numel() == 0:
            continue
        sent = value.detach().to(_device()).clone()
        distributed.broadcast(sent, src=0)
        sent = sent.to(value.device)
        if key in parameters and value.is_floating_point() and not torch.equal(sent, value):
            gap = float((sent.double() - value.double()).abs().max())
            worst = max(worst, gap / max(float(sent.double().abs().max()), 1e-12))
        value.copy_(sent)
    return max(every(worst))


def barrier() -> None:
    """Waits for all ranks."""
    if together():
        distributed.barrier()


def _device() -> torch.device:
    """Where collectives work: NCCL knows no tensors in main memory."""
    if distributed.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def _behind(error: BaseException) -> Iterator[BaseException]:
    """The exception, its cause, the cause's cause, and so on."""
    seen: set[int] = set()
    each: BaseException | None = error
    while each is not None and id(each) not in seen:
        seen.add(id(each))
        yield each
        each = each.__cause__ or each.__context__


def _portable(error: Exception) -> Exception:
    """An error as another process can have it: of its type where that needs no more than a text and a path."""
    from modelpress_runner.errors import CompressionError, RunnerError

    if not isinstance(error, RunnerError):
        return CompressionError(f"rank 0 raised {type(error).__name__}: {error}")
    copy = type(error)(str(error))
    copy.path = error.path
    return copy
