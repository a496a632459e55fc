"""More memory for the attempt behind one that was killed for it."""

from __future__ import annotations

from decimal import Decimal

from modelpress.api.semantic_runner import quantity
from modelpress.api.v1alpha1 import CompressionJob, CompressionJobSpec, Resources

_FACTOR = 2


def raised_memory(spec: CompressionJobSpec) -> str | None:
    """The limit that a job gets after an attempt was killed for memory: twice its own, at most `runner.maxMemory`.

    None: nothing says how much that may be, or it has it already.
    """
    runner = spec.runner
    limit = _limit(spec)
    if runner is None or runner.max_memory is None or limit is None or quantity(runner.max_memory) <= quantity(limit):
        return None
    number = limit.rstrip("numkMGTPEiK")
    doubled = f"{Decimal(number) * _FACTOR:f}{limit[len(number) :]}"
    return doubled if quantity(doubled) <= quantity(runner.max_memory) else runner.max_memory


def with_memory(job: CompressionJob, memory: str | None) -> CompressionJob:
    """The job as its next attempt runs it; the scheduler sets all of the memory aside."""
    runner = job.spec.runner
    if memory is None or runner is None or runner.resources is None:
        return job
    given = runner.resources
    resources = Resources(
        requests={**(given.requests or {}), "memory": memory}, limits={**(given.limits or {}), "memory": memory}
    )
    changed = runner.model_copy(update={"resources": resources})
    return job.model_copy(update={"spec": job.spec.model_copy(update={"runner": changed})})


def more_memory(spec: CompressionJobSpec, memory: str) -> str:
    """What is said of it."""
    return f"It gets {memory} of memory in place of {_limit(spec)}."


def _limit(spec: CompressionJobSpec) -> str | None:
    resources = spec.runner.resources if spec.runner is not None else None
    return (resources.limits or {}).get("memory") if resources is not None else None
