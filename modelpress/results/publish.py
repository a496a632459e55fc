"""Publishes a sweep: a report, a table of all trials, and a copy of the best one that opens by itself.

All of it is read from the store, so that nothing is lost with the objects of a cluster. Publishing again changes
nothing; publishing another best replaces the one before without a moment at which there is none. Nothing here loads
torch.
"""

from __future__ import annotations

import csv
import io
import json

from modelpress.api.v1alpha1 import reasons
from modelpress.request import RunRequest
from modelpress.result import RunResult
from modelpress.results import report
from modelpress.results.comparable import standard_error
from modelpress.results.trials import Trial, read_trials
from modelpress.store import ArtifactStore, ObjectMissingError, layout, manifest
from modelpress.store.manifest import FileEntry, Manifest

from .errors import InvalidRequestError, ResultsError

_LIGHT = frozenset({layout.RESULT, layout.METRICS, layout.JOB, layout.CARD})  # of a trial whose model is not kept


def publish(request: RunRequest, store: ArtifactStore) -> RunResult:
    """Writes report.html, trials.csv, best.json and best/ below `request.root`; the result has the digest of best/.

    Without a best trial, best.json and best/ of a former publication are removed.

    Raises:
        InvalidRequestError: this is no request to publish.
        ResultsError: the best trial is not committed, or a file of it is missing or damaged.
        StoreError: the store refused or failed.
    """
    if request.publish is None:
        raise InvalidRequestError(
            "a run that publishes needs to know what; the controller that writes the request sets it"
        )
    trials = read_trials(store, request.root)
    best, digest = None, None
    if request.publish.best is None:
        _withdraw(store, request.root)
    else:
        best = trials.get(request.publish.best)
        if best is None or best.manifest is None:
            where = f"{store.uri}/{layout.trial_prefix(request.root, request.publish.best)}/{layout.MANIFEST}"
            problem = best.damage if best is not None and best.damage is not None else f"there is no {where}"
            raise ResultsError(f"the best trial, {request.publish.best}, cannot be published: {problem}")
        digest = _publish_best(store, request.root, best, best.manifest)
    listed = list(trials.values())
    frame = report.published_frame(store, request.root, request.name, request.spec, request.publish, listed)
    found = report.findings(frame, listed)
    _put_if_changed(store, layout.join(request.root, layout.TRIALS_TABLE), trials_table(found, store.uri))
    _put_if_changed(store, layout.join(request.root, layout.REPORT), report.render(found))
    if store.list(kept := layout.join(request.root, layout.STAGES)):
        store.delete_prefix(kept)
    said = f"trial {best.number} is the best" if best is not None else "none is feasible"
    if best is not None and request.publish.keep != "all":
        front = request.publish.front if request.publish.keep == "pareto" else []
        gone = [trial for trial in listed if trial.number not in {best.number, *front}]
        said += f"; the models of {sum(_slim(store, trial) for trial in gone)} others are removed"
    return RunResult(
        phase="Succeeded",
        reason=reasons.PUBLISHED,
        message=f"{len(trials)} trials are published; {said}",
        manifest_digest=digest,
        code_digest=best.manifest.code_digest if best is not None and best.manifest is not None else None,
        baseline=best.baseline if best is not None else {},
        compressed=best.compressed if best is not None else {},
    )


def trials_table(found: report.Findings, uri: str) -> bytes:
    """The trials as CSV in UTF-8: number, name, state, screened (two rungs), param.*, baseline.*, compressed.*, stderr,
    attained, comparable, uri.

    stderr, where it is known of a trial, is the standard error of the score; attained how far the search was once the
    trial was over (search.attainment), of those that meet the constraints; comparable what sets its numbers apart from
    the best one's, or yes.
    """
    trials = found.trials
    parameters = sorted({name for trial in trials for name in trial.parameters})
    baseline = sorted({name for trial in trials for name in trial.baseline})
    compressed = sorted({name for trial in trials for name in trial.compressed})
    rungs = any(trial.screened is not None for trial in trials)
    errors = {trial.number: standard_error(trial.compressed) for trial in trials}
    told = any(error is not None for error in errors.values())
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["number", "name", "state"]
        + (["screened"] if rungs else [])
        + [f"param.{name}" for name in parameters]
        + [f"baseline.{name}" for name in baseline]
        + [f"compressed.{name}" for name in compressed]
        + (["stderr"] if told else [])
        + ["attained", "comparable", "uri"]
    )
    for trial in trials:
        row: list[object] = [trial.number, trial.name, trial.state]
        row += [_cell(trial.screened)] if rungs else []
        row += [_cell(trial.parameters.get(name)) for name in parameters]
        row += [_cell(trial.baseline.get(name)) for name in baseline]
        row += [_cell(trial.compressed.get(name)) for name in compressed]
        row += [_cell(errors[trial.number])] if told else []
        done = trial.state == "Succeeded"
        row += [_cell(round(found.attained.at(trial.number), 6)) if done else ""]
        row += [f"no: {found.apart[trial.number]}" if trial.number in found.apart else "yes"] if done else [""]
        writer.writerow([*row, f"{uri}/{trial.prefix}"])
    return text.getvalue().encode()


def _publish_best(store: ArtifactStore, root: str, trial: Trial, standing: Manifest) -> str:
    """Copies the files, then replaces the manifest, then the record, and removes what no longer belongs; the digest."""
    prefix = layout.join(root, layout.BEST)
    folder = layout.best_folder(trial.number, standing.folder or str(standing.attempt))
    files = [entry.model_copy(update={"path": f"{folder}/{standing.name_of(entry)}"}) for entry in standing.files]
    published = standing.model_copy(update={"files": files})
    there = {info.path[len(prefix) + 1 :]: info.size for info in store.list(prefix)}
    for old, new in zip(standing.files, files, strict=True):
        if there.get(new.path) != new.bytes:
            _check(store, trial, old)
            store.copy(layout.join(trial.prefix, old.path), layout.join(prefix, new.path))
    data = manifest.encode(published)
    _put_if_changed(store, layout.join(prefix, layout.MANIFEST), data)
    record = {
        "trial": trial.number,
        "name": trial.name,
        "parameters": trial.parameters,
        "uri": f"{store.uri}/{trial.prefix}",
        "metrics": {"baseline": trial.baseline, "compressed": trial.compressed},
    }
    text = json.dumps(record, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
    _put_if_changed(store, layout.join(root, layout.BEST_RECORD), text.encode())
    for name in sorted({path.partition("/")[0] for path in there if "/" in path} - {folder}):
        store.delete_prefix(layout.join(prefix, name))
    belongs = {entry.path for entry in files}
    for path in there:
        if path != layout.MANIFEST and path not in belongs and path.partition("/")[0] in (folder, path):
            store.delete(layout.join(prefix, path))
    return manifest.digest_of(data)


def _slim(store: ArtifactStore, trial: Trial) -> bool:
    """Remove what a trial left but its metrics, records and recipe; whether there was anything.

    The manifest stays: it says that the trial is done, and what its files were.
    """
    heavy = [path for path in trial.sizes if "/" in path and path.rpartition("/")[2] not in _LIGHT]
    for path in heavy:
        store.delete(layout.join(trial.prefix, path))
    return bool(heavy)


def _check(store: ArtifactStore, trial: Trial, entry: FileEntry) -> None:
    size = trial.sizes.get(entry.path)
    if size != entry.bytes:
        found = "it is missing" if size is None else f"it has {size} bytes, where the manifest has {entry.bytes}"
        raise ResultsError(
            f"the best trial, {trial.number}, cannot be published: {store.uri}/{trial.prefix}/{entry.path}: {found}; "
            "restore the file, or delete the trial's manifest and run the sweep again"
        )


def _withdraw(store: ArtifactStore, root: str) -> None:
    store.delete(layout.join(root, layout.BEST_RECORD))
    store.delete(layout.join(root, layout.BEST, layout.MANIFEST))
    store.delete_prefix(layout.join(root, layout.BEST))


def _put_if_changed(store: ArtifactStore, path: str, data: bytes) -> None:
    try:
        if store.get_bytes(path) == data:
            return
    except ObjectMissingError:
        pass
    store.put_bytes(path, data)


def _cell(value: bool | int | float | str | None) -> str:
    """A value as CSV and JSON readers take it: true/false, whole numbers without a fraction, floats that read back."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return str(int(value))
    return str(value)
