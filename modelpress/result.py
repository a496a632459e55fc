"""What a runner reports: the contract from runner to shell, versioned.

On a cluster it is the container's termination message, so it is at most 1 KiB of JSON; in full detail it is
`result.json` beside the artefacts. Exit codes say the same to whoever looks only at them.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from modelpress.api.v1alpha1 import ApiModel
from modelpress.api.v1alpha1.base import Name, Scalar
from modelpress.api.v1alpha1.metrics import MetricName

MAX_MESSAGE_BYTES = 1024


class ExitCode(enum.IntEnum):
    """Exit codes of a runner process."""

    DONE = 0
    FAILED = 1  # user code, or anything unforeseen: may be tried again
    INVALID = 2  # specification, model, foreign manifest: never tried again
    TERMINATED = 143  # SIGTERM, after a checkpoint


class RunResult(ApiModel):
    """How one run ended."""

    v: Literal[1] = 1
    phase: Literal["Succeeded", "Failed", "NotFound"]
    reason: Annotated[str, Field(max_length=64)] = Field(description="A constant of api.v1alpha1.reasons.")
    message: str = ""
    manifest_digest: str | None = Field(default=None, description="sha256 of manifest.json.")
    code_digest: str | None = None
    baseline: dict[MetricName, float] = Field(default_factory=dict)
    compressed: dict[MetricName, float] = Field(default_factory=dict)
    constraints_met: bool | None = Field(default=None, description="None: there are no constraints.")
    unmet: list[str] = Field(default_factory=list, description="One sentence for each missed constraint.")
    smaller: bool | None = Field(default=None, description="Something measured is smaller or faster than before.")
    portable: bool | None = Field(default=None, description="The artefact holds a program.")
    portable_reason: str | None = None

    def to_message(self, first: tuple[str, ...] = (), limit: int = MAX_MESSAGE_BYTES) -> str:
        """JSON of at most `limit` bytes: texts are cut, then metrics are left out, those named in `first` last.

        Raises:
            ValueError: not even the metrics named in `first` fit.
        """
        result = self.model_copy(
            update={
                "message": _cut(self.message, 300),
                "unmet": [_cut(line, 120) for line in self.unmet[:2]],
                "portable_reason": _cut(self.portable_reason, 120) if self.portable_reason else None,
            }
        )
        droppable = sorted(
            {*result.baseline, *result.compressed} - set(first),
            key=lambda name: (_KEEP.index(name) if name in _KEEP else len(_KEEP), name),
        )
        while True:
            text = result.model_dump_json(exclude_none=True, exclude_defaults=False)
            if len(text.encode()) <= limit:
                return text
            if droppable:
                dropped = droppable.pop()
                result = result.model_copy(
                    update={
                        "baseline": {k: v for k, v in result.baseline.items() if k != dropped},
                        "compressed": {k: v for k, v in result.compressed.items() if k != dropped},
                    }
                )
            elif result.message or result.unmet or result.portable_reason:
                result = result.model_copy(update={"message": "", "unmet": [], "portable_reason": None})
            else:
                raise ValueError(f"the metrics {', '.join(first)} alone take more than {limit} bytes")

    @classmethod
    def from_message(cls, text: str | None) -> RunResult | None:
        """The result in a termination message; None if there is none or it is not one of ours."""
        if not text:
            return None
        try:
            return cls.model_validate_json(text)
        except ValidationError:
            return None


class RecordedTrial(ApiModel):
    """Which trial of a sweep a record is of; the same keys as in the request."""

    number: Annotated[int, Field(ge=0)]
    parameters: dict[Name, Scalar] = Field(default_factory=dict)


class RunRecord(RunResult):
    """`result.json` beside the artefacts: the whole result, and whose it is. Written when a run fails, too."""

    name: str = Field(description="Name of the CompressionJob.")
    trial: RecordedTrial | None = Field(default=None, description="None: a standalone job.")

    @classmethod
    def of(
        cls, result: RunResult, name: str, number: int | None = None, parameters: Mapping[str, Any] | None = None
    ) -> RunRecord:
        """The record of a result; `number` and `parameters` are the trial's, if it is one."""
        trial = None if number is None else {"number": number, "parameters": dict(parameters or {})}
        return cls.model_validate(result.to_dict() | {"name": name, "trial": trial})


# Metrics that a table shows, most wanted first.
_KEEP = ("default", "macs", "parameters", "sizeBytes", "latencyMs", "nonzeroParameters", "sparsity")


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
