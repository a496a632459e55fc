"""Objects as the API server holds them, with statuses that the reconcile core itself wrote."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace
from typing import Any

from modelpress.api.semantic import job_problems, sweep_problems
from modelpress.api.v1alpha1 import CompressionJob, CompressionSweep
from modelpress.reconcile import (
    CreateJob,
    CreateTrial,
    JobObserved,
    ObservedJob,
    PatchStatus,
    Plan,
    SweepObserved,
    reconcile_job,
    reconcile_sweep,
)
from modelpress.result import RunResult
from modelpress.search import strategy_for

START = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
RECIPE: dict[str, Any] = {
    "model": {"entrypoint": "digits:create"},
    "stages": [{"prune": {"configList": [{"opTypes": ["Conv2d"], "sparsity": 0.5}]}}],
    "constraints": [{"metric": "default", "maxRelativeLoss": 0.05}],
    "store": {"uri": "s3://models/out"},
}
SEARCH: dict[str, Any] = {
    "template": {"spec": {key: value for key, value in RECIPE.items() if key != "constraints"}},
    "searchSpace": [
        {
            "name": "sparsity",
            "paths": ["/stages/0/prune/configList/0/sparsity"],
            "categorical": {"values": [0.3, 0.5]},
        }
    ],
    "objectives": [{"metric": "default"}],
    "algorithm": {"name": "grid"},
    "parallelism": 2,
    "maxTrials": 2,
    "maxFailedTrials": 1,
}


def done(score: float = 0.95, **fields: Any) -> str:
    """The message of a runner that committed; the dense model scores 0.95."""
    result = {
        "phase": "Succeeded",
        "reason": "Committed",
        "manifestDigest": "ab" * 32,
        "codeDigest": "c0de",
        "baseline": {"default": 0.95},
        "compressed": {"default": score},
        "smaller": True,
        "portable": True,
        **fields,
    }
    return RunResult.model_validate(result).to_message()


MISSED = done(0.5, constraintsMet=False, unmet=["default: lost 47 %, maxRelativeLoss is 5 %"])


def failed(reason: str = "RunnerFailed") -> str:
    """The message of a runner that failed."""
    return RunResult(phase="Failed", reason=reason, message="ValueError: no such layer").to_message()


class World:
    """One job or sweep and its children; time goes on by a minute with each step."""

    def __init__(self, kind: str, **spec: Any) -> None:
        meta = {"name": "digits", "namespace": "team", "uid": "0" * 36, "generation": 1, "resourceVersion": "1"}
        base = RECIPE if kind == "CompressionJob" else SEARCH
        model = CompressionJob if kind == "CompressionJob" else CompressionSweep
        self.obj: CompressionJob | CompressionSweep = model.model_validate({"metadata": meta, "spec": {**base, **spec}})
        self.trials: dict[str, CompressionJob] = {}
        self.children: dict[str, ObservedJob] = {}
        self.now = START

    def step(self) -> World:
        """Reconcile once and carry the plan out; new children start to run."""
        self.now += dt.timedelta(minutes=1)
        for action in self._plan().actions:
            if isinstance(action, PatchStatus):
                self.obj = self.obj.model_copy(update={"status": action.status})
            elif isinstance(action, CreateJob):
                self.children[action.name] = ObservedJob(
                    name=action.name,
                    uid=f"uid-{action.name}",
                    owner_uid=self.obj.metadata.uid,
                    purpose=action.purpose,
                    attempt=action.attempt,
                    state="running",
                    started_at=self.now,
                )
            elif isinstance(action, CreateTrial):
                meta = {**action.job.metadata.to_dict(), "uid": f"uid-{action.job.metadata.name}", "generation": 1}
                body = {**action.job.to_dict(), "metadata": meta}
                self.trials[action.job.metadata.name] = CompressionJob.model_validate(body)
        return self

    def _plan(self) -> Plan:
        children = tuple(self.children.values())
        if isinstance(self.obj, CompressionJob):
            problems = tuple(str(problem) for problem in job_problems(self.obj.spec, cluster=True))
            return reconcile_job(JobObserved(self.obj, children=children, problems=problems), self.now)
        problems = tuple(str(problem) for problem in sweep_problems(self.obj.spec, cluster=True))
        observed = SweepObserved(self.obj, tuple(self.trials.values()), children, problems)
        return reconcile_sweep(observed, self.now, strategy_for(self.obj.spec))

    def end(self, message: str, state: str = "succeeded", cause: str | None = None) -> World:
        """All children that run end so; then reconcile twice."""
        for name, child in self.children.items():
            if not child.terminal:
                ended = {"state": state, "cause": cause, "message": message, "finished_at": self.now}
                self.children[name] = replace(child, **ended)  # type: ignore[arg-type]
        return self.step().step()

    def end_trials(self, message: str, state: str = "succeeded", cause: str | None = None) -> World:
        """All trials run, as jobs, to an end of this kind; then reconcile twice."""
        for name, trial in self.trials.items():
            world = World("CompressionJob")
            world.obj, world.now = trial, self.now
            ended = world.step().step().end(message, state, cause).obj
            assert isinstance(ended, CompressionJob)
            self.trials[name] = ended
        return self.step().step()

    def change(self, **spec: Any) -> World:
        """The user changes the spec; the operator has not seen it yet."""
        meta = self.obj.metadata.model_copy(update={"generation": (self.obj.metadata.generation or 1) + 1})
        body = {**self.obj.to_dict(), "spec": {**self.obj.spec.to_dict(), **spec}}
        self.obj = type(self.obj).model_validate(body).model_copy(update={"metadata": meta})
        return self

    def raw(self) -> dict[str, Any]:
        """The object as JSON."""
        return self.obj.to_dict()


def job_states() -> dict[str, dict[str, Any]]:
    """CompressionJobs, by what happened to them."""

    def job(**spec: Any) -> World:
        return World("CompressionJob", **spec)

    return {
        "created": {**job().raw(), "status": {"observedGeneration": -1}},
        "pending": job().step().raw(),
        "running": job().step().step().raw(),
        "retrying": job().step().step().end(failed(), "failed", "error").raw(),
        "suspended": job(suspend=True).step().raw(),
        "suspend not seen": job().step().step().change(suspend=True).raw(),
        "succeeded": job().step().step().end(done()).raw(),
        "constraint missed": job().step().step().end(MISSED).raw(),
        "nothing smaller": job().step().step().end(done(smaller=False)).raw(),
        "failed": job(backoffLimit=0).step().step().end(failed(), "failed", "error").raw(),
        "model refused": job().step().step().end(failed("InvalidModel"), "failed", "invalid").raw(),
        "invalid": job(store={"uri": "memory://x"}).step().raw(),
    }


def sweep_states() -> dict[str, dict[str, Any]]:
    """CompressionSweeps, by what happened to them."""

    def sweep(**spec: Any) -> World:
        return World("CompressionSweep", **spec)

    def trials(**spec: Any) -> World:
        return sweep(**spec).step().step().end(done())

    return {
        "created": {**sweep().raw(), "status": {"observedGeneration": -1}},
        "preparing": sweep().step().step().raw(),
        "running": trials().raw(),
        "suspended": trials().change(suspend=True).step().raw(),
        "publishing": trials().end_trials(done(0.9)).raw(),
        "succeeded": trials().end_trials(done(0.9)).end(done()).raw(),
        "publish failed": trials().end_trials(done(0.9)).end(failed(), "failed", "invalid").raw(),
        "none feasible": trials(constraints=[{"metric": "default", "min": 0.99}])
        .end_trials(done(0.9))
        .end(done())
        .raw(),
        "failed": trials().end_trials(failed("InvalidModel"), "failed", "invalid").raw(),
        "invalid": sweep(objectives=[{"metric": "default"}, {"metric": "default"}]).step().raw(),
    }
