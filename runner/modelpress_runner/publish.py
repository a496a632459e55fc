"""Publishes a sweep: a table of all trials, and a copy of the best one that opens by itself.

All of it is read from the store, so that nothing is lost with the objects of a cluster. Publishing again changes
nothing; publishing another best replaces the one before without a moment at which there is none. Nothing here loads
torch.
"""

from __future__ import annotations

import csv
import io
import json
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from modelpress.api.v1alpha1 import reasons
from modelpress.request import RunRequest
from modelpress.result import RunRecord, RunResult
from modelpress.store import ArtifactStore, ObjectMissingError, layout, manifest
from modelpress.store.manifest import FileEntry, Manifest, ManifestError
from modelpress_runner.collect import read_record
from modelpress_runner.errors import ArtifactError, InvalidSpecError

log = logging.getLogger("modelpress")
_READERS = 8
_STOPPED = (reasons.STOPPED_BY_SWEEP, reasons.RUNNER_TERMINATED)


@dataclass
class Trial:
    """What the store knows of one trial.

    Attributes:
        number: of the trial.
        prefix: its folder below the store's URI.
        sizes: size in bytes by path relative to the prefix, of all its objects.
        manifest: the committed one.
        damage: why the manifest cannot be read.
        record: of the committed attempt, else of the newest one that left a record.
    """

    number: int
    prefix: str
    sizes: dict[str, int] = field(default_factory=dict)
    manifest: Manifest | None = None
    damage: str | None = None
    record: RunRecord | None = None

    @property
    def state(self) -> str:
        """Succeeded, Failed, Stopped, Damaged (an unreadable manifest), or Unknown (it left no record)."""
        if self.damage is not None:
            return "Damaged"
        if self.manifest is not None:
            return "Succeeded"
        if self.record is None:
            return "Unknown"
        return "Stopped" if self.record.reason in _STOPPED else "Failed"

    @property
    def baseline(self) -> dict[str, float]:
        if self.manifest is not None:
            return self.manifest.metrics.baseline
        return self.record.baseline if self.record is not None else {}

    @property
    def compressed(self) -> dict[str, float]:
        if self.manifest is not None:
            return self.manifest.metrics.compressed
        return self.record.compressed if self.record is not None else {}

    @property
    def parameters(self) -> dict[str, bool | int | float | str]:
        return self.record.trial.parameters if self.record is not None and self.record.trial is not None else {}

    @property
    def name(self) -> str:
        return self.record.name if self.record is not None else ""


def publish(request: RunRequest, store: ArtifactStore) -> RunResult:
    """Writes trials.csv, best.json and best/ below `request.root`; the manifest digest of the result is that of best/.

    Without a best trial, best.json and best/ of a former publication are removed.

    Raises:
        InvalidSpecError: this is no request to publish.
        ArtifactError: the best trial is not committed, or a file of it is missing or damaged.
        StoreError: the store refused or failed.
    """
    if request.publish is None:
        raise InvalidSpecError("a run that publishes needs to know what; the shell that writes the request sets it")
    trials = read_trials(store, request.root)
    best, digest = None, None
    if request.publish.best is None:
        _withdraw(store, request.root)
    else:
        best = trials.get(request.publish.best)
        if best is None or best.manifest is None:
            where = f"{store.uri}/{layout.trial_prefix(request.root, request.publish.best)}/{layout.MANIFEST}"
            problem = best.damage if best is not None and best.damage is not None else f"there is no {where}"
            raise ArtifactError(f"the best trial, {request.publish.best}, cannot be published: {problem}")
        digest = _publish_best(store, request.root, best, best.manifest)
    table = trials_table(list(trials.values()), store.uri)
    _put_if_changed(store, layout.join(request.root, layout.TRIALS_TABLE), table)
    said = f"trial {best.number} is the best" if best is not None else "none is feasible"
    return RunResult(
        phase="Succeeded",
        reason=reasons.PUBLISHED,
        message=f"{len(trials)} trials are published; {said}",
        manifest_digest=digest,
        code_digest=best.manifest.code_digest if best is not None and best.manifest is not None else None,
        baseline=best.baseline if best is not None else {},
        compressed=best.compressed if best is not None else {},
    )


def read_trials(store: ArtifactStore, root: str) -> dict[int, Trial]:
    """All trials that left something below a sweep's root, by number, in ascending order.

    Raises:
        StoreError: the store refused or failed.
    """
    folder = layout.join(root, layout.TRIALS)
    trials: dict[int, Trial] = {}
    for info in store.list(folder):
        name, _, rest = info.path[len(folder) + 1 :].partition("/")
        number = layout.trial_number(name)
        if number is not None and rest:
            trials.setdefault(number, Trial(number, f"{folder}/{name}")).sizes[rest] = info.size
    with ThreadPoolExecutor(_READERS, "publish") as pool:
        list(pool.map(lambda trial: _read_trial(store, trial), trials.values()))
    return dict(sorted(trials.items()))


def trials_table(trials: Sequence[Trial], uri: str) -> bytes:
    """The trials as CSV in UTF-8: number, name, state, param.*, baseline.*, compressed.*, uri."""
    parameters = sorted({name for trial in trials for name in trial.parameters})
    baseline = sorted({name for trial in trials for name in trial.baseline})
    compressed = sorted({name for trial in trials for name in trial.compressed})
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["number", "name", "state"]
        + [f"param.{name}" for name in parameters]
        + [f"baseline.{name}" for name in baseline]
        + [f"compressed.{name}" for name in compressed]
        + ["uri"]
    )
    for trial in trials:
        row: list[object] = [trial.number, trial.name, trial.state]
        row += [_cell(trial.parameters.get(name)) for name in parameters]
        row += [_cell(trial.baseline.get(name)) for name in baseline]
        row += [_cell(trial.compressed.get(name)) for name in compressed]
        writer.writerow([*row, f"{uri}/{trial.prefix}"])
    return text.getvalue().encode()


def _read_trial(store: ArtifactStore, trial: Trial) -> None:
    found = None
    if layout.MANIFEST in trial.sizes:
        try:
            found = manifest.read(store, trial.prefix)
        except ManifestError as error:
            log.warning("trial %d is left out: %s", trial.number, error)
            trial.damage = str(error)
    folders = {path.partition("/")[0] for path in trial.sizes if path.endswith(f"/{layout.RESULT}")}
    attempts = sorted(((parsed, name) for name in folders if (parsed := layout.parse_attempt(name))), reverse=True)
    order = [name for _, name in attempts]
    digest = None
    if found is not None:
        trial.manifest, digest = found
        committed = trial.manifest.folder
        # The committed attempt first: a later one may have been told to stop before it saw the manifest.
        order.sort(key=lambda name: name != committed)
    for name in order:
        record = read_record(store, layout.join(trial.prefix, name, layout.RESULT))
        if record is not None:
            trial.record = trial.record or record
            if digest is None or record.manifest_digest == digest:
                trial.record = record
                return


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


def _check(store: ArtifactStore, trial: Trial, entry: FileEntry) -> None:
    size = trial.sizes.get(entry.path)
    if size != entry.bytes:
        found = "it is missing" if size is None else f"it has {size} bytes, where the manifest has {entry.bytes}"
        raise ArtifactError(
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
