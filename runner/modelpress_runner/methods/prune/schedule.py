"""How sparsity grows over the rounds of a stage, or over the steps of a training loop of the user's own."""

from __future__ import annotations

from modelpress.api.v1alpha1 import EntrySchedule
from modelpress.api.v1alpha1.algorithms import schedule as facts


def sparsity_at(schedule: EntrySchedule, target: float, round_: int) -> float:
    """Sparsity after round `round_` (1, 2, ...); the target once the schedule's own rounds are over.

    In between it is what the schedule's row of modelpress.api.v1alpha1.algorithms says. Of a schedule by steps `round_`
    is the number of optimizer steps done, t counts from startStep, where the sparsity is initial (before it 0), and
    n = endStep - startStep; between two steps of its frequency what the earlier one reached holds, or, with
    progressiveSteps, grows in as many equal parts to what the later one reaches.
    """
    if not by_steps(schedule):
        return _after(schedule, target, round_ / schedule.rounds)
    start, end = schedule.start_step or 0, last_step(schedule)
    if round_ < start:
        return 0.0
    if round_ >= end:
        return target
    frequency, parts = schedule.frequency or 1, schedule.progressive_steps
    last = (round_ - start) // frequency * frequency
    reached = _after(schedule, target, last / (end - start))
    part = sum(offset <= round_ - start - last for offset in _parts(schedule)) - 1
    if not part:
        return reached
    return reached + (_after(schedule, target, (last + frequency) / (end - start)) - reached) * part / parts


def _after(schedule: EntrySchedule, target: float, done: float) -> float:
    return target if done >= 1 else facts(schedule.type).sparsity(schedule.initial_sparsity, target, done)


def _parts(schedule: EntrySchedule) -> list[int]:
    """How many steps behind one of its frequency it prunes, that step among them, before the next one."""
    parts = schedule.progressive_steps
    return sorted({part * (schedule.frequency or 1) // parts for part in range(parts)})


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
    if step >= end:
        return None
    since = (step - start) % frequency
    later = [offset for offset in (*_parts(schedule), frequency) if offset > since]
    return min(end, step - since + later[0])


def prunes_at(schedule: EntrySchedule, step: int) -> bool:
    """Whether a schedule by steps prunes after `step` optimizer steps: startStep, each frequency-th on, and endStep;
    with progressiveSteps in between, too."""
    start, end = schedule.start_step or 0, last_step(schedule)
    return step == end or (start <= step < end and (step - start) % (schedule.frequency or 1) in _parts(schedule))
