"""Tables of a cluster's objects for people."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from modelpress import formatting
from modelpress.api.v1alpha1 import DEFAULT_METRIC, reasons
from modelpress.cli.markup import escape
from modelpress.cli.tables import MAX_ROWS, MEASURED

from . import views
from .connection import Raw

_NOTES = (reasons.CONSTRAINTS_MET, reasons.COMPRESSED, reasons.PORTABLE, reasons.ARTIFACT_AVAILABLE)


def overview(objects: Sequence[Raw], now: dt.datetime, *, everywhere: bool) -> Table:
    """One row for each object that is no sweep's trial."""
    table = Table(box=box.SIMPLE)
    headings = (*(("namespace",) if everywhere else ()), "kind", "name", "phase", "progress", "best", "age", "why")
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for obj in objects:
        row = (
            *((str(views.meta(obj).get("namespace")),) if everywhere else ()),
            str(obj.get("kind")),
            views.name(obj),
            views.phase(obj),
            progress(obj),
            best(obj),
            views.age(obj, now),
            views.why(obj),
        )
        table.add_row(*map(escape, row))
    return table


def progress(obj: Raw) -> str:
    """`12/40 trials, 4 running`, or a job's stage and step."""
    status, spec = views.status(obj), obj.get("spec") or {}
    if views.is_sweep(obj):
        counts = status.get("trials") or {}
        done = sum(int(counts.get(key) or 0) for key in ("succeeded", "failed", "stopped", "lost", "refused"))
        total = status.get("created") if status.get("exhausted") else spec.get("maxTrials")
        running = f", {counts['running']} running" if counts.get("running") else ""
        failed = f", {counts['failed']} failed" if counts.get("failed") else ""
        return f"{done}/{total} trials{running}{failed}"
    if views.is_finished(obj):
        return ""
    reported = status.get("progress") or {}
    if reported:
        of = f"/{reported.get('total')}" if reported.get("total") else ""
        return f"{reported.get('stage')} {reported.get('step')}{of}"
    started = status.get("started")
    return f"attempt {started}" if started else ""


def best(obj: Raw) -> str:
    """The best trial's numbers, or the job's own."""
    if views.is_sweep(obj):
        found = views.status(obj).get("best") or {}
        if not found:
            return ""
        numbers = _numbers(found.get("metrics") or {}, views.status(obj).get("baseline") or {})
        return f"trial {found.get('number')}  {numbers}"
    baseline, compressed = views.metrics(obj)
    return _numbers(compressed, baseline)


def _numbers(values: dict[str, float], baseline: dict[str, float]) -> str:
    shown = [name for name in (DEFAULT_METRIC, *MEASURED) if name in values][:3]
    return "  ".join(f"{name} {formatting.with_change(name, values, baseline)}" for name in shown)


def print_object(out: Console, obj: Raw, trials: Sequence[Raw], now: dt.datetime) -> None:
    """Everything a person wants to know of one object."""
    title = f"{obj.get('kind')} {views.name(obj)}: {views.phase(obj)}"
    told = progress(obj)
    out.print(escape(f"{title}  {told}  age {views.age(obj, now)}".replace("    ", "  ")), style="bold", soft_wrap=True)
    if views.why(obj):
        out.print(escape(views.why(obj)), soft_wrap=True)
    for type_ in _NOTES:
        found = views.condition(obj, type_)
        if found is not None and (found.get("status") == "False" or found.get("reason") == reasons.LATENCY_UNCERTAIN):
            said = found.get("message") or found.get("reason")
            out.print(escape(f"{type_}={found.get('status')}: {said}"), style="yellow", soft_wrap=True)
    attempts = [item for item in views.status(obj).get("attempts") or () if item.get("outcome") != "Succeeded"]
    for item in attempts if not views.is_sweep(obj) else ():
        said = ": ".join(str(item[key]) for key in ("reason", "message") if item.get(key))
        out.print(escape(f"attempt {item.get('number')}: {item.get('outcome')}  {said}".rstrip()), soft_wrap=True)
    if views.is_sweep(obj):
        out.print(trials_table(obj, trials))
        hidden = len(trials) - len(_listed(obj, trials))
        if hidden:
            out.print(f"{hidden} more trials are neither the best nor on the Pareto front; -o json lists all of them")
    elif views.metrics(obj)[1]:
        out.print(metrics_table(*views.metrics(obj)))


def metrics_table(baseline: dict[str, float], compressed: dict[str, float]) -> Table:
    """Each metric of the dense and of the compressed model, with its change."""
    table = Table(box=box.SIMPLE)
    for heading in ("metric", "dense", "compressed", "change"):
        table.add_column(heading, justify="left" if heading == "metric" else "right")
    first = [name for name in (DEFAULT_METRIC, "parameters", *MEASURED) if name in compressed]
    for name in dict.fromkeys((*first, *sorted(compressed))):
        dense = baseline.get(name)
        table.add_row(
            escape(name),
            "" if dense is None else formatting.number(name, dense),
            formatting.number(name, compressed[name]),
            formatting.change(compressed[name], dense),
        )
    return table


def trials_table(sweep: Raw, trials: Sequence[Raw]) -> Table:
    """One row for each trial; of many only the best and the front."""
    status = views.status(sweep)
    wanted = [item.get("metric") for item in (sweep.get("spec") or {}).get("objectives") or ()]
    scores = [name for name in wanted if name and name not in MEASURED] or [DEFAULT_METRIC]
    columns = list(dict.fromkeys((*scores, *MEASURED)))
    table = Table(box=box.SIMPLE)
    table.add_column("trial", justify="right")
    table.add_column("phase")
    table.add_column("parameters", overflow="fold")
    for name in columns:
        table.add_column(escape(formatting.HEADINGS.get(name, name)), justify="right")
    table.add_column("")
    winner, front = (status.get("best") or {}).get("number"), set(status.get("front") or ())
    for trial in _listed(sweep, trials):
        number = views.trial_number(trial)
        baseline, compressed = views.metrics(trial)
        dense = baseline or status.get("baseline") or {}
        marks = [word for word, given in (("best", number == winner), ("front", number in front)) if given]
        if views.holds(trial, reasons.CONSTRAINTS_MET, "False"):
            marks.append("misses a constraint")
        if views.holds(trial, reasons.CONSTRAINTS_MET, "Unknown"):
            marks.append("a constraint is uncertain")
        if views.phase(trial) == "Failed":
            marks.append(views.why(trial))
        table.add_row(
            str(number),
            escape(views.phase(trial)),
            escape(formatting.parameters(views.parameters(trial))),
            *(formatting.with_change(name, compressed, dense) for name in columns),
            escape(" ".join(marks)),
            style="bold green" if number == winner else None,
        )
    return table


def _listed(sweep: Raw, trials: Sequence[Raw]) -> list[Raw]:
    status = views.status(sweep)
    chosen = {(status.get("best") or {}).get("number"), *(status.get("front") or ())}
    ordered = sorted(trials, key=lambda trial: views.trial_number(trial) or 0)
    return [trial for trial in ordered if len(trials) <= MAX_ROWS or views.trial_number(trial) in chosen]
