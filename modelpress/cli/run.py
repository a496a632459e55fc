"""`modelpress run`: loads, runs, shows, and sums up in an exit code."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Sequence
from typing import Any

import yaml

from modelpress.local.controller import is_finished
from modelpress.local.lines import LineDisplay
from modelpress.local.session import (
    Display,
    Finished,
    exit_code,
    plan_documents,
    result_of,
    run_plans,
)
from modelpress.local.sources import load_documents


def run_file(source: str, *, store: str | None, parallel: int | None, progress: bool, output: str) -> int:
    """Run every object of a file in order; the exit code.

    Raises:
        SpecError, LocalError: nothing was started, or the run cannot go on.
    """
    plans = plan_documents(load_documents(source), store=store, parallel=parallel)
    finished = run_plans(plans, _display(progress, output))
    if output == "json":
        print(json.dumps(summary(finished), indent=2))
    elif output == "yaml":
        yaml.safe_dump(summary(finished), sys.stdout, sort_keys=False)
    else:
        from .tables import print_result

        for run in finished:
            print_result(run)
    code = exit_code(finished, len(plans))
    if code >= 128:
        _say_how_to_go_on(source, store, parallel)
    return code


def _display(progress: bool, output: str) -> Display | None:
    if not progress:
        return None
    # Standard output belongs to the document when one is asked for.
    stream = sys.stdout if output == "table" else sys.stderr
    if stream.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown"):
        from .live import LiveDisplay

        return LiveDisplay(stream)
    return LineDisplay(stream)


def summary(finished: Sequence[Finished]) -> dict[str, Any]:
    """The result as plain data: what -o json prints."""
    result = result_of(finished)
    return {
        "exitCode": result.exit_code,
        "uri": result.uri,
        "best": result.best.to_dict() if result.best else None,
        "objects": [obj.to_dict() for obj in result.objects],
        "trials": [trial.to_dict() for trial in result.trials],
        "unfinished": [run.root.metadata.name for run in finished if not is_finished(run.root)],
    }


def _say_how_to_go_on(source: str, store: str | None, parallel: int | None) -> None:
    words = ["modelpress", "run", source]
    if store is not None:
        words += ["--store", store]
    if parallel is not None:
        words += ["--parallel", str(parallel)]
    print(f"stopped; what was finished is kept. Go on with: {shlex.join(words)}", file=sys.stderr)
