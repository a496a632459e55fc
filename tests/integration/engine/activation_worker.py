"""One rank that scores by activations: activation_worker.py OUT. Writes what it saw to OUT/<rank>.pt."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from activations import CALIBRATION, STAGE, Net, evaluating_func, mean_magnitude

import modelpress as mp
from modelpress.api.v1alpha1 import Prune
from modelpress_runner.errors import InvalidModelError
from modelpress_runner.methods.context import StageContext
from modelpress_runner.methods.prune.selection import select
from modelpress_runner.methods.prune.statistics import collect
from modelpress_runner.process.stopping import Stopped
from modelpress_runner.runtime import distributed as ranks


def scores(evaluator: Any = None, data: Any = None, **changes: Any) -> torch.Tensor:
    """As on one rank."""
    model = Net()
    context = StageContext(model, evaluator, None, 0, calibration_data=data, **changes)
    selection = select(model, Prune.model_validate(STAGE["prune"]), "prune")
    return collect(context, selection, None, (0, 1), "prune")["first"]


def only_one() -> None:
    """Rank 1 alone is asked to stop."""
    if ranks.rank() == 1:
        raise Stopped


if __name__ == "__main__":
    ranks.init_process_group()
    seen: dict[str, Any] = {"stopped": False}
    with mean_magnitude():
        seen["calibration"] = scores(data=CALIBRATION)
        seen["evaluation"] = scores(mp.TorchEvaluator(evaluating_func=evaluating_func))
        try:
            scores(data=[CALIBRATION[0], torch.zeros(1, 9)])  # the second batch is rank 1's
        except InvalidModelError as error:
            seen["error"] = str(error)
        for source in ({"data": CALIBRATION}, {"evaluator": mp.TorchEvaluator(evaluating_func=evaluating_func)}):
            try:
                scores(**source, stop=only_one)
            except Stopped:
                seen["stopped"] = True
            else:
                seen["stopped"] = False
                break
    torch.save(seen, Path(sys.argv[1]) / f"{ranks.rank()}.pt")
    ranks.destroy_process_group()
