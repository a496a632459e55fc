"""Checks one after another, within a limit of time, and the table of what they said."""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass

OK, FAILED, NOT_HERE = "ok", "failed", "not here"


class NotHere(Exception):  # noqa: N818 - it is no error
    """A check cannot be made on this machine; the message says why."""


@dataclass(frozen=True)
class Row:
    """What a check said."""

    name: str
    state: str
    detail: str
    seconds: float


def run_all(
    checks: Mapping[str, Callable[[], str]],
    limit: float,
    clock: Callable[[], float] = time.monotonic,
    end: Callable[[int], None] = os._exit,
) -> list[Row]:
    """Runs every check; each gives a row, also where it fails, cannot be made here, or no time is left for it.

    Args:
        checks: by name; what one returns is the row's detail.
        limit: seconds for all of them. A check that is under way by then ends the process, with the table.
        clock: seconds.
        end: ends the process.
    """
    rows: list[Row] = []
    began = clock()
    names = list(checks)
    over = threading.Event()

    def watch() -> None:
        if not over.wait(limit):
            left = names[len(rows) :]
            late = [Row(left[0], FAILED, f"the limit of {limit:.0f} s was over", clock() - began)] if left else []
            late += [Row(name, FAILED, "no time was left for it", 0.0) for name in left[1:]]
            print("\n".join(table(rows + late)), flush=True)
            end(1)

    threading.Thread(target=watch, daemon=True).start()
    for name, check in checks.items():
        start = clock()
        if start - began >= limit:
            rows.append(Row(name, FAILED, "no time was left for it", 0.0))
            continue
        try:
            state, detail = OK, check()
        except NotHere as reason:
            state, detail = NOT_HERE, f"because {reason}"
        except BaseException as error:  # the table is to be complete whatever a check meets
            traceback.print_exc(file=sys.stderr)
            lines = str(error).strip().splitlines()
            state, detail = FAILED, f"{type(error).__name__}: {lines[0] if lines else ''}"
        rows.append(Row(name, state, detail, clock() - start))
        print(_line(rows[-1], len(name)), flush=True)
    over.set()
    return rows


def table(rows: list[Row]) -> list[str]:
    """The lines of the table, and of its sum."""
    width = max((len(row.name) for row in rows), default=0)
    counts = {state: sum(row.state == state for row in rows) for state in (OK, FAILED, NOT_HERE)}
    return ["", *(_line(row, width) for row in rows), "", ", ".join(f"{n} {state}" for state, n in counts.items())]


def _line(row: Row, width: int) -> str:
    return f"{row.name:<{width}}  {row.state:<8}  {row.seconds:6.1f} s  {row.detail}"
