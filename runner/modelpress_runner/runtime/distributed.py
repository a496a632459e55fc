"""Collectives of plain data over torch.distributed; without a process group every function is trivial."""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Callable, Iterator
from typing import Any, Literal, TypeVar

import torch
from torch import distributed, nn

from modelpress_runner.errors import CompressionError, RunnerError
from modelpress_runner.runtime import wire

T = TypeVar("T")
Reduction = Literal["sum", "mean", "max"]

# Rank 0 works alone now and then (a dependency analysis, a benchmark) while the others wait for what comes of it. A
# rank that dies closes its connections, so that nobody waits that long for it.
TIMEOUT = dt.timedelta(hours=2)
# What gloo, NCCL and their stores say where a peer has gone away.
_GONE = (
    *("connection closed by peer", "connection reset by peer", "broken pipe", "socket closed", "got 0 bytes"),
    *("remote process exited", "communicator was aborted", "application timeout caused pair closure"),
    *("recvvalue failed", "sendbytes failed", "connection refused", "connection was likely closed"),
)


def init_process_group() -> None:
    """Initializes the process group as RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT say; with a GPU each over NCCL."""
    local = int(os.environ.get("LOCAL_RANK", "0"))
    beside = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or "1")
    os.environ.setdefault("LOCAL_WORLD_SIZE", str(beside))  # torchrun says it, DeepSpeed's launcher by another name
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpus >= beside:
        torch.cuda.set_device(local)
    distributed.init_process_group("nccl" if gpus >= beside else "gloo", timeout=TIMEOUT)


def destroy_process_group() -> None:
    """Destroys the process group, on all ranks at once: each is alone from here on."""
    if distributed.is_available() and distributed.is_initialized():
        barrier()
        distributed.destroy_process_group()


def is_peer_lost(error: BaseException) -> bool:
    """Whether an exception, or one behind it, says that another process has gone away."""
    return any(
        isinstance(each, distributed.DistNetworkError)
        or (isinstance(each, RuntimeError) and any(words in str(each).lower() for words in _GONE))
        for each in _behind(error)
    )


def is_distributed() -> bool:
    """Whether a process group of more than one process is there."""
    return world_size() > 1


def world_size() -> int:
    """How many processes there are; 1 without a process group."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank() -> int:
    """The number of this process among them, from 0."""
    return distributed.get_rank() if world_size() > 1 else 0


def is_rank_zero() -> bool:
    """Whether this is the process that writes and reports."""
    return rank() == 0


def all_reduce(value: torch.Tensor, how: Reduction) -> torch.Tensor:
    """Every rank's `value` as one, in float64 if it is of floats; same shape, type and device, equal on all."""
    if not is_distributed():
        return value
    total = value.detach().to(_device(), torch.float64 if value.is_floating_point() else value.dtype, copy=True)
    distributed.all_reduce(total, distributed.ReduceOp.MAX if how == "max" else distributed.ReduceOp.SUM)
    # Rank 0's for all: a reduction may differ between ranks in its last bits.
    distributed.broadcast(total, src=0)
    return (total / world_size() if how == "mean" else total).to(value.device, value.dtype)


def all_reduce_mean(value: torch.Tensor) -> torch.Tensor:
    """The mean of every rank's `value`; same shape, type and device, equal on all."""
    return all_reduce(value, "mean")


def broadcast_object(value: T) -> T:
    """Rank 0's `value` on every rank.

    Plain data and tensors only (see wire.py): what another process sends is never evaluated.

    Raises:
        TypeError: rank 0's value has something else in it.
        CompressionError: what came is no plain data.
    """
    if not is_distributed():
        return value
    if is_rank_zero():
        text, numbers = wire.encode(value)
        _broadcast(torch.tensor([len(text), numbers.numel()]))
        _broadcast(_bytes(text))
        _broadcast(numbers)
        return value
    length, count = _sizes(_broadcast(torch.zeros(2, dtype=torch.int64)))
    told: T = _told(_broadcast(_room(length)), _broadcast(_room(count)))
    return told


def broadcast_tensors(value: dict[str, dict[str, torch.Tensor]]) -> dict[str, dict[str, torch.Tensor]]:
    """Rank 0's tensors by two names, each on the device of this rank's own of those names."""
    if not is_distributed():
        return value
    found = broadcast_object(
        {outer: {name: item.cpu() for name, item in inner.items()} for outer, inner in value.items()}
    )
    return {
        outer: {
            name: item.to(value[outer][name].device) if name in value.get(outer, {}) else item
            for name, item in inner.items()
        }
        for outer, inner in found.items()
    }


def all_gather_object(value: T) -> list[T]:
    """Every rank's `value`, by rank, on every rank: plain data and tensors; raises what `broadcast_object` raises."""
    if not is_distributed():
        return [value]
    text, numbers = wire.encode(value)
    sizes = [_sizes(each) for each in _gather(torch.tensor([len(text), numbers.numel()]))]
    # A collective takes equal shapes: each fills up to the longest.
    texts = _gather(_filled(_bytes(text), max(length for length, _ in sizes)))
    others = _gather(_filled(numbers, max(count for _, count in sizes)))
    return [
        value if each == rank() else _told(texts[each][:length], others[each][:count])
        for each, (length, count) in enumerate(sizes)
    ]


def any_rank(flag: bool) -> bool:
    """Whether `flag` holds on any rank."""
    return any(all_gather_object(flag))


def on_rank_zero(work: Callable[[], T]) -> T:
    """What `work` gives on rank 0, plain data and tensors, on every rank; the others wait.

    What it raises there, every rank raises.
    """
    if not is_distributed():
        return work()
    value: T | None = None
    error: Exception | None = None
    if is_rank_zero():
        try:
            value = work()
        except Exception as raised:
            error = raised
    told = broadcast_object(None if error is None else _told_of(error))
    if error is not None:
        raise error
    if told is not None:
        raise _error(told)
    return broadcast_object(value)  # type: ignore[return-value]


def raise_together(error: RunnerError | None) -> None:
    """Raises on every rank what one of them has to raise: its own, or that of the first that has one."""
    told = all_gather_object(None if error is None else _told_of(error))
    if error is not None:
        raise error
    for each in told:
        if each is not None:
            raise _error(each)


@torch.no_grad()
def sync_and_diff(model: nn.Module) -> float:
    """Gives every rank rank 0's parameters and buffers; the largest difference of a parameter from rank 0's, on any
    rank, relative to the largest value of that parameter.
    """
    if not is_distributed():
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
    return max(all_gather_object(worst))


def barrier() -> None:
    """Waits for all ranks."""
    if is_distributed():
        distributed.barrier()


def _broadcast(own: torch.Tensor) -> torch.Tensor:
    """Rank 0's tensor, on the CPU; the others give one of the same shape."""
    sent = own.to(_device())
    if sent.numel():
        distributed.broadcast(sent, src=0)
    return sent.cpu()


def _gather(own: torch.Tensor) -> list[torch.Tensor]:
    """Every rank's tensor, on the CPU, by rank; all have the same shape."""
    sent = own.to(_device())
    box = [torch.empty_like(sent) for _ in range(world_size())]
    if sent.numel():
        distributed.all_gather(box, sent)
    return [each.cpu() for each in box]


def _bytes(text: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(text), dtype=torch.uint8)


def _filled(numbers: torch.Tensor, size: int) -> torch.Tensor:
    return torch.cat([numbers, torch.zeros(size - numbers.numel(), dtype=torch.uint8)])


def _sizes(announced: torch.Tensor) -> tuple[int, int]:
    """Bytes of a message's text and of its tensors, as its sender announces them."""
    length, count = (int(each) for each in announced)
    if not (0 < length <= wire.MAX_TEXT_BYTES and count >= 0):
        raise CompressionError(f"another process of this run announces a message of {length} and {count} bytes")
    return length, count


def _room(size: int) -> torch.Tensor:
    return torch.empty(size, dtype=torch.uint8)


def _told(text: torch.Tensor, numbers: torch.Tensor) -> Any:
    return wire.decode(text.numpy().tobytes(), numbers)


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


def _told_of(error: Exception) -> dict[str, str | None]:
    """An error as another process can have it: of its type where that needs no more than a text and a path."""
    if not isinstance(error, RunnerError):
        text = f"rank 0 raised {type(error).__name__}: {error}"
        return {"type": CompressionError.__name__, "text": text, "path": None}
    return {"type": type(error).__name__, "text": str(error), "path": error.path}


def _error(told: dict[str, str | None]) -> RunnerError:
    kinds: dict[str, type[RunnerError]] = {
        RunnerError.__name__: RunnerError,
        **{kind.__name__: kind for kind in _kinds(RunnerError)},
    }
    kind, text = kinds.get(str(told.get("type")), CompressionError), str(told.get("text"))
    error: RunnerError = kind.__new__(kind, text)  # some types make a text of their own
    error.path = told.get("path")
    return error


def _kinds(kind: type[RunnerError]) -> Iterator[type[RunnerError]]:
    for each in kind.__subclasses__():
        yield each
        yield from _kinds(each)
