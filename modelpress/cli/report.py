"""`modelpress report`: writes a sweep's report.html again, also while the sweep runs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from pydantic import ValidationError

from modelpress.api.v1alpha1 import Goal, Objective
from modelpress.control_characters import escape_control_characters
from modelpress.local.errors import LocalError, UsageError
from modelpress.results.report import ReportError, refresh
from modelpress.store import StoreError, StoreUriError, open_store

from .exits import Exit
from .outputs import cannot_write, check_output


def write_report(
    where: str, *, objectives: Sequence[str], output: Path | None, endpoint: str | None, region: str | None
) -> int:
    """Write the report of the sweep in this folder; the exit code.

    Raises:
        UsageError: this is no sweep's folder, or an option cannot be used.
        LocalError: the store refused or failed.
    """
    check_output("--output", output)
    wanted = [_objective(text) for text in objectives]
    folder = where.removesuffix("/report.html").removesuffix("/trials")
    if "://" not in folder and not os.path.isdir(folder):
        raise UsageError(f"there is no folder {folder}; name a sweep's folder, <store>/<namespace>/<sweep>-<uid>")
    try:
        store, told = open_store(folder, endpoint=endpoint, region=region), list[str]()
        path, count = refresh(store, objectives=wanted, to=output, tell=told.append)
    except (ReportError, StoreUriError) as error:
        raise UsageError(str(error)) from error
    except StoreError as error:
        raise LocalError(str(error)) from error
    except OSError as error:
        raise (LocalError(str(error)) if output is None else cannot_write("--output", output, error)) from error
    print(f"{path}: {count} trial{'s' if count != 1 else ''}")
    for sentence in told:
        print(escape_control_characters(sentence))
    return Exit.DONE


def _objective(text: str) -> Objective:
    metric, _, goal = text.partition(":")
    goals = get_args(Goal)
    try:
        if goal and goal not in goals:
            raise ValueError
        return Objective.model_validate({"metric": metric, "goal": goal or None})
    except (ValidationError, ValueError):
        raise UsageError(
            f"--objective: {text!r} is no objective; give a metric, or metric:{goals[0]} or metric:{goals[1]}"
        ) from None
