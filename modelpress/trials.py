"""How a sweep's reconcile core and its search talk to each other: plain data and one protocol."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from modelpress.api.v1alpha1 import CompressionJob, CompressionJobSpec, TrialResult
from modelpress.api.v1alpha1.sweep import ScreeningStatus
from modelpress.plainjson import json_of

# Annotations and labels that a trial carries from its creation on. Whoever may edit the object may edit them, so they
# are for people and for looking up; what counts is status.trial.
TRIAL_LABEL = "modelpress.dev/trial"  # its number, decimal
SWEEP_LABEL = "modelpress.dev/sweep"  # name of its sweep
PARAMETERS_ANNOTATION = "modelpress.dev/parameters"  # JSON object, sorted keys
MAX_HISTORY, MAX_TRIALS = 64 * 1024, 1_000_000  # characters of a history; numbers that it may name
HISTORY_ANNOTATION = "modelpress.dev/history"  # History.encode()
SHARED_STAGES_ANNOTATION = "modelpress.dev/shared-stages"  # decimal
SCREENED_ANNOTATION = "modelpress.dev/screened"  # decimal: the trial of the first rung that this one goes on from
_NUMBER = re.compile(r"0|[1-9][0-9]{0,5}")


def trial_number(labels: Mapping[str, str] | None) -> int | None:
    """The number in a trial's label; None where there is none, or where it is not written as a sweep writes it.

    A sweep writes it in decimal digits without leading zeros; it has at most 10,000 trials.
    """
    text = (labels or {}).get(TRIAL_LABEL, "")
    return int(text) if _NUMBER.fullmatch(text) else None


@dataclass(frozen=True)
class History:
    """Numbers of the trials that a suggestion was based on; recorded in the child, so that it can be replayed."""

    finished: tuple[int, ...] = ()
    running: tuple[int, ...] = ()

    def encode(self) -> str:
        """`finished=0-4,7;running=5-6`: short at any number of trials."""
        return f"finished={encode_ranges(self.finished)};running={encode_ranges(self.running)}"

    @classmethod
    def decode(cls, text: str) -> History:
        """The inverse of encode.

        Raises:
            ValueError: the text is not a history.
        """
        parts = dict(part.partition("=")[::2] for part in text.split(";"))
        if set(parts) != {"finished", "running"}:
            raise ValueError(f"not a history: {text!r}")
        if len(text) > MAX_HISTORY:
            raise ValueError("not a history: too long")
        return cls(decode_ranges(parts["finished"]), decode_ranges(parts["running"]))


@dataclass(frozen=True)
class Question:
    """What a search that imports torch is asked elsewhere: all that its answer depends on.

    Attributes:
        number: of the trial.
        history: what the answer is based on, encoded.
        sweep: the sweep's specification but for its template.
        names: of the space's parameters; the observations give their values in this order, None where one has none.
        observations: of earlier trials, as [number, state, parameters, values, violations]; what misses a constraint by
            an unknown amount has None there.
    """

    number: int
    history: str
    sweep: dict[str, Any]
    names: list[str]
    observations: list[list[Any]]


@dataclass(frozen=True)
class Suggestion:
    """The next trial's parameters, and its spec or why that is invalid. `exhausted`: there is none.

    `shared_stages`: how many of its first stages other trials have alike. `question`: what a runner has to be asked
    before there is an answer; all else is empty then.
    """

    parameters: Mapping[str, Any] = field(default_factory=dict)
    spec: CompressionJobSpec | None = None
    problem: str | None = None
    exhausted: bool = False
    shared_stages: int = 0
    question: Question | None = None


class Strategy(Protocol):
    """The search behind a sweep, bound to its spec. Pure: equal arguments, equal answers (modelpress.search)."""

    def suggest(self, number: int, history: History, trials: Mapping[int, CompressionJob]) -> Suggestion:
        """Parameters of trial `number`: from the sweep's seed, the number, and those of `trials` named in `history`."""

    def answered(self, question: Question, values: Sequence[Any] | None) -> Suggestion:
        """What follows from the answer to a question: values by the space's parameters; None: it is exhausted."""

    def ranking(self, trials: Sequence[CompressionJob]) -> tuple[TrialResult | None, list[int]]:
        """The best feasible trial and the numbers of the Pareto front, of the trials that succeeded."""

    def promoted(self, trials: Sequence[CompressionJob]) -> list[int]:
        """With screening, numbers of the trials of the first rung that are to go on, best first; none without."""

    def promotion(self, screened: int, history: History, trials: Mapping[int, CompressionJob]) -> Suggestion | None:
        """The whole recipe of trial `screened` of the first rung; None: it does not go on, by the trials named."""

    def rungs(self, trials: Sequence[CompressionJob], going_on: Mapping[int, int]) -> ScreeningStatus | None:
        """Both rankings, of the trials that succeeded; None without screening.

        Args:
            going_on: numbers of the second rung's trials, and of those of the first that they go on from.
        """

    def stopped_early(self, trials: Mapping[int, CompressionJob]) -> list[int]:
        """Numbers of the running trials that spec.earlyStopping stops, as all trials stand; ascending."""


def number_of(job: CompressionJob) -> int | None:
    """The trial's number; None for a job that is no trial. Where no record says so its label does."""
    if job.status.trial is not None:
        return job.status.trial.number
    return trial_number(job.metadata.labels)


def parameters_of(job: CompressionJob) -> dict[str, Any] | None:
    """The trial's parameters; None if there are none. Where no record says so its annotation does."""
    if job.status.trial is not None:
        return dict(job.status.trial.parameters)
    return annotated(job)


def annotated(job: CompressionJob) -> dict[str, Any] | None:
    """The parameters in a job's annotation, true or not; None if it has none."""
    try:
        parameters = json_of((job.metadata.annotations or {}).get(PARAMETERS_ANNOTATION, ""))
    except ValueError:
        return None
    return parameters if isinstance(parameters, dict) else None


def screened_of(job: CompressionJob) -> int | None:
    """The trial of the first rung that a trial goes on from, as its record says; None for all others."""
    return job.status.trial.screened if job.status.trial is not None else None


def shared_stages_of(job: CompressionJob) -> int:
    """How many of the trial's first stages other trials have alike, as its annotation says; 0 where that is no number.

    Whoever edits it changes what the trial keeps and looks for in its sweep's stage cache, not what comes out of it.
    """
    text = (job.metadata.annotations or {}).get(SHARED_STAGES_ANNOTATION, "")
    return int(text) if _NUMBER.fullmatch(text) else 0


def encode_ranges(numbers: Sequence[int]) -> str:
    """Sorted numbers as ranges: (0, 1, 2, 5) -> '0-2,5'."""
    out: list[str] = []
    run: list[int] = []
    for number in [*sorted(set(numbers)), None]:
        if run and (number is None or number != run[-1] + 1):
            out.append(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}")
            run = []
        if number is not None:
            run.append(number)
    return ",".join(out)


def decode_ranges(text: str) -> tuple[int, ...]:
    """The inverse of encode_ranges.

    Raises:
        ValueError: the text holds no such numbers.
    """
    numbers: list[int] = []
    for part in filter(None, text.split(",")):
        low, _, high = part.partition("-")
        first, last = int(low), int(high or low)
        if not 0 <= first <= last < MAX_TRIALS or len(numbers) > MAX_TRIALS:
            raise ValueError(f"not numbers of trials: {part[:40]!r}")
        numbers.extend(range(first, last + 1))
    return tuple(numbers)
