"""Two processes with a Trainer or a DeepSpeed engine prune and train as one does with the same batches."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.long

WORKER = Path(__file__).with_name("evaluator_worker.py")


# accelerate takes every Trainer of a process for one with DeepSpeed once there has been one: that comes last.
CASES = ("trainer:-1", "engine:0", "engine:1", "engine:2", "engine:3", "trainer:3")


def start(out: Path, world: int) -> list[subprocess.Popen]:
    """The processes of a run of the worker over all cases."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(world)} if world > 1 else {}
    return [
        subprocess.Popen(
            [sys.executable, WORKER, out, *CASES],
            env={**environment, **group, **({"RANK": str(rank), "LOCAL_RANK": str(rank)} if group else {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world)
    ]


@pytest.fixture(scope="module")
def seen(tmp_path_factory) -> Path:
    """The folder with what one process and two saw."""
    out = tmp_path_factory.mktemp("ranks")
    for process in [*start(out, 2), *start(out, 1)]:
        output, _ = process.communicate(timeout=280)
        assert process.returncode == 0, output
    return out


@pytest.mark.parametrize("case", CASES)
def test_two_processes_do_what_one_does(seen, case):
    """Losses, Taylor's choice of channels and weights agree; masked weights are zero; the ranks are alike."""
    alone, first, second = (torch.load(seen / f"{case}-{n}.pt", weights_only=True) for n in ("0-1", "0-2", "1-2"))
    assert len(alone["losses"]) == 3 + 8
    assert first["losses"] == pytest.approx(alone["losses"], abs=1e-4)
    assert alone["masks"].keys() == {"conv1", "conv2"}
    for module, tensors in alone["masks"].items():
        for tensor, mask in tensors.items():
            assert torch.equal(first["masks"][module][tensor], mask)
            assert int((mask == 0).sum()) == mask.numel() // 2
            assert not bool(first["weights"][f"{module}.{tensor}"][mask == 0].any())
    for name, value in alone["weights"].items():
        assert torch.equal(first["weights"][name], second["weights"][name]), name
        assert torch.allclose(first["weights"][name], value, atol=1e-3), name
