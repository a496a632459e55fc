"""`modelpress validate`: schema and semantics of files, without torch and without a cluster."""

from __future__ import annotations

from collections.abc import Sequence

from modelpress.api.errors import Problem, SpecError
from modelpress.api.semantic import job_problems, sweep_problems
from modelpress.api.v1alpha1 import CompressionSweep
from modelpress.local.sources import load_documents

from .exits import Exit


def problems_of(source: str, *, cluster: bool) -> tuple[list[Problem], int]:
    """Everything that is wrong with one file, and how many objects it holds if it can be read."""
    try:
        loaded = load_documents(source)
    except SpecError as error:
        return error.problems, 0
    problems: list[Problem] = []
    for item in loaded:
        if isinstance(item.obj, CompressionSweep):
            found = sweep_problems(item.obj.spec, cluster=cluster)
        else:
            found = job_problems(item.obj.spec, cluster=cluster)
        problems += item.locate(found)
    return problems, len(loaded)


def validate_files(sources: Sequence[str], *, cluster: bool, smoke: bool = False) -> int:
    """Print a line for each problem, or that a file is valid; the exit code.

    Args:
        cluster: also what no pod can honour.
        smoke: run each recipe in short, too, where the files are valid.

    Raises:
        LocalError: a recipe does not run; the message says why.
    """
    code = Exit.DONE
    for source in sources:
        problems, count = problems_of(source, cluster=cluster)
        for problem in problems:
            print(problem)
        if problems:
            code = Exit.INVALID
        else:
            print(f"{source}: valid, {count} object{'s' if count != 1 else ''}")
    if smoke and code == Exit.DONE:
        from .preflight import smoke as run_in_short

        for source in sources:
            for line in run_in_short(source):
                print(line)
    return code
