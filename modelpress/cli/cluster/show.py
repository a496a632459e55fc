"""`modelpress status`: all jobs and sweeps, or one of them with everything about it."""

from __future__ import annotations

import datetime as dt

from modelpress.cli.exits import Exit
from modelpress.cli.tables import console
from modelpress.trials import SWEEP_LABEL

from . import tables, views
from .connection import JOB, SWEEP, Cluster, Raw
from .errors import RequestError
from .output import as_list, print_document, tidy


def status(cluster: Cluster, name: str | None, *, everywhere: bool, output: str) -> int:
    """Print one object, or all; the exit code.

    Raises:
        LocalError: the cluster refused or failed, or there is no such object.
    """
    now = dt.datetime.now(dt.UTC)
    if name is None:
        objects = [*cluster.all(SWEEP, everywhere=everywhere), *cluster.all(JOB, everywhere=everywhere)]
        if output != "table":
            print_document(as_list([tidy(obj) for obj in objects]), output)
            return Exit.DONE
        shown = [obj for obj in objects if views.trial_number(obj) is None]
        if shown:
            console().print(tables.overview(shown, now, everywhere=everywhere))
        else:
            place = f"any namespace of {cluster.where}" if everywhere else f"the namespace {cluster.namespace}"
            print(f"there are no jobs and no sweeps in {place}; start one with: modelpress submit FILE")
        return Exit.DONE
    if everywhere:
        raise RequestError("--all-namespaces: lists objects, and shows none of them alone; name its namespace with -n")
    kind, obj = cluster.find(name)
    trials = [] if kind is JOB else _trials(cluster, obj)
    if output != "table":
        print_document(as_list([tidy(item) for item in (obj, *trials)]) if trials else tidy(obj), output)
        return Exit.DONE
    tables.print_object(console(), obj, trials, now)
    return Exit.DONE


def _trials(cluster: Cluster, sweep: Raw) -> list[Raw]:
    uid = views.meta(sweep).get("uid")
    found = cluster.all(JOB, labels={SWEEP_LABEL: views.name(sweep)})
    return [trial for trial in found if any(ref.get("uid") == uid for ref in _owners(trial))]


def _owners(obj: Raw) -> list[Raw]:
    return views.meta(obj).get("ownerReferences") or []
