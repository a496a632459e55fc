"""What is wrong with `runner`: resources and tolerations that contradict themselves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from decimal import Decimal

from .errors import Problem
from .podtemplate import template_problems
from .v1alpha1 import GPU, Resources, Runner, Toleration

_UNITS = {
    "n": Decimal("1e-9"),
    "u": Decimal("1e-6"),
    "m": Decimal("1e-3"),
    "": Decimal(1),
    "k": Decimal(1000),
    **{unit: Decimal(1000) ** power for power, unit in enumerate("MGTPE", start=2)},
    **{f"{unit}i": Decimal(1024) ** power for power, unit in enumerate("KMGTPE", start=1)},
}


def runner_problems(runner: Runner | None) -> Iterator[Problem]:
    """Problems of a job's `runner`; paths begin with `runner`."""
    if runner is None:
        return
    if runner.resources is not None:
        yield from _resource_problems(runner.resources, runner.gpus)
    if runner.max_memory is not None:
        yield from _memory_problems(runner.max_memory, (runner.resources or Resources()).limits or {})
    if runner.gpus and runner.processes_per_node > runner.gpus:
        message = f"{runner.processes_per_node} processes cannot have a GPU each: runner.gpus gives a pod {runner.gpus}"
        yield Problem("runner.processesPerNode", message, f"lower it to {runner.gpus}, or raise gpus")
    first: dict[str, int] = {}
    for index, claim in enumerate(runner.resource_claims or []):
        if claim.name in first:
            message = f"'{claim.name}' is also the name of resourceClaims[{first[claim.name]}]"
            yield Problem(f"runner.resourceClaims[{index}].name", message, "rename one of them")
        first.setdefault(claim.name, index)
    for index, toleration in enumerate(runner.tolerations or []):
        yield from _toleration_problems(toleration, f"runner.tolerations[{index}]")
    if runner.pod_template is not None:
        yield from template_problems(runner.pod_template.to_dict(), "runner.podTemplate")


def quantity(text: str) -> Decimal:
    """The number that a quantity of Kubernetes stands for: 500m -> 0.5, 2Ki -> 2048."""
    number = text.rstrip("numkMGTPEiK")
    return Decimal(number) * _UNITS[text[len(number) :]]


def _resource_problems(resources: Resources, gpus: int) -> Iterator[Problem]:
    requests, limits = resources.requests or {}, resources.limits or {}
    for kind, values in (("requests", requests), ("limits", limits)):
        if gpus and GPU in values:
            yield Problem(f"runner.resources.{kind}.{GPU}", f"runner.gpus says {gpus} already", "remove one of the two")
    for name, text in requests.items():
        where = f"runner.resources.requests.{name}"
        limit = limits.get(name)
        if name == GPU and gpus:
            continue
        extended = "/" in name and "kubernetes.io/" not in name
        if extended and (limit is None or quantity(limit) != quantity(text)):
            message = f"{name} cannot be shared, so its request must equal its limit"
            yield Problem(where, message, f"write it into limits instead: {name}: {text}")
        elif limit is not None and quantity(text) > quantity(limit):
            yield Problem(where, f"{text} is more than the limit, {limit}", "lower it, or raise the limit")


def _memory_problems(most: str, limits: Mapping[str, str]) -> Iterator[Problem]:
    if "memory" not in limits:
        message = "there is no memory limit that could be raised"
        yield Problem("runner.maxMemory", message, "add runner.resources.limits.memory, or remove it")
    elif quantity(most) < quantity(limits["memory"]):
        message = f"{most} is less than runner.resources.limits.memory, {limits['memory']}"
        yield Problem("runner.maxMemory", message, "raise it, or remove it")


def _toleration_problems(toleration: Toleration, where: str) -> Iterator[Problem]:
    if toleration.operator == "Exists" and toleration.value:
        yield Problem(f"{where}.value", "Exists compares no value", "remove it, or set operator to Equal")
    if toleration.key is None and toleration.operator == "Equal":
        yield Problem(f"{where}.key", "Equal needs the key of a taint", "add key, or set operator to Exists")
    if toleration.toleration_seconds is not None and toleration.effect != "NoExecute":
        message = "counts with the effect NoExecute only"
        yield Problem(f"{where}.tolerationSeconds", message, "remove it, or set effect to NoExecute")
