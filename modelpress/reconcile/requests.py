"""What runners are asked to do, worked out from the objects alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import ValidationError

from modelpress.api.v1alpha1 import CompressionJob, CompressionJobSpec, CompressionSweep, Constraint
from modelpress.api.v1alpha1 import reasons as r
from modelpress.api.v1alpha1.model import Store
from modelpress.request import (
    MAX_REQUEST_BYTES,
    PublishRequest,
    Purpose,
    RunRequest,
    SuggestRequest,
    TrialIdentity,
    job_root,
    trial_prefix,
)
from modelpress.trials import number_of, parameters_of, screened_of, shared_stages_of

from .model import OwnerState

DEFAULT_STORE = Store(uri="./modelpress-runs")  # of a laptop; on a cluster a spec without a store is refused before
_MAX_URI = 2048
_RUN_UID_BYTES = 128  # bytes that the controller adds when it fills in the run's uid


@dataclass(frozen=True)
class StoreLocation:
    """Where a job writes below its store, and which trial it is."""

    root: str
    prefix: str
    trial: TrialIdentity | None = None


def store_location(job: CompressionJob) -> StoreLocation:
    """A trial writes below its sweep's folder, any other job into its own."""
    meta, record = job.metadata, job.status.trial
    number = number_of(job)
    if record is not None:
        sweep: tuple[str, str] | None = (meta.name.rpartition("-")[0], record.sweep)
    else:
        refs = meta.owner_references or ()
        owner = next((ref for ref in refs if ref.controller and ref.kind == "CompressionSweep"), None)
        sweep = (owner.name, owner.uid) if owner is not None else None
    if sweep is None or number is None:
        root = job_root(meta.namespace, meta.name, meta.uid or "")
        return StoreLocation(root, root)
    root = job_root(meta.namespace, *sweep)
    return StoreLocation(root, trial_prefix(root, number), _identity(job, number))


def sweep_root(sweep: CompressionSweep) -> str:
    """The folder of a sweep below its store."""
    return job_root(sweep.metadata.namespace, sweep.metadata.name, sweep.metadata.uid or "")


def run_request(job: CompressionJob, purpose: Purpose, attempt: int, owner: OwnerState | None = None) -> RunRequest:
    """What attempt `attempt` of a job, or the collect Job of that attempt, is asked to do."""
    where = store_location(job)
    return RunRequest(
        purpose=purpose,
        namespace=job.metadata.namespace,
        name=job.metadata.name,
        uid=job.metadata.uid or "",
        attempt=attempt,
        root=where.root,
        prefix=where.prefix,
        spec=resolved(job.spec),
        keep_metrics=kept_metrics(job, owner) or None,
        trial=where.trial,
    )


def sweep_request(
    sweep: CompressionSweep,
    purpose: Purpose,
    attempt: int,
    publish: PublishRequest | None = None,
    suggest: SuggestRequest | None = None,
) -> RunRequest:
    """What a sweep's prepare, publish or suggest Job is asked to do."""
    root = sweep_root(sweep)
    return RunRequest(
        purpose=purpose,
        namespace=sweep.metadata.namespace,
        name=sweep.metadata.name,
        uid=sweep.metadata.uid or "",
        attempt=attempt,
        root=root,
        prefix=root,
        spec=resolved(sweep.spec.template.spec),
        keep_metrics=_kept(
            [objective.metric for objective in sweep.spec.objectives],
            [*(sweep.spec.template.spec.constraints or ()), *(sweep.spec.constraints or ())],
        )
        or None,
        publish=publish,
        suggest=suggest,
    )


def resolved(spec: CompressionJobSpec) -> CompressionJobSpec:
    """The spec with a store."""
    return spec if spec.store is not None else spec.model_copy(update={"store": DEFAULT_STORE})


def artifact_uri(spec: CompressionJobSpec, path: str) -> str:
    """URI of a folder of the store."""
    return f"{(spec.store or DEFAULT_STORE).uri.rstrip('/')}/{path}"


def request_problem(request: RunRequest) -> tuple[str, str] | None:
    """Why no runner can be given the request, as (reason, sentence); None if it fits."""
    if len(artifact_uri(request.spec, request.prefix)) > _MAX_URI:
        return r.INVALID_SPEC, f"spec.store.uri: the artifact's URI has more than {_MAX_URI} characters; shorten it."
    size = len(request.to_json().encode()) + _RUN_UID_BYTES
    if size <= MAX_REQUEST_BYTES:
        return None
    sentence = f"spec: {size} bytes as JSON, more than the {MAX_REQUEST_BYTES} that a runner can be given; shorten it."
    return r.SPEC_TOO_LARGE, sentence


def kept_metrics(job: CompressionJob, owner: OwnerState | None) -> list[str]:
    """Metrics that no result and no status of a job may lack: its sweep's objectives and those of its constraints."""
    return _kept(owner.objectives if owner is not None else (), job.spec.constraints)


def _kept(objectives: Sequence[str], constraints: Sequence[Constraint] | None) -> list[str]:
    return list(dict.fromkeys([*objectives, *(constraint.metric for constraint in constraints or ())]))


def _identity(job: CompressionJob, number: int) -> TrialIdentity:
    shared = min(shared_stages_of(job), len(job.spec.stages or ()))
    try:
        parameters, screened = parameters_of(job) or {}, screened_of(job)
        return TrialIdentity(number=number, parameters=parameters, shared_stages=shared, screened=screened)
    except ValidationError:  # somebody edited the annotation; the spec holds what counts
        return TrialIdentity(number=number)
