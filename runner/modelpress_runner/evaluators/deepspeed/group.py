"""What DeepSpeed needs around it: a process group, a quiet logger, and no compiler."""

from __future__ import annotations

import contextlib
import datetime
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import distributed

_OVERRIDDEN = ("linear", "embedding")  # in torch.nn.functional, by an engine of the third stage, for good
_DEPRECATED = r".*torch\.distributed\.\w+.* is deprecated.*"


def load() -> Any:
    """The module deepspeed, imported quietly; without a GPU it works on the CPU."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    # Modules that it compiles on first use go there; the home folder may be read-only.
    if not os.access(Path.home(), os.W_OK):
        os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(Path(tempfile.gettempdir()) / "torch_extensions"))
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    import deepspeed
    from deepspeed import ops
    from deepspeed.utils import logger

    logger.setLevel(logging.ERROR)
    # A faster all-reduce for the processes of one machine without GPUs. It is compiled when the first group is made,
    # which takes a compiler and up to a minute; the backend's own does the same.
    ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def folder() -> str:
    """Where DeepSpeed's code is."""
    return str(Path(load().__file__).parent)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Inside, DeepSpeed's calls of collectives that torch has renamed since give no warnings."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=_DEPRECATED, category=FutureWarning)
        yield


class ProcessGroup:
    """The process group that is there; else one of this process alone, until the last of those who use it is closed.

    With it go the variable LOCAL_RANK, if it was set here, and functions of torch that DeepSpeed has overridden.
    """

    _open: ClassVar[int] = 0
    _undone: ClassVar[contextlib.ExitStack] = contextlib.ExitStack()

    def __init__(self) -> None:
        load()
        self._closed = True
        if not ProcessGroup._open:
            with contextlib.ExitStack() as undone:
                undone.callback(_put_back, {name: getattr(F, name) for name in _OVERRIDDEN})
                if "LOCAL_RANK" not in os.environ:
                    os.environ["LOCAL_RANK"] = "0"
                    undone.callback(os.environ.pop, "LOCAL_RANK", None)
                if not distributed.is_initialized():
                    _begin(undone)
                ProcessGroup._undone = undone.pop_all()
        ProcessGroup._open += 1
        self._closed = False

    def __enter__(self) -> ProcessGroup:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends what was made here, unless somebody else still needs it. Safe to repeat."""
        if self._closed:
            return
        self._closed = True
        ProcessGroup._open -= 1
        if not ProcessGroup._open:
            ProcessGroup._undone.close()


def _begin(undone: contextlib.ExitStack) -> None:
    """A process group: with the processes that the environment speaks of, for good, or of this one alone."""
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        distributed.init_process_group(backend)
        return
    folder = tempfile.mkdtemp(prefix="modelpress-group-")
    undone.callback(shutil.rmtree, folder, ignore_errors=True)
    method, timeout = f"file://{folder}/store", datetime.timedelta(minutes=10)
    distributed.init_process_group(backend, init_method=method, rank=0, world_size=1, timeout=timeout)
    undone.callback(_end)


def _end() -> None:
    from deepspeed import comm

    if comm.comm.cdb is not None:
        comm.destroy_process_group()
        comm.comm.cdb = None
    if distributed.is_initialized():
        distributed.destroy_process_group()


def _put_back(functions: dict[str, Any]) -> None:
    for name, function in functions.items():
        setattr(F, name, function)
