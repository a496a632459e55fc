"""Scoring and masking of ResNet-50 beside torch-pruning's, paired in one process.

Half of all channels by the norm of everything that goes with them (group_norm here, GroupMagnitudeImportance of p = 2
there), in the shares of each layer. Both know by then which channels depend on each other. Here: scores, ranking, masks
of everything that a shrink would take, and zeros in their place. There: scores and ranking of all groups, first without
anything behind it (`step(interactive=True)`), then with the groups' pruning. Rounds alternate which side is first; one
thread, seconds of the processor. Reported: the median of the pairs' ratios for both, with the extremes, and how many
channels went.

Usage: python benchmarks/prune_scoring.py [--pairs 7]
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import torch
import torch_pruning as tp
from torch import nn
from transformers import ResNetConfig, ResNetForImageClassification

from modelpress.api.v1alpha1 import Prune
from modelpress_runner.methods.context import StageContext
from modelpress_runner.methods.prune.round import apply_outcome
from modelpress_runner.stages.prune import PruneStage

HERE = Path(__file__).resolve().parent
SHARE = 0.5


class Logits(nn.Module):
    """Images (batch, 3, height, width) -> logits."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = ResNetForImageClassification(ResNetConfig())

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.net(images).logits  # type: ignore[no-any-return]


def ours(model: nn.Module, images: torch.Tensor) -> tuple[float, int]:
    """Seconds of the processor, and channels of convolutions that are zero then."""
    block = {"algorithm": "group_norm", "configList": [{"opTypes": ["Conv2d"], "sparsity": SHARE}]}
    stage = PruneStage(Prune.model_validate(block), 0, "prune")
    context = StageContext(model, None, images, 0)
    stage.sound(context, stage.select(model))
    begin = time.process_time()
    outcome = stage.outcome(context, 1, {})
    apply_outcome(model, outcome)
    return time.process_time() - begin, sum(gone for gone, _ in outcome.removed.values())


def theirs(model: Any, images: torch.Tensor) -> tuple[float, float, int]:
    """Seconds of scoring, and of scoring and pruning; channels of convolutions that went."""
    before = sum(part.out_channels for part in model.modules() if isinstance(part, nn.Conv2d))
    pruner = tp.pruner.BasePruner(
        model,
        images,
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=SHARE,
        ignored_layers=[part for part in model.modules() if isinstance(part, nn.Linear)],
    )
    begin = time.process_time()
    groups = list(pruner.step(interactive=True))
    scored = time.process_time() - begin
    for group in groups:
        group.prune()
    whole = time.process_time() - begin
    return scored, whole, before - sum(p.out_channels for p in model.modules() if isinstance(p, nn.Conv2d))


def main() -> None:
    """Runs the pairs and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--output", type=Path, default=HERE / "results" / "prune_scoring.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    dense, images = Logits().eval(), torch.randn(1, 3, 64, 64)
    pairs = []
    for number in range(options.pairs + 1):  # the first warms up
        one, other = copy.deepcopy(dense), copy.deepcopy(dense)
        if number % 2:
            mine, rival = ours(one, images), theirs(other, images)
        else:
            rival, mine = theirs(other, images), ours(one, images)
        pair = {"ours": mine[0], "scored": rival[0], "pruned": rival[1], "channels": [mine[1], rival[2]]}
        print(json.dumps(pair), flush=True)
        pairs.append(pair)
    pairs = pairs[1:]
    ratios = {
        f"to{what.capitalize()}": [pair["ours"] / pair[what] for pair in pairs]  # type: ignore[operator]
        for what in ("scored", "pruned")
    }
    report = {
        **{name: {"median": statistics.median(r), "min": min(r), "max": max(r)} for name, r in ratios.items()},
        "pairs": pairs,
        "machine": {"cores": os.cpu_count(), "python": platform.python_version(), "load": os.getloadavg()[0]},
    }
    options.output.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps({name: report[name] for name in ratios}))


if __name__ == "__main__":
    main()
