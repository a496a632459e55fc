"""The trials of a sweep as the store knows them. Nothing here loads torch."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from modelpress.api.v1alpha1 import reasons
from modelpress.result import RunRecord
from modelpress.results.collect import read_record
from modelpress.store import ArtifactStore, layout, manifest
from modelpress.store.manifest import Manifest, ManifestError

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
    def screened(self) -> int | None:
        """The trial of the first rung that this one goes on from."""
        return self.record.trial.screened if self.record is not None and self.record.trial is not None else None

    @property
    def name(self) -> str:
        return self.record.name if self.record is not None else ""


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
