"""How sparsity grows over the rounds of a stage."""

from __future__ import annotations

from modelpress.api.v1alpha1 import EntrySchedule


def sparsity_at(schedule: EntrySchedule, target: float, round_: int) -> float:
    """Sparsity after round `round_` (1, 2, ...); the target once the schedule's own rounds are over.

    With t of n rounds done, initial sparsity i and target s: one_shot s; linear i + (s - i) t/n; agp
    s + (i - s)(1 - t/n)^3 (Zhu and Gupta 2017, arXiv 1710.01878).
    """
    if schedule.type == "one_shot" or round_ >= schedule.rounds:
        return target
    initial, done = schedule.initial_sparsity, round_ / schedule.rounds
    if schedule.type == "linear":
        return initial + (target - initial) * done
    return target + (initial - target) * (1 - done) ** 3
