"""How a sweep's reconcile core and its search talk to each other: plain data and one protocol."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from modelpress.api.v1alpha1 import CompressionJob, CompressionJobSpec, TrialResult

# Annotations and labels that a trial carries from its creation on; they never change.
TRIAL_LABEL = "modelpress.dev/trial"  # its number, decimal
SWEEP_LABEL = "modelpress.dev/sweep"  # name of its sweep
PARAMETERS_ANNOTATION = "modelpress.dev/parameters"  # JSON object, sorted keys
HISTORY_ANNOTATION = "modelpress.dev/history"  # History.encode()
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
        return cls(decode_ranges(parts["finished"]), decode_ranges(parts["running"]))


@dataclass(frozen=True)
class Suggestion:
    """The next trial's parameters, and its spec or why that is invalid. `exhausted`: there is none."""

    parameters: Mapping[str, Any] = field(default_factory=dict)
    spec: CompressionJobSpec | None = None
    problem: str | None = None
    exhausted: bool = False


class Strategy(Protocol):
    """The search behind a sweep, bound to its spec. Pure: equal arguments, equal answers (modelpress.search)."""

    def suggest(self, number: int, history: History, trials: Mapping[int, CompressionJob]) -> Suggestion:
        """Parameters of trial `number`: from the sweep's seed, the number, and those of `trials` named in `history`."""

    def ranking(self, trials: Sequence[CompressionJob]) -> tuple[TrialResult | None, list[int]]:
        """The best feasible trial and the numbers of the Pareto front, of the trials that succeeded."""


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
    """The inverse of encode_ranges."""
    numbers: list[int] = []
    for part in filter(None, text.split(",")):
        low, _, high = part.partition("-")
        numbers.extend(range(int(low), int(high or low) + 1))
    return tuple(numbers)
