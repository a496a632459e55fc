"""What a runner reports: the contract from runner to controller, versioned.

On a cluster it is the container's termination message, so it is at most 1 KiB of JSON; in full detail it is
`result.json` beside the artifacts. Exit codes say the same to whoever looks only at them.

The runner may be newer than the controller: keys that the controller does not know are ignored.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from modelpress.api.v1alpha1 import CompressionJobSpec
from modelpress.api.v1alpha1.base import ContractModel, Name, Scalar
from modelpress.api.v1alpha1.metrics import MAX_KEPT_BYTES, MetricName

MAX_MESSAGE_BYTES = 1024
# Characters of message, each missed constraint, and why there is no program: as much of it as fits, in this order.
_TEXTS = ((300, 120, 120), (160, 120, 80), (80, 60, 60))


class ExitCode(enum.IntEnum):
    """Exit codes of a runner process."""

    DONE = 0
    FAILED = 1  # user code, or anything unforeseen: may be tried again
    INVALID = 2  # specification, model, foreign manifest: never tried again
    TERMINATED = 143  # SIGTERM, after a checkpoint


def missed_by_tuning(stages: object) -> list[str] | None:
    """What stages that were tuned by scores missed, a sentence each; None: none was tuned.

    Args:
        stages: records as metrics.json has them.
    """
    out: list[str] = []
    tuned = False
    for record in stages if isinstance(stages, list) else ():
        tuning = record.get("tuning") if isinstance(record, dict) else None
        if isinstance(tuning, dict):
            tuned = True
            out += [str(each) for each in tuning.get("unmet") or ()]
    return out if tuned else None


class SuggestedPoint(ContractModel):
    """The answer to a SuggestRequest."""

    history: str = Field(description="What it is based on, as the question says.")
    values: list[Scalar | None] | None = Field(
        default=None,
        description="Of the parameters in the question's order, None of those that are not active. "
        "None: every recipe was tried.",
    )


class RunResult(ContractModel):
    """How one run ended."""

    v: Literal[1] = 1
    phase: Literal["Succeeded", "Failed", "NotFound"]
    reason: Annotated[str, Field(max_length=64)] = Field(description="A constant of api.v1alpha1.reasons.")
    message: str = ""
    manifest_digest: str | None = Field(default=None, description="sha256 of manifest.json.")
    code_digest: str | None = None
    baseline: dict[MetricName, float] = Field(default_factory=dict)
    compressed: dict[MetricName, float] = Field(default_factory=dict)
    constraints_met: bool | None = Field(
        default=None, description="Every one, and every bound of tuning, is met for certain. None: there are none."
    )
    unmet: list[str] = Field(default_factory=list, description="One sentence for each missed constraint.")
    uncertain: list[str] = Field(
        default_factory=list, description="One for each constraint that the spread of a latency leaves open."
    )
    smaller: bool | None = Field(default=None, description="Something measured is smaller or faster than before.")
    portable: bool | None = Field(default=None, description="The artifact holds a program.")
    portable_reason: str | None = None
    suggested: SuggestedPoint | None = Field(default=None, description="Of a run that was asked for a suggestion.")

    def to_message(self, keep: Sequence[str] = ()) -> str:
        """JSON of at most 1 KiB: texts are shortened first, then metrics are left out, but never one that `keep` names.

        Where those alone take more than 1 KiB the message is longer, up to the 4 KiB that a kubelet keeps.

        Raises:
            ValueError: not even they fit (`validate` refuses so many: metrics.kept_bytes).
        """
        droppable = sorted({*self.baseline, *self.compressed} - set(keep), key=_wanted)
        result = self
        for lengths in _TEXTS:
            result = self._shortened(*lengths)
            if len(text := result._json()) <= MAX_MESSAGE_BYTES:
                return text.decode()
        while droppable:
            result = result._without(droppable.pop())
            if len(text := result._json()) <= MAX_MESSAGE_BYTES:
                return text.decode()
        text = result._shortened(0, 0, 0)._json()
        if len(text) > MAX_KEPT_BYTES:
            raise ValueError(f"the metrics {', '.join(keep)} alone take more than {MAX_KEPT_BYTES} bytes")
        return text.decode()

    def _json(self) -> bytes:
        return self.model_dump_json(exclude_none=True).encode()

    def _shortened(self, message: int, unmet: int, reason: int) -> RunResult:
        return self.model_copy(
            update={
                "message": _cut(self.message, message),
                "unmet": [_cut(line, unmet) for line in self.unmet[:2]] if unmet else [],
                # One sentence says that it is so; without it the constraint would count as missed.
                "uncertain": [_cut(line, max(unmet, 40)) for line in self.uncertain[:1]],
                "portable_reason": _cut(self.portable_reason, reason) or None if self.portable_reason else None,
            }
        )

    def _without(self, metric: str) -> RunResult:
        return self.model_copy(
            update={
                "baseline": {name: value for name, value in self.baseline.items() if name != metric},
                "compressed": {name: value for name, value in self.compressed.items() if name != metric},
            }
        )

    @classmethod
    def from_message(cls, text: str | None) -> RunResult | None:
        """The result in a termination message; None if there is none or it is not one of ours."""
        if not text:
            return None
        try:
            return cls.model_validate_json(text)
        except ValidationError:
            return None


def conditions_of(spec: CompressionJobSpec) -> dict[str, str]:
    """Under what a recipe is measured, as its record holds it."""
    runner, benchmark = spec.runner, spec.benchmark
    return {
        "seed": str(spec.seed),
        "format": spec.target.format,
        "gpus": str(runner.gpus if runner is not None else 0),
        "device": spec.target.device,
        "batchSize": str(benchmark.batch_size),
        "threads": str(benchmark.cores_per_instance),
    }


class RecordedTrial(ContractModel):
    """Which trial of a sweep a record is of; the same keys as in the request."""

    number: Annotated[int, Field(ge=0)]
    parameters: dict[Name, Scalar] = Field(default_factory=dict)
    screened: Annotated[int, Field(ge=0)] | None = None


class RunRecord(RunResult):
    """`result.json` beside the artifacts: the whole result, and whose it is. Written when a run fails, too."""

    name: str = Field(description="Name of the CompressionJob.")
    trial: RecordedTrial | None = Field(default=None, description="None: a standalone job.")
    conditions: dict[str, str] | None = Field(
        default=None, description="Under what it was measured: seed, format, device and the like."
    )

    @classmethod
    def of(
        cls,
        result: RunResult,
        name: str,
        number: int | None = None,
        parameters: Mapping[str, Any] | None = None,
        screened: int | None = None,
        *,
        conditions: Mapping[str, str] | None = None,
    ) -> RunRecord:
        """The record of a result; `number`, `parameters` and `screened` are the trial's, if it is one."""
        given = {"number": number, "parameters": dict(parameters or {}), "screened": screened}
        trial = None if number is None else given
        said = dict(conditions) if conditions is not None else None
        return cls.model_validate(result.to_dict() | {"name": name, "trial": trial, "conditions": said})


# Metrics that a table shows, most wanted first.
_KEEP = ("default", "macs", "parameters", "sizeBytes", "latencyMs", "nonzeroParameters", "sparsity")


def _wanted(name: str) -> tuple[int, str]:
    return (_KEEP.index(name) if name in _KEEP else len(_KEEP)), name


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: max(0, length - 1)] + "…" * (length > 0)
