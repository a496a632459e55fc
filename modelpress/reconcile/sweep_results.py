"""What a sweep says of its results: the publication, the front, and the best trial's conditions."""

from __future__ import annotations

from modelpress.api.v1alpha1 import Artifact
from modelpress.api.v1alpha1 import reasons as r

from .auxiliary_jobs import AuxiliaryJob
from .conditions import ConditionUpdate, find
from .requests import artifact_uri, resolved, sweep_root
from .sweep_draft import StatusDraft
from .sweep_snapshot import SweepSnapshot


def front_of(draft: StatusDraft) -> list[int]:
    """Numbers of the front, ascending."""
    return sorted(set(draft.front))


def settle_publication(draft: StatusDraft, auxiliary: AuxiliaryJob) -> None:
    """What became of the publish Job: the artifact and its condition."""
    snapshot = draft.snapshot
    if auxiliary.result is not None and auxiliary.result.manifest_digest is not None and draft.winner is not None:
        uri = artifact_uri(resolved(snapshot.sweep.spec.template.spec), f"{sweep_root(snapshot.sweep)}/best")
        draft.update["artifact"] = Artifact(uri=uri, manifest_digest=auxiliary.result.manifest_digest)
        draft.conditions.append(
            ConditionUpdate(r.ARTIFACT_AVAILABLE, "True", r.PUBLISHED, f"The best model is at {uri}.")
        )
        return
    draft.update["artifact"] = None
    if auxiliary.failed is not None:
        text = f"The best model could not be published: {auxiliary.failed.message}"
        draft.conditions.append(ConditionUpdate(r.ARTIFACT_AVAILABLE, "False", r.PUBLISH_FAILED, text))
    elif draft.best is None:
        draft.conditions.append(
            ConditionUpdate(r.ARTIFACT_AVAILABLE, "False", r.OBJECTIVE_MISSING, _unreported(snapshot))
        )
    elif draft.winner is None:
        text = "No trial met the constraints; the report is written."
        draft.conditions.append(ConditionUpdate(r.ARTIFACT_AVAILABLE, "False", r.CONSTRAINT_MISSED, text))
    else:
        text = "The publish Job reported no manifest."
        draft.conditions.append(ConditionUpdate(r.ARTIFACT_AVAILABLE, "False", r.PUBLISH_FAILED, text))


def _unreported(snapshot: SweepSnapshot) -> str:
    listed = ", ".join(objective.metric for objective in snapshot.sweep.spec.objectives)
    return f"None of {len(snapshot.succeeded)} trials that succeeded reports every objective ({listed})."


def judged(draft: StatusDraft) -> list[ConditionUpdate]:
    """What a finished sweep says of its best trial."""
    snapshot, best = draft.snapshot, draft.winner
    spec = snapshot.sweep.spec
    if draft.best is None:
        return [ConditionUpdate(r.CONSTRAINTS_MET, "False", r.OBJECTIVE_MISSING, _unreported(snapshot))]
    if best is None:
        text = f"None of {len(snapshot.succeeded)} trials that succeeded met the constraints."
        met = [find(trial.status.conditions, r.CONSTRAINTS_MET) for trial in snapshot.succeeded]
        unsure = sum(condition is not None and condition.status == "Unknown" for condition in met)
        if unsure:
            text = f"{text[:-1]} for certain; the spread of their latencies leaves {unsure} open."
            return [ConditionUpdate(r.CONSTRAINTS_MET, "Unknown", r.LATENCY_UNCERTAIN, text)]
        return [ConditionUpdate(r.CONSTRAINTS_MET, "False", r.CONSTRAINT_MISSED, text)]
    constrained = bool(spec.constraints or spec.template.spec.constraints)
    out = [ConditionUpdate(r.CONSTRAINTS_MET, "True", r.CONSTRAINTS_SATISFIED if constrained else r.NO_CONSTRAINTS)]
    trial = snapshot.trials.get(best.number)
    for type_ in (r.COMPRESSED, r.PORTABLE):
        condition = find(trial.status.conditions, type_) if trial else None
        if condition is not None:
            out.append(ConditionUpdate(type_, condition.status, condition.reason, condition.message))
    return out
