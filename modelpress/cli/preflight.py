"""`modelpress preflight` and `modelpress validate --smoke`: a trial is run in short before it is run in earnest."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from modelpress import formatting
from modelpress.api.errors import SpecError
from modelpress.api.semantic_runner import quantity
from modelpress.api.v1alpha1 import CompressionJobSpec, CompressionSweep
from modelpress.local.errors import LocalError, UsageError
from modelpress.local.estimate import GIB, Estimate, estimate
from modelpress.local.plan import RunPlan, plan_run
from modelpress.local.sources import load_documents
from modelpress.trials import History

from .asking import answer_of, needs_torch
from .cluster.connection import NODES, connect
from .exits import Exit
from .fitting import unplaced
from .markup import escape
from .tables import console

QUICK = 20.0  # seconds that short trainings may take to be run again, twice as long: that tells their pace better


def smoke(source: str) -> list[str]:
    """Runs the recipes of a file in short; a line for each.

    Raises:
        SpecError: the file is not valid.
        UsageError: torch is not installed.
        LocalError: a recipe does not run; the message says why.
    """
    needs_torch()
    lines = []
    for document in load_documents(source):
        plan = _planned(plan_run(document, cwd=Path.cwd()))
        spec, parameters = recipe_of(plan)
        found, seconds = _run(plan, spec, 0.0)
        stages = ", ".join(stage["name"] for stage in found["runs"][0]["stages"])
        tried = f" with {formatting.parameters(parameters)}" if parameters else ""
        lines.append(f"{plan.obj.metadata.name}{tried}: runs, in short, in {formatting.duration(seconds)} ({stages})")
    return lines


def preflight(source: str, *, as_json: bool, cluster: bool = False) -> int:
    """Prints what a trial of the file's first object will take; the exit code: 2 where it cannot fit.

    Args:
        source: the file.
        as_json: print JSON.
        cluster: also ask whether it fits a node of the cluster that kubectl talks to.

    Raises:
        ClusterError: it does not answer, or shows no nodes.
        SpecError: the file is not valid.
        UsageError: torch is not installed.
        LocalError: the recipe does not run; the message says why.
    """
    needs_torch()
    plan = _planned(plan_run(load_documents(source)[0], cwd=Path.cwd()))
    spec, parameters = recipe_of(plan)
    nodes = connect().all(NODES, everywhere=True) if cluster else []  # first: the run takes minutes
    found, seconds = _run(plan, spec, QUICK)
    told = estimate(found, seconds)
    problems = list(unfit(plan, spec, told))
    if cluster:
        problems += unplaced(_where(plan), spec, told, nodes)
    if as_json:
        print(json.dumps({**asdict(told), "parameters": parameters, "problems": problems}))
    else:
        _print(plan, told, parameters)
    for problem in problems:
        print(problem, file=sys.stderr)
    return Exit.INVALID if problems else Exit.DONE


def recipe_of(plan: RunPlan) -> tuple[CompressionJobSpec, Mapping[str, Any]]:
    """The recipe of the object, of a sweep that of its first trial, and that trial's parameters."""
    if not isinstance(plan.obj, CompressionSweep):
        return plan.obj.spec, {}
    from modelpress.search import strategy_for

    whole = plan.obj.spec.model_copy(update={"screening": None})
    suggestion = strategy_for(whole).suggest(0, History(), {})
    if suggestion.spec is None:
        raise LocalError(f"the first trial has no valid recipe: {suggestion.problem}")
    return suggestion.spec, dict(suggestion.parameters)


def unfit(plan: RunPlan, spec: CompressionJobSpec, told: Estimate) -> list[str]:
    """What cannot fit, as sentences: memory beyond a limit, time beyond a deadline or a budget."""
    out = []
    where = _where(plan)
    resources = spec.runner.resources if spec.runner is not None else None
    limit = (resources.limits or {}).get("memory") if resources is not None else None
    if limit is not None and told.memory > quantity(limit):
        need = f"{told.memory / GIB:.1f}Gi"
        out.append(
            f"{where}.runner.resources.limits.memory: a trial takes {need}, and {limit} is set; set at least "
            f"{-(-told.memory * 5 // (4 * GIB))}Gi"
        )
    deadline = spec.active_deadline_seconds
    if deadline is not None and told.seconds > deadline:
        out.append(
            f"{where}.activeDeadlineSeconds: a trial takes {told.seconds:.0f} s, and {deadline} is set; set at least "
            f"{told.seconds * 1.5:.0f}"
        )
    budget = plan.obj.spec.budget if isinstance(plan.obj, CompressionSweep) else None
    if budget is not None and budget.wall_clock_seconds is not None and told.seconds > budget.wall_clock_seconds:
        out.append(
            f"spec.budget.wallClockSeconds: one trial takes {told.seconds:.0f} s, and {budget.wall_clock_seconds} is "
            "set for all"
        )
    return out


def _where(plan: RunPlan) -> str:
    """Path of a trial's specification in the file."""
    return "spec.template.spec" if isinstance(plan.obj, CompressionSweep) else "spec"


def _planned(plan: RunPlan) -> RunPlan:
    if plan.problems:
        raise SpecError(plan.problems)
    spec = plan.obj.spec.template.spec if isinstance(plan.obj, CompressionSweep) else plan.obj.spec
    if spec.model.script is not None:
        raise UsageError("spec.model.script: a script's loop has its own length; run it with fewer steps yourself")
    return plan


def _run(plan: RunPlan, spec: CompressionJobSpec, quick: float) -> tuple[dict[str, Any], float]:
    """What the runner's probe found, and the seconds of its process."""
    request = {
        "spec": spec.to_dict(),
        "codePath": plan.code_path,
        "basePath": plan.base_path,
        "quick": quick,
    }
    began = time.monotonic()
    killed = "the trial was killed, most likely for memory: it does not fit this machine"
    found = answer_of("modelpress_runner.runs.probe", request, "trial", killed)
    return found, time.monotonic() - began


def _print(plan: RunPlan, told: Estimate, parameters: Mapping[str, Any]) -> None:
    table = Table(box=box.SIMPLE, title=escape(plan.obj.metadata.name), title_justify="left")
    table.add_column("a trial takes")
    table.add_column("", justify="right")
    table.add_row("time", formatting.duration(told.seconds))
    table.add_row("  of it the dense model", formatting.duration(told.dense_seconds))
    for name, seconds in told.stages:
        table.add_row(escape(f"  of it {name}"), formatting.duration(seconds))
    table.add_row("main memory", f"{told.memory / GIB:.2f} GiB")
    if told.gpu_memory is not None:
        table.add_row("GPU memory", f"{told.gpu_memory / GIB:.2f} GiB")
    for name in ("parameters", "macs", "sizeBytes"):
        if name in told.compressed:
            table.add_row(name, formatting.with_change(name, told.compressed, told.baseline))
    out = console()
    out.print(table)
    if isinstance(plan.obj, CompressionSweep):
        spec = plan.obj.spec
        rounds = -(-spec.max_trials // spec.parallelism)
        whole = rounds * max(0.0, told.seconds - told.dense_seconds) + told.dense_seconds
        out.print(
            escape(
                f"The first trial of {spec.max_trials} ({formatting.parameters(parameters)}); all of them, "
                f"{spec.parallelism} at a time: {formatting.duration(whole)}, if the others are like it."
            ),
            soft_wrap=True,
        )
    for sentence in told.basis:
        out.print(escape(f"Based on: {sentence}."), soft_wrap=True)
