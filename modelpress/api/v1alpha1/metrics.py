"""Metrics, constraints and objectives as users write them."""

from collections.abc import Iterable
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from .base import ApiModel, Cel, cel_exactly_one, exactly_one

Goal = Literal["maximize", "minimize"]
MetricName = Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[A-Za-z_][A-Za-z0-9_./@-]*$")]
Finite = float

# Measured by modelpress, with their fixed goal; an evaluator that returns one of these names fails.
MEASURED: dict[str, Goal] = {
    "parameters": "minimize",
    "nonzeroParameters": "minimize",
    "macs": "minimize",
    "sizeBytes": "minimize",
    "latencyMs": "minimize",
    "throughput": "maximize",
    "peakMemoryBytes": "minimize",
    "sparsity": "maximize",
    "compressionRatio": "maximize",
    "speedup": "maximize",
}
DEFAULT_METRIC = "default"

# What a kubelet keeps of a termination message. A result is shorter, but for metrics that it must not leave out.
MAX_KEPT_BYTES = 4096
# Bytes of a result besides its metrics, and of a metric besides its name, at most: `"":-1.2345678901234567e-300,`.
_RESULT_BYTES, _METRIC_BYTES = 512, 28


def kept_bytes(names: Iterable[str]) -> int:
    """Bytes at most of a result that holds these metrics of the dense and of the compressed model."""
    return _RESULT_BYTES + 2 * sum(len(name) + _METRIC_BYTES for name in set(names))


class Metric(ApiModel):
    """What is known of one metric of the evaluator."""

    goal: Goal = Field(description="Whether more or less is better.")


class Constraint(ApiModel):
    """One bound on one metric, judged against the measured dense baseline; exactly one of the six bounds."""

    metric: MetricName = Field(description="One of the evaluator's, `default` being its score, or a measured one.")
    max_relative_loss: Annotated[float, Field(ge=0)] | None = Field(
        default=None, description="(change in the bad direction) / |baseline|."
    )
    max_absolute_loss: Annotated[float, Field(ge=0)] | None = Field(
        default=None, description="Change in the bad direction."
    )
    min: Finite | None = Field(default=None, description="Least value.")
    max: Finite | None = Field(default=None, description="Greatest value.")
    min_ratio: Annotated[float, Field(ge=0)] | None = Field(default=None, description="value / baseline.")
    max_ratio: Annotated[float, Field(ge=0)] | None = Field(default=None, description="value / baseline.")

    cel_rules: ClassVar[tuple[Cel, ...]] = (
        cel_exactly_one("maxRelativeLoss", "maxAbsoluteLoss", "min", "max", "minRatio", "maxRatio"),
    )

    @model_validator(mode="after")
    def _one(self) -> Self:
        exactly_one(self, "max_relative_loss", "max_absolute_loss", "min", "max", "min_ratio", "max_ratio")
        return self

    @property
    def bound(self) -> str:
        """The name of the bound that is set, in snake_case."""
        return exactly_one(self, "max_relative_loss", "max_absolute_loss", "min", "max", "min_ratio", "max_ratio")


class Objective(ApiModel):
    """One metric to optimise. Without a goal: a measured metric's own, else what `metrics` says, else maximize."""

    metric: MetricName = Field(description="One of the evaluator's, `default` being its score, or a measured one.")
    goal: Goal | None = Field(default=None, description="Only for the evaluator's own metrics is there a choice.")
