"""Two processes prune as one, by every method."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import prune_worker
import pytest
import torch

from modelpress.api.v1alpha1.algorithms import names


@pytest.mark.long
def test_two_ranks_prune_as_one(tmp_path: Path) -> None:
    """The masks of both are those of one process that sees the data of both."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "GLOO_SOCKET_IFNAME": "lo"}
    processes = [
        subprocess.Popen(
            [sys.executable, prune_worker.__file__, tmp_path],
            env={**os.environ, **group, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    alone = prune_worker.masks()
    for process in processes:
        output, _ = process.communicate(timeout=240)
        assert process.returncode == 0, output
    assert set(alone) == set(names("prune"))
    for rank in range(2):
        seen = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for method, modules in alone.items():
            assert seen[method].keys() == modules.keys(), method
            for name, mask in modules.items():
                assert torch.equal(seen[method][name], mask), (method, name)
                assert bool((mask == 0).any()) or method == "pattern_lock", method
