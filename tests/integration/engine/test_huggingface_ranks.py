"""Processes that train a pretrained model together do what one alone does."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.long

TINY = Path(__file__).resolve().parents[2] / "support"

ROWS = [
    {"text": "the red cat sleeps", "label": "yes"},
    {"text": "the blue dog runs", "label": "no"},
    {"text": "red is big", "label": "yes"},
    {"text": "blue is small", "label": "no"},
    {"text": "Anna is in Rome", "label": "no"},
]

SCRIPT = """
import json, sys
from pathlib import Path
import torch
from modelpress_runner.runtime import distributed as ranks
from tiny_models import rows, subject

ranks.init_process_group()
model, given, out = Path(sys.argv[1]), json.loads(sys.argv[2]), Path(sys.argv[3])
found = subject(model, "text-classification", rows("train", *given))
torch.manual_seed(ranks.rank())  # the order of the rows is rank 0's for all
found.evaluator.bind(found.model)
found.evaluator.train(max_epochs=3)  # batches of 4 and of 1: the second rank has no row of the latter
torch.save(found.model.state_dict(), out / f"{ranks.rank()}.pt")
ranks.destroy_process_group()
"""


def test_gradients_are_those_of_the_whole_batch(tmp_path, monkeypatch):
    """After three epochs the weights are those of one process, and the same on both ranks."""
    from tiny_models import bert, rows, subject

    bert(tmp_path / "model", "BertForSequenceClassification")
    (tmp_path / "train.py").write_text(SCRIPT)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    environment = {**os.environ, **group, "PYTHONPATH": str(TINY), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, tmp_path / "train.py", tmp_path / "model", json.dumps(ROWS), tmp_path]
    processes = [
        subprocess.Popen(command, env={**environment, "RANK": str(rank)}, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    alone = subject(tmp_path / "model", "text-classification", rows("train", *ROWS))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        alone.evaluator.bind(alone.model)
        alone.evaluator.train(max_epochs=3)
    for process in processes:
        _, errors = process.communicate(timeout=200)
        assert process.returncode == 0, errors
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    # AdamW divides by the root of squared gradients, so that the last bits of a sum show where gradients are tiny.
    for name, value in alone.model.state_dict().items():
        assert torch.allclose(first[name], value, atol=2e-4), name
        assert torch.equal(first[name], second[name]), name
