"""Whether the numbers of two trials compare: under what each was measured, and how sure its score is."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from modelpress.api.v1alpha1 import DEFAULT_METRIC
from modelpress.results.trials import Trial

SAMPLES = "samples"  # a metric of the evaluator: the score is the share of so many rows that is right
ERROR = "defaultStderr"  # a metric of the evaluator: the standard error of its score
_LATENCY = ("device", "batchSize", "threads")


def differences(trials: Sequence[Trial], best: int | None) -> dict[int, str]:
    """What sets the numbers of a trial apart from those of the best one: `seed 1, not 0`; only trials that differ.

    Without a best trial, from what most have. What only concerns latencies is told where there are some. Trials whose
    record says nothing, as those of older versions, are passed over.
    """
    known = {trial.number: found for trial in trials if (found := _facts(trial))}
    if not known:
        return {}
    standard = known.get(best) if best is not None else None
    if standard is None:
        names = dict.fromkeys(name for facts in known.values() for name in facts)
        standard = {
            name: Counter(facts[name] for facts in known.values() if name in facts).most_common(1)[0][0]
            for name in names
        }
    out = {}
    for number, facts in known.items():
        said = [
            f"{name} {facts[name]}, not {value}"
            for name, value in standard.items()
            if name in facts and facts[name] != value
        ]
        if said:
            out[number] = "; ".join(said)
    return out


def standard_error(metrics: Mapping[str, float]) -> float | None:
    """That of the score, where it is known: as the evaluator says, or of a share of as many rows as it says."""
    given, rows, score = (metrics.get(name) for name in (ERROR, SAMPLES, DEFAULT_METRIC))
    if given is not None:
        return given if math.isfinite(given) and given >= 0 else None
    if rows is None or score is None or rows < 1 or not 0 <= score <= 1:
        return None
    return math.sqrt(score * (1 - score) / rows)


def alike(trials: Sequence[Trial], best: int | None) -> list[int]:
    """Trials whose score chance alone may set apart from the best one's: within twice the error of their difference."""
    by_number = {trial.number: trial for trial in trials if trial.state == "Succeeded"}
    leader = by_number.get(best) if best is not None else None
    error = standard_error(leader.compressed) if leader is not None else None
    if leader is None or error is None:
        return []
    out = []
    for number, trial in by_number.items():
        other = standard_error(trial.compressed)
        if number == best or other is None or DEFAULT_METRIC not in trial.compressed:
            continue
        apart = abs(trial.compressed[DEFAULT_METRIC] - leader.compressed[DEFAULT_METRIC])
        if apart <= 2 * math.hypot(error, other):
            out.append(number)
    return out


def _facts(trial: Trial) -> dict[str, str]:
    said = trial.record.conditions if trial.record is not None and trial.state == "Succeeded" else None
    if said is None:
        return {}
    timed = "latencyMs" in trial.compressed
    facts = {name: value for name, value in said.items() if timed or name not in _LATENCY}
    if (rows := trial.compressed.get(SAMPLES)) is not None:
        facts["samples"] = f"{rows:g}"
    if trial.manifest is not None:
        torch = trial.manifest.versions.get("torch")
        facts |= {"torch": torch} if torch else {}
        facts |= {"code": trial.manifest.code_digest[:8]} if trial.manifest.code_digest else {}
    return facts
