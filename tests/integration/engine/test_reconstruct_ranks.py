"""Recovery by several processes is that of one: each takes a share of the calibration data."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small_recovery import recovered


@pytest.mark.long
def test_two_ranks_recover_as_one(tmp_path: Path) -> None:
    """Three batches of unequal size in two shares: the same bits on both ranks, and but for the order of sums one's."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    worker = Path(__file__).with_name("reconstruct_worker.py")
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "GLOO_SOCKET_IFNAME": "lo"}
    support = str(Path(__file__).parents[2] / "support")
    processes = [
        subprocess.Popen(
            [sys.executable, worker, tmp_path],
            env={**os.environ, **group, "RANK": str(rank), "LOCAL_RANK": str(rank), "PYTHONPATH": support},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    for process in processes:
        output, _ = process.communicate(timeout=240)
        assert process.returncode == 0, output
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    for kind, state in first.items():
        alone = recovered(kind)
        for name, value in state.items():
            assert torch.equal(value, second[kind][name]), (kind, name)
            assert torch.allclose(value, alone[name], rtol=1e-9, atol=1e-12), (kind, name)
