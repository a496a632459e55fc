"""CompressionJob: one recipe, run once on one model."""

from typing import Annotated, Literal

from pydantic import Field

from .base import ApiModel, Count, Name, Scalar, Text, Time, Uri
from .code import Code
from .data import Data
from .meta import Condition, JobMeta, Stop
from .metrics import Constraint, Metric, MetricName
from .model import Benchmark, Export, Model, Store, Target
from .runner import Runner
from .stages import Stage

Phase = Literal["Pending", "Running", "Suspended", "Stopped", "Succeeded", "Failed"]
TERMINAL_PHASES: frozenset[str] = frozenset({"Stopped", "Succeeded", "Failed"})
AttemptOutcome = Literal["Running", "Succeeded", "Failed", "Invalid", "Disrupted", "Suspended", "Stopped", "Lost"]


class CompressionJobSpec(ApiModel):
    """A recipe and everything needed to run it. Immutable but for `suspend`."""

    model: Model
    code: Code | None = Field(default=None, description="Where the Python is; none: in the image, or on sys.path.")
    data: Data | None = Field(
        default=None, description="What trains, scores and calibrates; an entrypoint may have data of its own."
    )
    stages: Annotated[list[Stage], Field(min_length=1, max_length=32)]
    metrics: Annotated[dict[MetricName, Metric], Field(max_length=64)] | None = Field(
        default=None, description="Goals of the evaluator's own metrics; those not named are maximized."
    )
    constraints: Annotated[list[Constraint], Field(max_length=32)] | None = None
    target: Target = Field(default_factory=Target)
    benchmark: Benchmark = Field(default_factory=Benchmark)
    export: Export = Field(default_factory=Export)
    store: Store | None = Field(default=None, description="Local runs default to ./modelpress-runs.")
    runner: Runner | None = Field(
        default=None,
        description="How a cluster runs the pods. A local run uses the machine as it is, but for numbers of "
        "processes and GPUs.",
    )
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = Field(default=0, description="Of every random choice.")
    suspend: bool = Field(
        default=False, description="Stop running, after a checkpoint, until it is false again. May change at any time."
    )
    backoff_limit: Annotated[int, Field(ge=0, le=100)] = Field(
        default=2, description="Further attempts after one that failed on its own account."
    )
    max_disruptions: Annotated[int, Field(ge=0, le=1000)] = Field(
        default=20,
        description="Attempts lost to eviction, preemption or a killed `modelpress run` before the job fails.",
    )
    active_deadline_seconds: Annotated[int, Field(ge=1, le=31_536_000)] | None = Field(
        default=None, description="Suspended and queued time does not count."
    )
    ttl_seconds_after_finished: Annotated[int, Field(ge=0, le=31_536_000)] | None = Field(
        default=None, description="After it the finished child Jobs are deleted; never this object."
    )


class Attempt(ApiModel):
    """One child Job of a CompressionJob, as it was last seen."""

    number: Count = Field(description="From 1.")
    outcome: AttemptOutcome = Field(description="How it ended, or Running.")
    reason: Annotated[str, Field(max_length=64)] | None = Field(default=None, description="See the table of reasons.")
    message: Text | None = Field(default=None, description="What the runner or the cluster said.")
    create_time: Time | None = Field(default=None, description="When its child Job was decided on.")
    start_time: Time | None = Field(default=None, description="When its runner was last seen to start.")
    finish_time: Time | None = Field(default=None, description="Absent as long as its child Job may still run.")


class MetricsPair(ApiModel):
    """The dense model's metrics beside the compressed model's."""

    baseline: dict[MetricName, float] = Field(
        default_factory=dict, max_length=64, description="Of the dense model, by name."
    )
    compressed: dict[MetricName, float] = Field(
        default_factory=dict, max_length=64, description="Of the compressed model, by name."
    )


class Artifact(ApiModel):
    """Where a finished job's files are, and the digest that proves them."""

    uri: Uri = Field(description="The folder that holds manifest.json; mp.load opens it.")
    manifest_digest: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", max_length=64)] = Field(
        description="sha256 of manifest.json."
    )


class Point(ApiModel):
    """One intermediate score."""

    step: Annotated[int, Field(ge=0, le=2**53)] = Field(
        description="Optimizer steps done when it was measured, or the step of mp.report."
    )
    value: float = Field(description="The evaluator's score then.")
    metrics: dict[MetricName, float] | None = Field(
        default=None, max_length=16, description="What else was known then: the evaluator's other metrics, counts."
    )


class Progress(ApiModel):
    """Where a running attempt is."""

    stage: Text = Field(description="What it does.")
    step: Annotated[int, Field(ge=0, le=2**53)] = Field(description="Optimizer steps done.")
    total: Annotated[int, Field(ge=0, le=2**53)] = Field(description="Optimizer steps in all; 0: not known.")
    time: Time = Field(description="When it said so.")


class TrialRecord(ApiModel):
    """Which trial of which sweep a job is. Nobody but the operator writes it, unlike labels and annotations."""

    sweep: Annotated[str, Field(min_length=1, max_length=128)] = Field(description="uid of the CompressionSweep.")
    number: Annotated[int, Field(ge=0, le=999_999)] = Field(description="From 0.")
    parameters: Annotated[dict[Name, Scalar], Field(max_length=64)] = Field(description="Its values, by parameter.")
    screened: Annotated[int, Field(ge=0, le=999_999)] | None = Field(
        default=None, description="Of a sweep with screening: the trial of the first rung that this one goes on from."
    )


class CompressionJobStatus(ApiModel):
    """What was observed of a CompressionJob. Older clients treat an unknown phase as Running."""

    observed_generation: int = Field(default=-1, description="metadata.generation that this status is about.")
    phase: Phase | None = Field(default=None, description="A summary of the conditions.")
    conditions: Annotated[list[Condition], Field(max_length=16)] = Field(default_factory=list)
    attempts: Annotated[list[Attempt], Field(max_length=8)] = Field(
        default_factory=list, description="The last 8 attempts, oldest first."
    )
    started: Annotated[int, Field(ge=0)] = Field(default=0, description="Attempts created so far.")
    failures: Annotated[int, Field(ge=0)] = Field(default=0, description="Attempts counted against backoffLimit.")
    disruptions: Annotated[int, Field(ge=0)] = Field(default=0, description="Attempts lost to disruptions.")
    memory: Annotated[str, Field(max_length=32)] | None = Field(
        default=None, description="The limit that attempts have since one was killed for memory; see runner.maxMemory."
    )
    active_seconds: Annotated[float, Field(ge=0)] = Field(
        default=0.0, description="Running time of all finished attempts; what activeDeadlineSeconds counts."
    )
    start_time: Time | None = Field(default=None, description="When the first attempt started.")
    completion_time: Time | None = Field(default=None, description="When it was Complete or Failed.")
    progress: Progress | None = None
    intermediate: Annotated[list[Point], Field(max_length=64)] | None = Field(
        default=None, description="The scores of the latest attempt so far, by step; thinned to 64."
    )
    metrics: MetricsPair | None = None
    code_digest: Annotated[str, Field(max_length=64)] | None = Field(
        default=None, description="Digest of the code that ran."
    )
    artifact: Artifact | None = None
    stop: Stop | None = None
    trial: TrialRecord | None = None


class CompressionJob(ApiModel):
    """One recipe, run once on one model: measured before and after, with an artifact that reloads anywhere."""

    api_version: Literal["modelpress.dev/v1alpha1"] = "modelpress.dev/v1alpha1"
    kind: Literal["CompressionJob"] = "CompressionJob"
    metadata: JobMeta
    spec: CompressionJobSpec
    status: CompressionJobStatus = Field(default_factory=CompressionJobStatus)
