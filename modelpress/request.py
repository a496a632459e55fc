"""RunRequest, what a runner is asked to do: the contract from controller to runner, versioned.

A controller (the operator or `modelpress run`) writes a RunRequest as JSON; on a cluster it is the pod annotation
`modelpress.dev/spec`. It holds no secret and is at most 256 KiB.

The runner may be of another version than the controller. Keys of the request that it does not know are ignored. Fields
of the specification are written only where they differ from their default, so an older runner meets one that it does
not know only where the user set it; it then refuses the run, for without it the recipe would be another.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import Field

from modelpress.api.v1alpha1 import CompressionJobSpec, Objective
from modelpress.api.v1alpha1.base import ContractModel, Name, Scalar, Uri
from modelpress.api.v1alpha1.metrics import MetricName
from modelpress.api.v1alpha1.sweep import ScreeningStatus

Purpose = Literal["trial", "prepare", "collect", "publish", "suggest"]
MAX_REQUEST_BYTES = 256 * 1024

# What a pod has besides the request. On one machine none of it is there.
CODE_FOLDER = "/workspace/code"  # where the ConfigMap of spec.code is mounted
GIT_SECRET_FOLDER = "/var/run/secrets/modelpress.dev/git"  # where the Secret of spec.code.git is mounted
RUN_UID_VARIABLE = "MODELPRESS_RUN_UID"  # environment variable with the run's uid, where the request has none


class TrialIdentity(ContractModel):
    """Which trial of a sweep a run is."""

    number: Annotated[int, Field(ge=0)]
    parameters: dict[Name, Scalar] = Field(default_factory=dict)
    shared_stages: Annotated[int, Field(ge=0)] = Field(
        default=0, description="How many of its first stages other trials of the sweep have alike."
    )
    screened: Annotated[int, Field(ge=0)] | None = Field(
        default=None, description="The trial of the first rung that this one goes on from."
    )


class PublishRequest(ContractModel):
    """What a sweep publishes. Everything else is read from the trials' manifests and results in the store."""

    objectives: list[Objective]
    best: int | None = Field(default=None, description="Number of the best feasible trial.")
    front: list[int] = Field(default_factory=list, description="Numbers of the Pareto front's trials.")
    keep: Literal["all", "pareto", "best"] = Field(default="all", description="Trials whose models are kept.")
    screening: ScreeningStatus | None = Field(default=None, description="Both rankings; None: there is one rung.")


class SuggestRequest(ContractModel):
    """What a search asks whose sampler imports torch; modelpress.trials.Question has the same fields."""

    number: Annotated[int, Field(ge=0)] = Field(description="Of the trial, among those that the search gives.")
    history: str = Field(description="Encoded; the answer repeats it.")
    sweep: dict[str, Any] = Field(description="The sweep's specification; its template is the request's.")
    names: list[str] = Field(description="Of the parameters.")
    observations: list[list[Any]] = Field(description="[number, state, parameters, values, violations] of each trial.")


class RunRequest(ContractModel):
    """One run of a runner."""

    api_version: Literal["modelpress.dev/v1alpha1"] = "modelpress.dev/v1alpha1"
    kind: Literal["RunRequest"] = "RunRequest"
    purpose: Purpose
    namespace: str
    name: str = Field(description="Name of the CompressionJob, or of the sweep when preparing or publishing.")
    uid: str
    attempt: Annotated[int, Field(ge=1)] = 1
    run_uid: str = Field(default="", description="Pod or Job uid, or a random id.")
    root: Uri = Field(
        description="<namespace>/<sweep or standalone job>-<uid8>, below the store's URI; the dense cache lies in it."
    )
    prefix: Uri = Field(description="Where this run writes: <root>/trials/<00007> of a sweep's trial, else <root>.")
    spec: CompressionJobSpec = Field(description="Resolved: parameters applied, store.uri always set.")
    keep_metrics: list[MetricName] | None = Field(
        default=None,
        description="Metrics of the sweep's objectives and of all constraints, each once: no result leaves one out.",
    )
    trial: TrialIdentity | None = None
    publish: PublishRequest | None = None
    suggest: SuggestRequest | None = None
    code_path: str | None = Field(
        default=None, description="Absolute folder of the code, resolved by a local controller."
    )
    base_path: str | None = Field(
        default=None, description="Absolute folder that relative paths of the spec refer to, by a local controller."
    )

    def to_json(self) -> str:
        """The request as JSON, without what is absent or a default of the specification."""
        data = self.model_dump(mode="json", exclude_none=True, exclude={"spec"})
        data["spec"] = self.spec.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
        return json.dumps(data, ensure_ascii=False, separators=(",", ":"))


def uid8(uid: str) -> str:
    """The first 8 characters of a uid without dashes, as artifact paths carry it."""
    return uid.replace("-", "")[:8]


def job_root(namespace: str, name: str, uid: str) -> str:
    """Folder of a standalone job or of a sweep below the store's URI."""
    return f"{namespace}/{name}-{uid8(uid)}"


def trial_prefix(root: str, number: int) -> str:
    """Folder of one trial of a sweep below the store's URI."""
    return f"{root}/trials/{number:05d}"
