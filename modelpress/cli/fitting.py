"""Whether a trial fits a node of the cluster: what it was measured to take beside what nodes have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from modelpress.api.semantic_runner import quantity
from modelpress.api.v1alpha1 import GPU, CompressionJobSpec, Runner
from modelpress.local.estimate import GIB, Estimate


def unplaced(where: str, spec: CompressionJobSpec, told: Estimate, nodes: Sequence[Mapping[str, Any]]) -> list[str]:
    """Why no node takes the pod of a trial, as sentences; empty if one does.

    Memory is what the trial was measured to take, or what it asks for if that is more; processors and GPUs are those
    that it asks for. Nodes that are cordoned, or that runner.nodeSelector leaves out, take none; taints and what other
    pods hold are the scheduler's to judge.

    Args:
        where: path of the specification, for the sentences.
        spec: of the trial.
        told: what it takes.
        nodes: as the API server has them.
    """
    runner = spec.runner or Runner()
    chosen = runner.node_selector or {}
    open_ = [
        node
        for node in nodes
        if not (node.get("spec") or {}).get("unschedulable")
        and chosen.items() <= ((node.get("metadata") or {}).get("labels") or {}).items()
    ]
    if not open_:
        return [f"{where}.runner.nodeSelector: no node of the cluster that takes pods has these labels; correct it"]
    needs = _needs(runner, told)
    allocatable = [(node.get("status") or {}).get("allocatable") or {} for node in open_]
    if any(all(_has(node, name) >= need for name, need in needs.items()) for node in allocatable):
        return []
    out = []
    for name, need in needs.items():
        most = max(_has(node, name) for node in allocatable)
        if most >= need:
            continue
        field = f"{where}.runner.gpus" if name == GPU else f"{where}.runner.resources.requests.{name}"
        remedy = "use a smaller batch or model, or a larger node" if name == "memory" else "ask for less"
        out.append(
            f"{field}: a trial takes {_text(name, need)}, and no node has more than {_text(name, most)}; {remedy}"
        )
    together = " and ".join(_text(name, need) for name, need in needs.items())
    return out or [f"{where}.runner: no node has {together} together; ask for less of one, or add a node"]


def _needs(runner: Runner, told: Estimate) -> dict[str, Decimal]:
    asked = (runner.resources.requests if runner.resources is not None else None) or {}
    needs = {name: quantity(text) for name, text in asked.items() if name in ("cpu", "memory")}
    needs["memory"] = max(needs.get("memory", Decimal(0)), Decimal(told.memory))
    if runner.gpus:
        needs[GPU] = Decimal(runner.gpus)
    return needs


def _has(allocatable: Mapping[str, str], name: str) -> Decimal:
    return quantity(str(allocatable.get(name, "0")))


def _text(name: str, amount: Decimal) -> str:
    if name == "memory":
        return f"{amount / GIB:.1f}Gi of memory"
    return f"{amount.normalize():f} {'GPUs' if name == GPU else 'processors'}"
