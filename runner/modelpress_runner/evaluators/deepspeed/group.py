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
from typing import Any

import torch
from torch import distributed

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


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Inside, DeepSpeed's calls of collectives that torch has renamed since give no warnings."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=_DEPRECATED, category=FutureWarning)
        yield


class ProcessGroup:
    """The process group that is there; else one of this process alone, until it is closed."""

    def __init__(self) -> None:
        load()
        self._folder: str | None = None
        self._had_rank = "LOCAL_RANK" in os.environ
        if not self._had_rank:
            os.environ["LOCAL_RANK"] = "0"
        if not distributed.is_initialized():
            if int(os.environ.get("WORLD_SIZE", "1")) > 1:
                distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
                return
            self._folder = tempfile.mkdtemp(prefix="modelpress-group-")
            distributed.init_process_group(
                "nccl" if torch.cuda.is_available() else "gloo",
                init_method=f"file://{self._folder}/store",
                rank=0,
                world_size=1,
                timeout=datetime.timedelta(minutes=10),
            )

    def __enter__(self) -> ProcessGroup:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the group if it was made here."""
        if not self._had_rank:
            os.environ.pop("LOCAL_RANK", None)
        if self._folder is None:
            return
        from deepspeed import comm

        if comm.comm.cdb is not None:
            comm.destroy_process_group()
            comm.comm.cdb = None
        if distributed.is_initialized():
            distributed.destroy_process_group()
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder = None
