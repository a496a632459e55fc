"""Writes the report of a sweep again, from what its folder in the store holds now."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from modelpress.api.errors import near
from modelpress.api.v1alpha1 import Objective
from modelpress.results.trials import read_trials
from modelpress.store import ArtifactStore, layout

from .findings import findings
from .frame import ReportError, standing_frame
from .page import render
from .search import sentences

_NAMED = 5


def refresh(
    store: ArtifactStore,
    *,
    objectives: Sequence[Objective] | None = None,
    to: Path | None = None,
    tell: Callable[[str], None] = lambda sentence: None,
) -> tuple[str, int]:
    """Write the report of the sweep whose folder is the store's URI.

    Args:
        store: opened at the sweep's folder, the one that holds trials/.
        objectives: instead of those that the sweep published.
        to: a local file to write instead of report.html in the folder.
        tell: takes sentences on how the search went.

    Returns:
        Where the report is, and how many trials it shows.

    Raises:
        ReportError: this is no sweep's folder, or no trial has a metric of `objectives`.
        StoreError: the store refused or failed.
        OSError: the local file cannot be written.
    """
    trials = list(read_trials(store, "").values())
    if not trials:
        raise ReportError(_no_sweep(store))
    known = {name for trial in trials for name in trial.compressed}
    for metric in [item.metric for item in objectives or () if known and item.metric not in known]:
        closest = near(metric, known)
        hint = f"did you mean {closest}?" if closest else f"give one of {', '.join(sorted(known))}"
        raise ReportError(f"no trial has the metric {metric!r}; {hint}")
    frame = standing_frame(store, "", trials, objectives)
    found = findings(frame, trials)
    for sentence in sentences(found):
        tell(sentence)
    page = render(found)
    if to is not None:
        to.write_bytes(page)
        return str(to), len(trials)
    store.put_bytes(layout.REPORT, page)
    return f"{store.uri}/{layout.REPORT}", len(trials)


def _no_sweep(store: ArtifactStore) -> str:
    """What to do instead, with the sweeps that lie below."""
    sweeps = set()
    for info in store.list(""):
        above, found, _ = f"/{info.path}".partition(f"/{layout.TRIALS}/")
        if found and above:
            sweeps.add(f"{store.uri}{above}")
    if not sweeps:
        return f"{store.uri} holds no trials; name a sweep's folder, <store>/<namespace>/<sweep>-<uid>"
    names = sorted(sweeps)
    more = f", and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{store.uri} is no sweep's folder; name one of those below it: {', '.join(names[:_NAMED])}{more}"
