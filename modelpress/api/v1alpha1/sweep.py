"""CompressionSweep: a search over recipes; each trial is a CompressionJob."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from .base import ApiModel, Cel, Name, Scalar, Time, cel_exactly_one, exactly_one
from .job import Artifact, CompressionJobSpec, Phase
from .meta import Condition, SweepMeta
from .metrics import Constraint, MetricName, Objective
from .stages import Prune


def _present_name(pointer: str) -> str:
    """The pointer with the present names of a prune stage's keys: a template's document has no others."""
    block, _, key = pointer.rpartition("/")
    if not (block.startswith("/stages/") and block.endswith("/prune")):
        return pointer
    return f"{block}/{Prune.earlier_names.get(key, key)}"


JsonPointer = Annotated[
    str,
    Field(min_length=1, max_length=512, pattern=r"^(/[^/~]*(~[01][^/~]*)*)+$"),
    AfterValidator(_present_name),
]
ParameterName = Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]

WhenValues = Annotated[list[Scalar], Field(min_length=1, max_length=256)]


def _range_rules(zero: str) -> tuple[Cel, ...]:
    return (
        Cel("self.min <= self.max", "min must not be greater than max"),
        Cel("!self.log || !has(self.step)", "log and step exclude each other"),
        Cel(f"!self.log || self.min > {zero}", "log needs a min above 0"),
    )


class FloatRange(ApiModel):
    """min, min+step, ..., max; or all of [min, max], evenly or by logarithm."""

    min: float = Field(description="Least value.")
    max: float = Field(description="Greatest value; with a step, the last one that does not pass it.")
    step: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="Distance of the values; none: a continuum."
    )
    log: bool = Field(default=False, description="Spread evenly by logarithm.")

    cel_rules: ClassVar[tuple[Cel, ...]] = _range_rules("0.0")

    @model_validator(mode="after")
    def _range(self) -> Self:
        _check_range(self.min, self.max, self.step, self.log)
        return self


class IntRange(ApiModel):
    """min, min+step, ..., max; or by logarithm."""

    min: Annotated[int, Field(ge=-(2**53), le=2**53)] = Field(description="Least value.")
    max: Annotated[int, Field(ge=-(2**53), le=2**53)] = Field(
        description="Greatest value; with a step, the last one that does not pass it."
    )
    step: Annotated[int, Field(ge=1)] | None = Field(default=None, description="Distance of the values; none: 1.")
    log: bool = Field(default=False, description="Spread evenly by logarithm.")

    cel_rules: ClassVar[tuple[Cel, ...]] = _range_rules("0")

    @model_validator(mode="after")
    def _range(self) -> Self:
        _check_range(self.min, self.max, self.step, self.log)
        return self


def _check_range(low: float, high: float, step: float | None, log: bool) -> None:
    if low > high:
        raise PydanticCustomError("range_order", "min must not be greater than max", {})
    if log and step is not None:
        raise PydanticCustomError("range_log_step", "log and step exclude each other", {})
    if log and low <= 0:
        raise PydanticCustomError("range_log_min", "log needs a min above 0", {})


class Categorical(ApiModel):
    """One of a few values."""

    # A set, so that the API server refuses what _distinct refuses.
    values: Annotated[
        list[Scalar], Field(min_length=1, max_length=256, json_schema_extra={"x-kubernetes-list-type": "set"})
    ] = Field(description="Texts, numbers, true or false; each once.")

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        seen: set[tuple[bool, Any]] = set()
        for value in self.values:
            # JSON knows one kind of number, so 1 and 1.0 are equal; true is another value than 1.
            key = (isinstance(value, bool), value)
            if key in seen:
                raise PydanticCustomError(
                    "distinct", "values must differ; {value} stands twice", {"value": repr(value)}
                )
            seen.add(key)
        return self


class Alternative(ApiModel):
    """A part of a recipe, by name."""

    name: Name = Field(description="Stands for it in tables, in reports and in `when`.")
    value: Any = Field(description="What is put in: a stage, a list of stages, an entry, a single value.")


class Choice(ApiModel):
    """One of a few parts of a recipe."""

    values: Annotated[
        list[Alternative],
        Field(
            min_length=1,
            max_length=64,
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
        ),
    ] = Field(description="Each under a name of its own.")

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        seen: set[str] = set()
        for value in self.values:
            if value.name in seen:
                raise PydanticCustomError("distinct", "names must differ; {name} stands twice", {"name": value.name})
            seen.add(value.name)
        return self


class Parameter(ApiModel):
    """One dimension of a search space, applied by JSON Pointer into template.spec."""

    name: ParameterName = Field(description="Of the column in tables and reports, and in `when`.")
    paths: Annotated[list[JsonPointer], Field(min_length=1, max_length=64)] = Field(
        description="JSON Pointers (RFC 6901) into template.spec; all get the same value."
    )
    categorical: Categorical | None = None
    float: FloatRange | None = None
    int: IntRange | None = None
    choice: Choice | None = None
    expand: bool = Field(
        default=False,
        description="One parameter for each of the opNames of the configList entry that the pointers lead into, called "
        "<name>.<opName>.",
    )
    when: (
        Annotated[
            dict[str, WhenValues],
            Field(min_length=1, max_length=16),
        ]
        | None
    ) = Field(
        default=None,
        description="Sampled only if every named earlier parameter has one of these values; else the template's value "
        "stands.",
    )

    cel_rules: ClassVar[tuple[Cel, ...]] = (
        cel_exactly_one("categorical", "float", "int", "choice"),
        Cel("!self.expand || !has(self.choice)", "expand takes a range or categorical values, no choice"),
    )

    @model_validator(mode="after")
    def _one(self) -> Self:
        exactly_one(self, "categorical", "float", "int", "choice")
        if self.expand and self.choice is not None:
            raise PydanticCustomError("expand_choice", "expand takes a range or categorical values, no choice", {})
        return self


class Template(ApiModel):
    """What every trial starts from."""

    spec: CompressionJobSpec


MAX_EARLIER = 256  # trials of earlier sweeps that a search may begin with


class EarlierTrial(ApiModel):
    """A trial of an earlier sweep."""

    parameters: Annotated[dict[Name, Scalar], Field(min_length=1, max_length=64)] = Field(
        description="Its values, by parameter; those of another search space teach nothing."
    )
    metrics: Annotated[dict[MetricName, float], Field(min_length=1, max_length=64)] = Field(
        description="Of the model that it made."
    )


class WarmStart(ApiModel):
    """What earlier sweeps found; `modelpress warm-start` writes it from a sweep's results."""

    baseline: Annotated[dict[MetricName, float], Field(max_length=64)] | None = Field(
        default=None, description="Of their dense model; constraints are judged by it."
    )
    trials: Annotated[list[EarlierTrial], Field(min_length=1, max_length=MAX_EARLIER)]


class SearchAlgorithm(ApiModel):
    """How parameters are chosen.

    random: independent draws. grid: every combination once, in order. qmc: a randomised Halton sequence, which fills
    the space more evenly than chance. tpe: tree-structured Parzen estimator (Bergstra et al. 2011), multivariate, for
    one or several objectives. nsga2: NSGA-II (Deb et al. 2002) in its steady state form, for one or several objectives.
    cmaes: CMA-ES (Hansen and Ostermeier 2001), for one objective and mostly numbers. gp: Gaussian processes with
    expected improvement, for few trials of long runs, at most 500; it computes in a runner, which takes some seconds a
    trial. The last four use the constraints.
    """

    name: Literal["random", "grid", "qmc", "tpe", "nsga2", "cmaes", "gp"] = Field(
        default="tpe", description="See above."
    )
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = Field(default=0, description="Of the search; trials have theirs.")
    initial: (
        Annotated[list[Annotated[dict[Name, Scalar], Field(min_length=1, max_length=64)]], Field(max_length=64)] | None
    ) = Field(
        default=None,
        description="Parameters of the first trials, in this order; what an entry leaves out is drawn at random.",
    )
    warm_start: WarmStart | None = Field(
        default=None,
        description="Of tpe, nsga2, cmaes and gp: trials of earlier sweeps, which teach and are none of this.",
    )


class EarlyStopping(ApiModel):
    """When a running trial is not worth going on with, by its scores on the way (`status.intermediate`).

    median: its best score is worse than the median of the finished trials' at that step (after Golovin et al. 2017).
    asha: at minSteps, times reductionFactor, ... it is, with a probability of 0.95, not among the best
    1/reductionFactor of all that come so far (after Li et al. 2020). hyperband: as asha for a share 0.55 times as
    large, in three groups, smaller and smaller, that begin later and later (after Li et al. 2018). With several
    objectives by the first; the best in another goes on if it is in the better half by the first.
    """

    name: Literal["median", "asha", "hyperband"] = Field(description="See above.")
    min_steps: Annotated[int, Field(ge=1, le=2**53)] = Field(
        default=1, description="No trial is stopped before this step; the first rung of asha and hyperband."
    )
    min_trials: Annotated[int, Field(ge=1, le=10_000)] = Field(
        default=4, description="None is stopped before so many others came as far."
    )
    reduction_factor: Annotated[int, Field(ge=2, le=16)] = Field(
        default=3, description="Of asha and hyperband: one in so many is to go on at each rung."
    )


class Screening(ApiModel):
    """Two rungs: each of maxTrials trials runs the first stages alone, and the best of them go on to the end.

    Trials of the first rung are ranked by the objectives, feasible before infeasible, by Pareto front. A score that a
    constraint is about is one more objective there, for later stages may bring it back; counts and latencies are judged
    at once where only stages that train come later. Those that go on are trials of their own, which begin with the
    state behind the first stages, whatever stageCache says.
    """

    stages: Annotated[int, Field(ge=1, le=63)] = Field(description="Stages of the first rung; fewer than there are.")
    top: Annotated[int, Field(ge=1, le=100)] = Field(description="So many trials go on; they come besides maxTrials.")


class Artifacts(ApiModel):
    """Which trials keep their models once the sweep is published; metrics and records all do."""

    keep: Literal["all", "pareto", "best"] = Field(
        default="all", description="pareto: those on the front and the best one. Without a feasible trial all are kept."
    )


class Budget(ApiModel):
    """What a sweep may use; when it is used up no further trial starts."""

    wall_clock_seconds: Annotated[int, Field(ge=1, le=31_536_000)] | None = Field(
        default=None, description="Since the sweep started, suspended time excluded."
    )
    gpu_seconds: Annotated[int, Field(ge=1, le=2**53)] | None = Field(
        default=None, description="`runner.gpus` of the template x running time of the trials, lost attempts included."
    )


class CompressionSweepSpec(ApiModel):
    """A search. Immutable but for suspend, parallelism, maxTrials (up) and budget (up)."""

    template: Template
    search_space: Annotated[list[Parameter], Field(min_length=1, max_length=64)]
    objectives: Annotated[list[Objective], Field(min_length=1, max_length=8)]
    constraints: Annotated[list[Constraint], Field(max_length=32)] | None = Field(
        default=None, description="Added to the template's; trials that break one are infeasible."
    )
    algorithm: SearchAlgorithm = Field(default_factory=SearchAlgorithm)
    early_stopping: EarlyStopping | None = Field(default=None, description="None: every trial runs to its end.")
    screening: Screening | None = Field(default=None, description="None: every trial runs all stages at once.")
    parallelism: Annotated[int, Field(ge=1, le=1000)] = Field(
        default=1, description="Trials at one time. May change at any time."
    )
    max_trials: Annotated[int, Field(ge=1, le=10_000)] = Field(description="Trials at most. May be raised.")
    max_failed_trials: Annotated[int, Field(ge=0, le=10_000)] = Field(
        default=3, description="The sweep fails when more trials than this have failed."
    )
    artifacts: Artifacts = Field(default_factory=Artifacts)
    budget: Budget | None = Field(default=None, description="None: no limit but maxTrials. May be raised.")
    stage_cache: bool = Field(
        default=True,
        description="First stages that trials have alike are computed once, and kept until the sweep publishes.",
    )
    suspend: bool = Field(
        default=False,
        description="Stop all trials, after a checkpoint, until it is false again. May change at any time.",
    )


class TrialCounts(ApiModel):
    """How many trials are in which state."""

    pending: Annotated[int, Field(ge=0)] = Field(default=0, description="Created, not started.")
    running: Annotated[int, Field(ge=0)] = Field(default=0, description="Started, not finished.")
    suspended: Annotated[int, Field(ge=0)] = Field(default=0, description="Waiting to go on.")
    succeeded: Annotated[int, Field(ge=0)] = Field(default=0, description="Finished, constraints met or not.")
    infeasible: Annotated[int, Field(ge=0)] = Field(default=0, description="Of the succeeded, those that miss one.")
    failed: Annotated[int, Field(ge=0)] = Field(default=0, description="Ended without a result.")
    stopped: Annotated[int, Field(ge=0)] = Field(default=0, description="Ended early by the sweep.")
    lost: Annotated[int, Field(ge=0)] = Field(default=0, description="Deleted by somebody before they finished.")
    refused: Annotated[int, Field(ge=0)] = Field(default=0, description="Their parameters gave an invalid recipe.")


class TrialResult(ApiModel):
    """One finished trial in a sweep's status."""

    number: Annotated[int, Field(ge=0)] = Field(description="From 0.")
    name: Annotated[str, Field(max_length=253)] = Field(description="Of its CompressionJob.")
    parameters: Annotated[dict[Name, Scalar], Field(max_length=64)] = Field(description="Its values, by parameter.")
    metrics: Annotated[dict[MetricName, float], Field(max_length=64)] = Field(description="Of the compressed model.")
    feasible: bool = Field(description="Every constraint is met.")


class Promotion(ApiModel):
    """A trial of the second rung."""

    number: Annotated[int, Field(ge=0)] = Field(description="Of the trial that runs all stages.")
    screened: Annotated[int, Field(ge=0)] = Field(description="Of the trial of the first rung that it goes on from.")


class ScreeningStatus(ApiModel):
    """Both rankings of a sweep with two rungs."""

    promoted: Annotated[list[Promotion], Field(max_length=1000)] = Field(
        default_factory=list, description="Trials that went on, in the order of the first ranking as it is now."
    )
    recovered: Annotated[list[int], Field(max_length=1000)] = Field(
        default_factory=list, description="`number` of those of them that succeeded, the best first."
    )
    rank_correlation: Annotated[float, Field(ge=-1, le=1)] | None = Field(
        default=None, description="Spearman's, between both rankings of the trials that recovered; of two and more."
    )


class CompressionSweepStatus(ApiModel):
    """What was observed of a CompressionSweep; under 64 KiB at 10,000 trials."""

    observed_generation: int = Field(default=-1, description="metadata.generation that this status is about.")
    phase: Phase | None = Field(default=None, description="A summary of the conditions.")
    conditions: Annotated[list[Condition], Field(max_length=16)] = Field(default_factory=list)
    created: Annotated[int, Field(ge=0)] = Field(
        default=0, description="Trials 0 to created-1 were decided; a missing one of them is lost, never made again."
    )
    confirmed: Annotated[int, Field(ge=0)] = Field(
        default=0, description="Where the last batch of trials begins; all before it were seen or given up."
    )
    last_create_time: Time | None = Field(default=None, description="When a trial or a Job was last decided on.")
    active: Annotated[int, Field(ge=0)] = Field(default=0, description="Trials that are not finished.")
    selector: Annotated[str, Field(max_length=512)] = Field(default="", description="For the scale subresource.")
    trials: TrialCounts = Field(default_factory=TrialCounts)
    refused: Annotated[str, Field(max_length=16_384)] = Field(
        default="", description="Numbers of the last refused trials, as ranges: 3,7-9."
    )
    refused_message: Annotated[str, Field(max_length=1024)] | None = Field(
        default=None, description="Why the last of them was refused."
    )
    exhausted: bool = Field(default=False, description="The search space holds no further combination.")
    trial_records: bool = Field(
        default=False, description="Only jobs whose status.trial names this sweep are trials of it."
    )
    baseline: dict[MetricName, float] | None = Field(
        default=None, max_length=64, description="Metrics of the dense model."
    )
    best: TrialResult | None = None
    front: Annotated[list[int], Field(max_length=1000)] = Field(
        default_factory=list, description="Trials that no other feasible trial dominates."
    )
    screening: ScreeningStatus | None = Field(default=None, description="None: the sweep has one rung.")
    code_digest: Annotated[str, Field(max_length=64)] | None = Field(
        default=None, description="Digest of the code that the prepare Job ran."
    )
    prepare_attempts: Annotated[int, Field(ge=0)] = Field(default=0, description="Prepare Jobs created.")
    publish_attempts: Annotated[int, Field(ge=0)] = Field(default=0, description="Publish Jobs created.")
    publish_base: Annotated[int, Field(ge=0)] = Field(
        default=0, description="Publish attempts made before the sweep was last continued."
    )
    gpu_seconds: Annotated[float, Field(ge=0)] = Field(
        default=0.0, description="`runner.gpus` x running time of all attempts that are over."
    )
    suspended_seconds: Annotated[float, Field(ge=0)] = Field(default=0.0, description="Time spent suspended.")
    start_time: Time | None = Field(default=None, description="When the sweep was accepted.")
    completion_time: Time | None = Field(default=None, description="When it was Complete or Failed.")
    artifact: Artifact | None = None


class CompressionSweep(ApiModel):
    """A search over recipes: the best feasible trial and the Pareto front, with every trial kept."""

    api_version: Literal["modelpress.dev/v1alpha1"] = "modelpress.dev/v1alpha1"
    kind: Literal["CompressionSweep"] = "CompressionSweep"
    metadata: SweepMeta
    spec: CompressionSweepSpec
    status: CompressionSweepStatus = Field(default_factory=CompressionSweepStatus)
