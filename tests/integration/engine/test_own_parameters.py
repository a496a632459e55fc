"""Parameters of what goes along with a training: killed within it and begun again, on one rank and on two."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.long

WORKER = Path(__file__).with_name("own_worker.py")
PLACES = (2, 7)


def start(out: Path, world: int) -> list[subprocess.Popen]:
    """The processes of a run."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(world), "GLOO_SOCKET_IFNAME": "lo"}
    group |= {"LOCAL_WORLD_SIZE": str(world)}
    return [
        subprocess.Popen(
            [sys.executable, WORKER, out, *map(str, PLACES)],
            env={**environment, **({**group, "RANK": str(rank), "LOCAL_RANK": str(rank)} if world > 1 else {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world)
    ]


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with what one process and two saw."""
    out = tmp_path_factory.mktemp("own")
    for process in [*start(out, 2), *start(out, 1)]:
        output, _ = process.communicate(timeout=580)
        assert process.returncode == 0, output
    return out


@pytest.mark.parametrize("kind", ["plain", "module", "lightning", "trainer", "engine"])
def test_killed_or_on_two_ranks_they_end_alike(kind: str, seen: Path) -> None:
    """The same bits whether it was killed or not, of weights and of the parameters beside them; both ranks are alike,
    and two ranks do what one does with the same batches."""
    first, second, alone = (torch.load(seen / f"{kind}-{n}.pt", weights_only=True) for n in ("0-2", "1-2", "0-1"))
    for each in (alone, first, second):
        whole = each["whole"]
        assert whole["own"].tolist() != [0.5, -0.25]
        for place in PLACES:
            again = each[f"killed-{place}"]
            assert again["notes"] == whole["notes"]
            assert torch.equal(again["own"], whole["own"]), place
            for name, value in whole["weights"].items():
                assert torch.equal(again["weights"][name], value), (place, name)
    assert torch.equal(first["whole"]["own"], second["whole"]["own"])
    assert torch.allclose(first["whole"]["own"], alone["whole"]["own"], atol=2e-3)
    for name, value in alone["whole"]["weights"].items():
        assert torch.equal(first["whole"]["weights"][name], second["whole"]["weights"][name])
        assert torch.allclose(first["whole"]["weights"][name], value, atol=2e-3), name
