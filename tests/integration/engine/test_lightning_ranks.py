"""Two processes train one LightningModule together: DDP over the process group that is there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.long

SCRIPT = """
import json, os, sys
import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset
import modelpress as mp
from modelpress_runner.runtime import distributed as ranks, rng
from modelpress_runner.training.run import training_session


class Data(pl.LightningDataModule):
    def __init__(self, batch_size):
        super().__init__()
        self.batch_size = batch_size

    def setup(self, stage):
        g = torch.Generator().manual_seed(0)
        x = torch.randn(64, 4, generator=g)
        y = (x[:, 0] + x[:, 1] > 0).long()
        self.train, self.test = TensorDataset(x[:48], y[:48]), TensorDataset(x[48:63], y[48:63])

    def train_dataloader(self):
        # Lightning's own sampler would shuffle.
        sampler = DistributedSampler(self.train, shuffle=False) if ranks.is_distributed() else None
        return DataLoader(self.train, self.batch_size, sampler=sampler)

    def test_dataloader(self):
        return DataLoader(self.test, 4)


class Net(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(4, 6), nn.Linear(6, 2)
        self.batches = []

    def forward(self, x):
        return self.fc2(F.relu(self.fc1(x)))

    def training_step(self, batch, batch_idx):
        self.batches.append(len(batch[0]))
        return F.cross_entropy(self(batch[0]), batch[1])

    def test_step(self, batch, batch_idx):
        self.log("default", (self(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def main():
    if "RANK" in os.environ:
        ranks.init_process_group()
    batch = 16 // ranks.world_size()
    torch.manual_seed(0)
    model = Net()
    pl.seed_everything(5, verbose=False)  # Lightning's DDP would begin each chunk with this seed again
    trainer = mp.trace(pl.Trainer)(accelerator="cpu", devices=2, logger=False)
    evaluator = mp.LightningEvaluator(trainer, mp.trace(Data)(batch), torch.zeros(1, 4))
    mask = torch.ones(6, 4)
    mask[::2] = 0
    drawn = []
    with training_session(model, evaluator, {"fc1": {"weight": mask}}) as session:
        evaluator.before_optimizer_step(lambda: drawn.append(torch.rand(1).item()))
        for _ in range(2):
            session.train(max_epochs=1)
        state = evaluator.state_dict()
    with training_session(model, evaluator, {"fc1": {"weight": mask}}) as session:
        evaluator.load_state_dict(state)
        evaluator.train(max_steps=1)
    score = evaluator.evaluate(model)
    mine = {"weights": [p.flatten().tolist() for p in model.parameters()], "score": score, "batches": model.batches,
            "drawn": drawn, "together": ranks.is_distributed()}
    every = ranks.all_gather_object(mine)
    if ranks.is_rank_zero():
        json.dump(every, open(sys.argv[1], "w"))
    if ranks.is_distributed():
        ranks.destroy_process_group()


main()
"""


def _run(folder: Path, processes: int) -> list[dict]:
    (folder / "train.py").write_text(SCRIPT if processes > 1 else SCRIPT.replace("devices=2, ", ""))
    out = folder / "out.json"
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [sys.executable, *(torchrun if processes > 1 else [])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*command, str(folder / "train.py"), str(out)], env=environment, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text())


def test_two_processes_are_one(tmp_path):
    """Each rank sees half of each batch of 16; weights are the same on both and those of one process with the whole
    batches; masks hold, chunks go on with their random numbers, the score is that of the whole test data."""
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        folder.mkdir()
    [alone] = _run(folders[0], 1)
    first, second = _run(folders[1], 2)
    assert not alone["together"]
    assert first["together"]
    assert first["batches"] == [8] * 7
    assert alone["batches"] == [16] * 7
    assert first["weights"] == second["weights"]
    for mine, whole in zip(first["weights"], alone["weights"], strict=True):
        assert mine == pytest.approx(whole, rel=1e-5, abs=1e-6)
    assert first["weights"][0][:4] == [0.0] * 4
    assert first["score"] == second["score"] == pytest.approx(alone["score"])
    assert len(set(first["drawn"])) == 6
