"""What `modelpress run` prints at the end: a table, where the model is, how to load it, or why there is none."""

from __future__ import annotations

import sys
from collections.abc import Mapping

from rich import box
from rich.console import Console
from rich.table import Table

from modelpress import formatting
from modelpress.api.v1alpha1 import DEFAULT_METRIC, CompressionJob, CompressionSweep, reasons
from modelpress.cli.markup import escape
from modelpress.local.controller import is_finished
from modelpress.local.lines import why_failed
from modelpress.local.session import DONE, MISSED, Finished, condition, model_uri
from modelpress.results.stage_rows import COLUMNS, stage_rows
from modelpress.store import StoreError, manifest, open_store
from modelpress.trials import number_of, parameters_of

MAX_ROWS = 50  # of more trials only the best and the Pareto front are listed
MEASURED = ("macs", "sizeBytes", "latencyMs")
WIDE = 200  # columns where nobody looks at a terminal


def console() -> Console:
    """Standard output; plain text at full width where it is not a terminal."""
    if sys.stdout.isatty():
        return Console(highlight=False)
    return Console(highlight=False, width=WIDE, no_color=True, force_terminal=False)


def print_result(run: Finished) -> None:
    """Everything a user wants to know of one object's run."""
    out = console()
    root = run.root
    if run.already:
        out.print(
            escape(
                f"{root.kind} {root.metadata.name} was finished before; this is its result. To run it anew, give it "
                "another metadata.name."
            ),
            soft_wrap=True,
        )
    if isinstance(root, CompressionSweep):
        _print_sweep(out, run, root)
    else:
        _print_job(out, root)
        _print_stages(out, run, root)
    if not is_finished(root):
        return
    if run.exit_code not in (DONE, MISSED):
        _print_failure(out, run)
    _print_notes(out, run)
    _print_model(out, run)


# Tables --------------------------------------------------------------------------------------------------------------


def _print_job(out: Console, job: CompressionJob) -> None:
    pair = job.status.metrics
    if pair is None or not pair.compressed:
        return
    table = Table(box=box.SIMPLE, title=escape(job.metadata.name), title_justify="left")
    for heading in ("metric", "dense", "compressed", "change"):
        table.add_column(heading, justify="left" if heading == "metric" else "right")
    first = [name for name in (DEFAULT_METRIC, "parameters", *MEASURED) if name in pair.compressed]
    for name in dict.fromkeys((*first, *sorted(pair.compressed))):
        dense = pair.baseline.get(name)
        table.add_row(
            escape(name),
            "" if dense is None else formatting.number(name, dense),
            formatting.number(name, pair.compressed[name]),
            formatting.change(pair.compressed[name], dense),
        )
    out.print(table)


def _print_stages(out: Console, run: Finished, job: CompressionJob) -> None:
    """What each stage did, as the job's manifest says."""
    uri = model_uri(run)
    if uri is None:
        return
    endpoint = job.spec.store.endpoint if job.spec.store is not None else None
    try:
        found = manifest.read(open_store(uri, endpoint=endpoint), "")
    except StoreError:  # the table is an extra; that the model is not there is said where it is loaded
        return
    rows = [] if found is None else stage_rows(found[0].metrics.baseline, found[0].metrics.stages)
    if not rows:
        return
    table = Table(box=box.SIMPLE)
    for heading in COLUMNS:
        table.add_column(heading, justify="left" if heading == "stage" else "right")
    for row in rows:
        table.add_row(*map(escape, row))
    out.print(table)


def _print_sweep(out: Console, run: Finished, sweep: CompressionSweep) -> None:
    if not run.trials:
        return
    columns = _columns(sweep)
    table = Table(box=box.SIMPLE, title=escape(sweep.metadata.name), title_justify="left")
    table.add_column("trial", justify="right")
    table.add_column("state")
    table.add_column("parameters", overflow="fold")
    for name in columns:
        table.add_column(escape(formatting.HEADINGS.get(name, name)), justify="right")
    table.add_column("")
    baseline = sweep.status.baseline or {}
    if baseline:
        table.add_row("", "dense", "", *(_plain(name, baseline) for name in columns), "")
    best = sweep.status.best
    front = set(sweep.status.front)
    chosen = front | ({best.number} if best else set())
    hidden = 0
    for trial in run.trials:
        number = number_of(trial)
        if len(run.trials) > MAX_ROWS and number not in chosen:
            hidden += 1
            continue
        is_best = best is not None and best.number == number
        metrics = trial.status.metrics
        values: Mapping[str, float] = metrics.compressed if metrics else {}
        dense = (metrics.baseline if metrics else {}) or baseline
        marks = " ".join(
            word
            for word, given in (("best", is_best), ("front", number in front), (_missed(trial), True))
            if given and word
        )
        table.add_row(
            str(number),
            trial.status.phase or "",
            escape(formatting.parameters(parameters_of(trial) or {})),
            *(formatting.with_change(name, values, dense) for name in columns),
            marks,
            style="bold green" if is_best else None,
        )
    out.print(table)
    rungs = sweep.status.screening
    if rungs is not None:
        told = (
            "" if rungs.rank_correlation is None else f"; rank correlation of both rungs {rungs.rank_correlation:.2f}"
        )
        went = ", ".join(f"{item.screened} as {item.number}" for item in rungs.promoted[:MAX_ROWS])
        out.print(escape(f"Trials that went on from their first stages: {went}{told}"), soft_wrap=True)
    if hidden:
        where = f"; all of them: {run.uri}/trials.csv" if sweep.status.artifact else ""
        out.print(escape(f"{hidden} more trials are neither the best nor on the Pareto front{where}"), soft_wrap=True)


def _columns(sweep: CompressionSweep) -> list[str]:
    wanted = [objective.metric for objective in sweep.spec.objectives]
    scores = [name for name in wanted if name not in MEASURED] or [DEFAULT_METRIC]
    return list(dict.fromkeys((*scores, *MEASURED)))


def _plain(name: str, values: Mapping[str, float]) -> str:
    return formatting.number(name, values[name]) if name in values else ""


def _missed(trial: CompressionJob) -> str:
    met = condition(trial, reasons.CONSTRAINTS_MET)
    words = {"False": "misses a constraint", "Unknown": "a constraint is uncertain"}
    return words.get(met[0], "") if met is not None else ""


# Sentences -----------------------------------------------------------------------------------------------------------


def _print_failure(out: Console, run: Finished) -> None:
    root = run.root
    out.print(
        escape(f"{root.kind} {root.metadata.name} failed. {why_failed(root)}".rstrip()),
        style="bold red",
        soft_wrap=True,
    )
    if run.failure is not None and run.failure.lines:
        out.print(escape(f"The last lines of {run.failure.path} ({run.failure.job}):"), soft_wrap=True)
        for line in run.failure.lines:
            out.print(f"  {escape(line)}", soft_wrap=True)
    elif run.failure is not None:
        out.print(escape(f"Its log is empty: {run.failure.path}"), soft_wrap=True)
    else:
        out.print(escape(f"State and logs: {run.state}"), soft_wrap=True)


def _print_notes(out: Console, run: Finished) -> None:
    root = run.root
    for type_ in (reasons.CONSTRAINTS_MET, reasons.COMPRESSED, reasons.PORTABLE, reasons.CODE_CHANGED):
        item = condition(root, type_)
        if item is not None and item[0] in (("True",) if type_ == reasons.CODE_CHANGED else ("False", "Unknown")):
            out.print(escape(f"{type_}={item[0]}: {item[2] or item[1]}"), style="yellow", soft_wrap=True)
    if isinstance(root, CompressionSweep) and root.status.best is not None and not root.status.best.feasible:
        out.print("No trial met all constraints; the best is the one that misses them by least.", style="yellow")


def _print_model(out: Console, run: Finished) -> None:
    uri = model_uri(run)
    if uri is None:
        return
    best = run.root.status.best if isinstance(run.root, CompressionSweep) else None
    whose = f" (trial {best.number})" if best else ""
    out.print(escape(f"The model{whose} is in {uri}\nLoad it with:"), soft_wrap=True)
    out.print(escape(f"  import modelpress as mp; model = mp.load({uri!r})"), soft_wrap=True)
