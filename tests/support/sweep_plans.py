"""Sweeps on their way, what is observed of them, and what a plan does with them."""

from __future__ import annotations

import json
from typing import Any

from reconcile_objects import UID, HashStrategy, at, child, make_job, make_sweep, success

from modelpress.api.v1alpha1 import CompressionJob, CompressionSweep, CompressionSweepStatus
from modelpress.reconcile import (
    CreateJob,
    CreateTrial,
    ObservedJob,
    PatchStatus,
    Plan,
    SweepObserved,
    reconcile_sweep,
)
from modelpress.trials import HISTORY_ANNOTATION, PARAMETERS_ANNOTATION

MISSED = [{"type": "ConstraintsMet", "status": "False", "reason": "X", "lastTransitionTime": "2026-03-01T12:00:00Z"}]


def plan_of(
    sweep: CompressionSweep,
    seconds: float = 0,
    *,
    trials: tuple[CompressionJob, ...] = (),
    children: tuple[ObservedJob, ...] = (),
    strategy: HashStrategy | None = None,
    problems: tuple[str, ...] = (),
) -> Plan:
    """Reconcile a snapshot."""
    return reconcile_sweep(
        SweepObserved(sweep, trials, children, problems), at(seconds), strategy or HashStrategy(sweep)
    )


def status_of(plan: Plan) -> CompressionSweepStatus:
    """The status that a plan writes; it is always the first action."""
    assert isinstance(plan.actions[0], PatchStatus)
    status = plan.actions[0].status
    assert isinstance(status, CompressionSweepStatus)
    return status


def after(sweep: CompressionSweep, plan: Plan) -> CompressionSweep:
    """The sweep once the plan's status is stored, by way of JSON."""
    status = CompressionSweepStatus.model_validate(json.loads(json.dumps(status_of(plan).to_dict())))
    return sweep.model_copy(update={"status": status})


def created(plan: Plan) -> list[CompressionJob]:
    """The trials that a plan creates."""
    return [action.job for action in plan.actions if isinstance(action, CreateTrial)]


def job_names(plan: Plan) -> list[str]:
    """The Jobs that a plan creates."""
    return [action.name for action in plan.actions if isinstance(action, CreateJob)]


def trial(number: int, phase: str = "Running", *, name: str = "search", **status: Any) -> CompressionJob:
    """A trial as the API server stores it."""
    job = make_job(f"{name}-{number:05d}")
    meta = {
        **job.metadata.to_dict(),
        "uid": f"trial-{number}",
        "labels": {"modelpress.dev/trial": str(number), "modelpress.dev/sweep": name},
        "annotations": {PARAMETERS_ANNOTATION: '{"sparsity": 0.5}', HISTORY_ANNOTATION: "finished=;running="},
        "ownerReferences": [
            {"apiVersion": "modelpress.dev/v1alpha1", "kind": "CompressionSweep", "name": name, "uid": UID}
            | {"controller": True}
        ],
    }
    record = {"trial": {"sweep": UID, "number": number, "parameters": {"sparsity": 0.5}}}
    if phase == "Succeeded":
        score = status.pop("score", 0.5)
        status.setdefault("metrics", {"baseline": {"default": 0.9}, "compressed": {"default": score}})
    return CompressionJob.model_validate(
        {**job.to_dict(), "metadata": meta, "status": {**job.status.to_dict(), "phase": phase, **record, **status}}
    )


def prepared(**spec: Any) -> CompressionSweep:
    """A sweep whose prepare Job was created at second 0."""
    sweep = make_sweep(**spec)
    return after(sweep, plan_of(sweep))


def prepare(state: str = "succeeded", number: int = 1, **fields: Any) -> ObservedJob:
    """The prepare Job."""
    name = "search-prepare" + ("" if number == 1 else f"-{number}")
    given = {"message": success(baseline={"default": 0.95})} if state == "succeeded" else {}
    return child(name, state, purpose="prepare", attempt=number, **{**given, **fields})


def publish(state: str = "succeeded", number: int = 1, **fields: Any) -> ObservedJob:
    """The publish Job."""
    name = "search-publish" + ("" if number == 1 else f"-{number}")
    given = {"message": success()} if state == "succeeded" else {}
    return child(name, state, purpose="publish", attempt=number, **{"finished_at": at(200), **given, **fields})


def going(seconds: float = 20, **spec: Any) -> CompressionSweep:
    """A sweep whose first two trials were decided on at that time."""
    sweep = prepared(**spec)
    return after(sweep, plan_of(sweep, seconds, children=(prepare(),)))


def without_prepare(**spec: Any) -> CompressionSweep:
    """A sweep that searches below /model, so that nothing is shared."""
    space = [{"name": "width", "paths": ["/model/args/width"], "int": {"min": 1, "max": 9}}]
    return make_sweep(searchSpace=space, **spec)


def over(seconds: float = 100, scores: tuple[float, ...] = (0.6, 0.8), **spec: Any) -> tuple[Any, ...]:
    """A sweep of two trials that both succeeded, with its publish Job created."""
    sweep = going(maxTrials=2, **spec)
    trials = tuple(trial(number, "Succeeded", score=score) for number, score in enumerate(scores))
    plan = plan_of(sweep, seconds, trials=trials)
    return after(sweep, plan), trials, plan


def edited(sweep: CompressionSweep, **fields: Any) -> CompressionSweep:
    """The sweep after a user changed its spec."""
    meta = sweep.metadata.model_copy(update={"generation": (sweep.metadata.generation or 0) + 1})
    return sweep.model_copy(update={"metadata": meta, "spec": sweep.spec.model_copy(update=fields)})
