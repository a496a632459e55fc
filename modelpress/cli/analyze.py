"""`modelpress analyze`: what a recipe's model consists of, before anything is compressed."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from rich import box
from rich.table import Table

from modelpress import formatting
from modelpress.api.errors import SpecError
from modelpress.api.v1alpha1 import CompressionSweep
from modelpress.api.v1alpha1.stages import Prune
from modelpress.local.errors import UsageError
from modelpress.local.plan import plan_run
from modelpress.local.sources import load_documents

from .asking import answer_of, needs_torch
from .curves import curves
from .exits import Exit
from .markup import escape
from .outputs import check_output, write_output
from .tables import console

COLUMNS = {
    "layers": ("name", "kind", "parameters", "macs", "calls", "output"),
    "dependency": ("layers", "followers", "channels", "reason"),
    "sensitivity": ("layers", "sparsity", "score"),
}


def analyze(
    what: str,
    source: str,
    *,
    sparsities: Sequence[float] | None,
    table: Path | None,
    bounds: Path | None,
    budget: Path | None,
    plot: Path | None,
    tolerance: float,
) -> int:
    """Analyses the first object's model, and prints a table; the exit code.

    Args:
        what: layers, dependency or sensitivity.
        source: a YAML file.
        sparsities: of sensitivity; None: the default ones.
        table: writes the rows as CSV here.
        bounds: of sensitivity: writes entries and search space here, as YAML.
        budget: of sensitivity: writes a prune stage with a budget here, as YAML.
        plot: of sensitivity: writes the curves here, as SVG.
        tolerance: of bounds and budget: the score that a layer alone may lose, as a share of the dense one's.

    Raises:
        SpecError: the file is not valid.
        UsageError: what is needed is not there, or a file cannot be written.
        LocalError: the analysis failed; the message says why.
    """
    needs_torch()
    for option, path in (("--csv", table), ("--plot", plot), ("--bounds", bounds), ("--budget", budget)):
        check_output(option, path)
    plan = plan_run(load_documents(source)[0], cwd=Path.cwd())
    if plan.problems:
        raise SpecError(plan.problems)
    spec = plan.obj.spec.template.spec if isinstance(plan.obj, CompressionSweep) else plan.obj.spec
    if spec.model.script is not None:
        raise UsageError(
            "spec.model.script: a script has its model to itself; name an entrypoint, or call mp.layers in it"
        )
    request = {"what": what, "spec": spec.to_dict(), "codePath": plan.code_path, "basePath": plan.base_path}
    found = run_analysis({**request, "sparsities": sparsities})
    rows = [dict(row) for row in found["rows"]]
    _print(what, rows)
    for note in found.get("notes", ()):
        console().print(escape(str(note)), soft_wrap=True)
    if table is not None:
        write_output("--csv", table, _csv(what, rows))
    if plot is not None:
        write_output("--plot", plot, curves(rows))
    goal = found.get("goal", "maximize")
    pruned = [stage.block.algorithm for stage in spec.stages if isinstance(stage.block, Prune)]
    if bounds is not None:
        document = search_bounds(rows, goal, tolerance, pruned[0])
        write_output("--bounds", bounds, yaml.safe_dump(document, sort_keys=False))
    if budget is not None:
        layers = {row["name"]: row["macs"] for row in run_analysis({**request, "what": "layers"})["rows"]}
        document = starting_budget(rows, goal, tolerance, pruned[0], layers)
        write_output("--budget", budget, yaml.safe_dump(document, sort_keys=False))
    return Exit.DONE


def search_bounds(rows: Sequence[Mapping[str, Any]], goal: str, tolerance: float, algorithm: str) -> dict[str, Any]:
    """A prune stage with an entry for each layer, and a search space from the least to the most that it bears.

    The most is the highest sparsity up to which the layer alone loses no more than `tolerance` of the dense score.
    Layers that lose more at the least sparsity already are left out.
    """
    entries: list[dict[str, Any]] = []
    space: list[dict[str, Any]] = []
    for names, borne in _borne(rows, goal, tolerance).items():
        if not borne:
            continue
        number = len(entries)
        entries.append({"opNames": list(names), "sparsity": borne[-1]})
        if len(borne) > 1:
            path = f"/stages/0/prune/configList/{number}/sparsity"
            space.append({"name": f"layer{number}", "paths": [path], "float": {"min": borne[0], "max": borne[-1]}})
    stage = {"prune": {"algorithm": algorithm, "configList": entries}}
    return {"stages": [stage], "searchSpace": space}


def starting_budget(
    rows: Sequence[Mapping[str, Any]], goal: str, tolerance: float, algorithm: str, macs: Mapping[str, int]
) -> dict[str, Any]:
    """A prune stage with a budget of MACs that is surely reached where no layer loses more than it bears alone.

    It is what would be left if each lost that, what their readers save not counted; `macs` are those of each layer.
    """
    entries, saved = [], 0.0
    for names, borne in _borne(rows, goal, tolerance).items():
        share = borne[-1] if borne else 0.0
        entries.append({"opNames": list(names), "maxSparsity": share})
        saved += share * sum(macs.get(name, 0) for name in names)
    total = sum(macs.values())
    ratio = min(0.99, math.ceil(100 * (1 - saved / total)) / 100) if total else 0.99
    budget = {"metric": "macs", "maxRatio": ratio}
    return {"stages": [{"prune": {"algorithm": algorithm, "budget": budget, "configList": entries}}]}


def _borne(rows: Sequence[Mapping[str, Any]], goal: str, tolerance: float) -> dict[tuple[str, ...], list[float]]:
    """Of layers that go together the sparsities, ascending, up to which they alone lose no more than `tolerance`."""
    dense = next(row["score"] for row in rows if not row["layers"])
    sign = 1 if goal == "maximize" else -1
    out: dict[tuple[str, ...], list[float]] = {}
    over: set[tuple[str, ...]] = set()
    for row in sorted((row for row in rows if row["layers"]), key=lambda each: float(each["sparsity"])):
        names = tuple(row["layers"])
        found = out.setdefault(names, [])
        if names in over or sign * (dense - row["score"]) > tolerance * abs(dense):
            over.add(names)
        else:
            found.append(row["sparsity"])
    return {tuple(row["layers"]): out[tuple(row["layers"])] for row in rows if row["layers"]}


def run_analysis(request: Mapping[str, Any]) -> dict[str, Any]:
    """What modelpress_runner.runs.analyze says to a request, in a process of its own.

    Raises:
        UsageError: model or request are not valid.
        LocalError: the analysis failed; the message says why.
    """
    return answer_of("modelpress_runner.runs.analyze", request, "analysis")


def _print(what: str, rows: Sequence[Mapping[str, Any]]) -> None:
    shown = Table(box=box.SIMPLE)
    for name in COLUMNS[what]:
        numeric = name in ("parameters", "macs", "calls", "channels", "sparsity", "score")
        shown.add_column({"macs": "MACs"}.get(name, name), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        shown.add_row(*(escape(text) for text in _texts(what, row, people=True)))
    if what == "layers":
        shown.add_section()
        total = {"name": "total", "kind": "", "calls": "", "output": ()}
        total |= {name: sum(row[name] for row in rows) for name in ("parameters", "macs")}
        shown.add_row(*(escape(text) for text in _texts(what, total, people=True)))
    console().print(shown)


def _texts(what: str, row: Mapping[str, Any], *, people: bool) -> Iterator[str]:
    for name in COLUMNS[what]:
        value = row[name]
        if isinstance(value, list | tuple):
            text = " x ".join(map(str, value)) if name == "output" else ", ".join(value)
            yield text or ("(dense)" if what == "sensitivity" and people else "")
        elif people and name in formatting.COUNTS:
            yield formatting.number(name, value)
        elif people and isinstance(value, float):
            yield f"{value:.4g}"
        else:
            yield str(value)


def _csv(what: str, rows: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS[what])
    writer.writerows(list(_texts(what, row, people=False)) for row in rows)
    return text.getvalue()
