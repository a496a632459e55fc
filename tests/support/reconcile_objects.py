"""Objects that the reconcile tests start from."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from modelpress.api.v1alpha1 import CompressionJob, CompressionJobSpec, CompressionSweep, Condition, TrialResult
from modelpress.reconcile import EmitEvent, ObservedJob, Plan
from modelpress.result import RunResult
from modelpress.trials import PARAMETERS_ANNOTATION, TRIAL_LABEL, History, Suggestion

NOW = dt.datetime(2026, 3, 1, 12, 0, 0, tzinfo=dt.UTC)
UID = "11111111-2222-3333-4444-555555555555"
DIGEST = "ab" * 32


def at(seconds: float) -> dt.datetime:
    """`seconds` after the tests' start of time."""
    return NOW + dt.timedelta(seconds=seconds)


def job_spec(**fields: Any) -> dict[str, Any]:
    """A recipe of one stage."""
    return {
        "model": {"entrypoint": "digits:create"},
        "stages": [{"prune": {"algorithm": "l1", "configList": [{"opTypes": ["Conv2d"], "sparsity": 0.5}]}}],
        "store": {"uri": "s3://models/out/"},
        **fields,
    }


def make_job(name: str = "digits", status: Mapping[str, Any] | None = None, **spec: Any) -> CompressionJob:
    """A standalone job as the API server stores it."""
    return CompressionJob.model_validate(
        {
            "metadata": {"name": name, "namespace": "team", "uid": UID, "generation": 1, "resourceVersion": "1"},
            "spec": job_spec(**spec),
            **({"status": dict(status)} if status else {}),
        }
    )


def make_sweep(
    name: str = "search",
    status: Mapping[str, Any] | None = None,
    template: Mapping[str, Any] | None = None,
    **spec: Any,
) -> CompressionSweep:
    """A sweep over one sparsity."""
    path = "/stages/0/prune/configList/0/sparsity"
    return CompressionSweep.model_validate(
        {
            "metadata": {"name": name, "namespace": "team", "uid": UID, "generation": 1, "resourceVersion": "1"},
            "spec": {
                "template": {"spec": job_spec(**(template or {}))},
                "searchSpace": [{"name": "sparsity", "paths": [path], "float": {"min": 0.1, "max": 0.9}}],
                "objectives": [{"metric": "default"}],
                "maxTrials": 4,
                "parallelism": 2,
                **spec,
            },
            **({"status": dict(status)} if status else {}),
        }
    )


def success(**fields: Any) -> str:
    """A runner's message after it committed its manifest."""
    result = {
        "phase": "Succeeded",
        "reason": "Committed",
        "manifestDigest": DIGEST,
        "codeDigest": "c0de",
        "baseline": {"default": 0.9},
        "compressed": {"default": 0.8},
        "smaller": True,
        "portable": True,
        **fields,
    }
    return RunResult.model_validate(result).to_message()


def failure(reason: str = "RunnerFailed", message: str = "ValueError: no") -> str:
    """A runner's message after its user's code raised."""
    return RunResult(phase="Failed", reason=reason, message=message).to_message()


def not_found() -> str:
    """A collect Job's message where no manifest is."""
    return RunResult(phase="NotFound", reason="NotFound").to_message()


def child(name: str = "digits-1", state: str = "running", **fields: Any) -> ObservedJob:
    """A child Job of the tests' object."""
    given = {"uid": f"uid-{name}", "owner_uid": UID, "purpose": "trial", "attempt": 1, "started_at": None, **fields}
    if state != "pending" and given["started_at"] is None and "started_at" not in fields:
        given["started_at"] = at(1)
    if state in ("succeeded", "failed") and "finished_at" not in fields:
        given["finished_at"] = at(10)
    return ObservedJob(name=name, state=state, **given)  # type: ignore[arg-type]


def conditions(listed: Sequence[Condition]) -> dict[str, tuple[str, str]]:
    """Conditions as {type: (status, reason)}."""
    return {condition.type: (condition.status, condition.reason) for condition in listed}


def kinds(plan: Plan) -> list[str]:
    """What a plan does, events aside."""
    return [type(action).__name__ for action in plan.actions if not isinstance(action, EmitEvent)]


class HashStrategy:
    """A search whose answers are hashes of what they may depend on, so that any other dependency shows.

    `adaptive`: parameters depend on the history and on the results in it, else on seed and number alone.
    """

    def __init__(
        self,
        sweep: CompressionSweep,
        *,
        adaptive: bool = False,
        exhausted_at: int | None = None,
        refused: frozenset[int] = frozenset(),
        seed: int = 0,
    ) -> None:
        self.spec = sweep.spec
        self.adaptive = adaptive
        self.exhausted_at = exhausted_at
        self.refused = refused
        self.seed = seed
        self.behind: set[int] = set()

    def suggest(self, number: int, history: History, trials: Mapping[int, CompressionJob]) -> Suggestion:
        """Parameters from a hash."""
        if self.exhausted_at is not None and number >= self.exhausted_at:
            return Suggestion(exhausted=True)
        basis: list[Any] = [self.seed, number]
        if self.adaptive:
            basis += [history.encode()]
            basis += [trials[n].status.phase for n in history.finished]
            basis += [(trials[n].metadata.annotations or {})[PARAMETERS_ANNOTATION] for n in history.running]
        digest = hashlib.sha256(json.dumps(basis).encode()).digest()
        sparsity = 0.1 + 0.8 * int.from_bytes(digest[:4]) / 2**32
        if number in self.refused:
            return Suggestion({"sparsity": sparsity}, problem="stages[0]: no")
        spec = self.spec.template.spec.to_dict()
        spec["stages"][0]["prune"]["configList"][0]["sparsity"] = sparsity
        return Suggestion({"sparsity": sparsity}, CompressionJobSpec.model_validate(spec))

    def ranking(self, trials: Sequence[CompressionJob]) -> tuple[TrialResult | None, list[int]]:
        """The trial with the highest score, feasible before infeasible; the front is that trial if it is feasible."""
        best: TrialResult | None = None
        for trial in trials:
            met = next((c for c in trial.status.conditions if c.type == "ConstraintsMet"), None)
            if trial.status.metrics is None or "default" not in trial.status.metrics.compressed:
                continue
            feasible = met is None or met.status == "True"
            score = trial.status.metrics.compressed["default"]
            if best is None or (feasible, score) > (best.feasible, best.metrics["default"]):
                best = TrialResult(
                    number=int((trial.metadata.labels or {})[TRIAL_LABEL]),
                    name=trial.metadata.name,
                    parameters=json.loads((trial.metadata.annotations or {})[PARAMETERS_ANNOTATION]),
                    metrics={"default": score},
                    feasible=feasible,
                )
        return best, [best.number] if best and best.feasible else []

    def stopped_early(self, trials: Mapping[int, CompressionJob]) -> list[int]:
        """What the test says."""
        return sorted(self.behind)
