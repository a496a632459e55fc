"""What the trials of a sweep say together, worked out once for the page, the table and the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from modelpress.results.comparable import alike, differences, standard_error
from modelpress.results.trials import Trial
from modelpress.search.attainment import Attainment, attainment
from modelpress.search.importance import importances

from .frame import Frame, candidates

_PEERS = 20  # that are named


@dataclass(frozen=True)
class Findings:
    """A sweep's trials and what follows from all of them.

    Attributes:
        ranked: trials that have every objective.
        attained: how far the search was after each trial that meets the constraints.
        importances: shares of the parameters, greatest first; empty where nothing can be said.
        error: the standard error of the best score, where it is known.
        peers: trials whose score chance alone may set apart from the best one's.
        apart: by number what sets a trial's numbers apart from the best one's.
    """

    frame: Frame
    trials: Sequence[Trial]
    best: Trial | None
    ranked: Sequence[int]
    attained: Attainment
    importances: Mapping[str, float]
    error: float | None
    peers: Sequence[int]
    apart: Mapping[int, str]

    def sureness(self) -> tuple[str, Sequence[int], str] | None:
        """How sure the best score is: a sentence, the peers to name with it, and what comes behind them."""
        if self.error is None:
            return None
        said = f"The standard error of the best score is {self.error:.2g}."
        if not self.peers:
            return said, (), ""
        more = f" and {len(self.peers) - _PEERS} more" if len(self.peers) > _PEERS else ""
        return f"{said} Chance alone may set it apart from trials ", self.peers[:_PEERS], f"{more}."


def findings(frame: Frame, trials: Sequence[Trial]) -> Findings:
    """Work it all out."""
    goals = [goal for _, goal in frame.objectives]
    found = candidates(frame, trials) if goals else []
    best = next((trial for trial in trials if trial.number == frame.best), None)
    return Findings(
        frame=frame,
        trials=trials,
        best=best,
        ranked=[item.number for item in found],
        attained=attainment(found, goals),
        importances=importances(found, {trial.number: trial.parameters for trial in trials}, goals),
        error=standard_error(best.compressed) if best is not None else None,
        peers=alike(trials, frame.best),
        apart=differences(trials, frame.best),
    )
