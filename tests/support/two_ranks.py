"""A worker script in two processes that form a group."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch


@contextlib.contextmanager
def two_ranks(worker: str | Path, folder: Path) -> Iterator[list[dict[str, Any]]]:
    """Starts `worker FOLDER` twice; behind the block both have ended well, and the list holds what each has left in
    FOLDER/<rank>.pt. Modules of tests/support can be imported in it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "GLOO_SOCKET_IFNAME": "lo"}
    group["PYTHONPATH"] = str(Path(__file__).parent)
    processes = [
        subprocess.Popen(
            [sys.executable, worker, folder],
            env={
                **os.environ,
                **group,
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "PYTHONPATH": str(Path(__file__).parent),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    left: list[dict[str, Any]] = []
    yield left
    for process in processes:
        output, _ = process.communicate(timeout=240)
        assert process.returncode == 0, output
    left += [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]
