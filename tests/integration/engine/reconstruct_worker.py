"""One rank that recovers a pruned model: reconstruct_worker.py OUT. Writes what it became to OUT/<rank>.pt."""

from __future__ import annotations

import sys

import torch
from small_recovery import recovered

from modelpress_runner.runtime import distributed as ranks

if __name__ == "__main__":
    ranks.init_process_group()
    states = {kind: recovered(kind) for kind in ("leastSquares", "batchNorm", "auto")}
    torch.save(states, f"{sys.argv[1]}/{ranks.rank()}.pt")
    ranks.destroy_process_group()
