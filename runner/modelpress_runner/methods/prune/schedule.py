"""How sparsity grows over the rounds of a stage, or over the steps of a training loop of the user's own."""

from __future__ import annotations

from modelpress.api.v1alpha1 import EntrySchedule
from modelpress.api.v1alpha1.algorithms import schedule as facts


def sparsity_at(schedule: EntrySchedule, target: float, round_: int) -> float:
    """Sparsity after round `round_` (1, 2, ...); the target once the schedule's own rounds are over.

    In between it is what the schedule's row of modelpress.api.v1alpha1.algorithms says. Of a schedule by steps `round_`
    is the number of optimizer steps done, t counts from startStep, where the sparsity is initial (before it 0), and
    n = endStep - startStep; between two steps of its frequency what the earlier one reached holds.
    """
    if by_steps(schedule):
        start, end = schedule.start_step or 0, last_step(schedule)
        if round_ < start:
            return 0.0
        frequency = schedule.frequency or 1
        done = 1.0 if round_ >= end else (round_ - start) // frequency * frequency / (end - start)
    else:
        done = 1.0 if round_ >= schedule.rounds else round_ / schedule.rounds
    if done == 1.0:
        return target
    return facts(schedule.type).sparsity(schedule.initial_sparsity, target, done)


def by_steps(schedule: EntrySchedule) -> bool:
    """Whether the schedule counts the optimizer steps of a loop, not rounds."""
    return schedule.start_step is not None or schedule.end_step is not None


def last_step(schedule: EntrySchedule) -> int:
    """Optimizer steps done when a schedule by steps reaches its target."""
    return schedule.end_step if schedule.end_step is not None else schedule.start_step or 0


def next_step(schedule: EntrySchedule, step: int) -> int | None:
    """The first number of steps above `step` at which a schedule by steps prunes; None: it is over."""
    start, end, frequency = schedule.start_step or 0, last_step(schedule), schedule.frequency or 1
    if step < start:
        return start
    return None if step >= end else min(end, start + ((step - start) // frequency + 1) * frequency)


def prunes_at(schedule: EntrySchedule, step: int) -> bool:
    """Whether a schedule by steps prunes after `step` optimizer steps: startStep, each frequency-th on, and endStep."""
    start, end = schedule.start_step or 0, last_step(schedule)
    return step == end or (start <= step < end and (step - start) % (schedule.frequency or 1) == 0)
