"""A score of a model beside a run, which goes on as if there had been none."""

from __future__ import annotations

from torch import nn

from modelpress_runner.evaluators.base import Evaluator, Score
from modelpress_runner.runtime import distributed as ranks
from modelpress_runner.runtime import rng

_SCORING = 2**31 - 1  # part of the seed for scoring: every score of a run sees the same random numbers


def score_aside(evaluator: Evaluator, model: nn.Module, seed: int) -> Score:
    """The score of `model`, without effect on the random numbers of the run and seeded alike each time.

    Every rank evaluates, so that an evaluation may use all of them; rank 0's score counts.
    """
    with rng.fork_rng(rng.derive(seed, _SCORING)):
        return ranks.broadcast_object(evaluator.evaluate(model))
