"""Tells the controller how a run ended when its own report was lost: from the manifest, which is the commit point.

Nothing here loads torch.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from modelpress.api.v1alpha1 import reasons
from modelpress.plainjson import json_of
from modelpress.request import RunRequest
from modelpress.result import RunRecord, RunResult, conditions_of, missed_by_tuning
from modelpress.search import ConstraintError, Spread, verdict
from modelpress.store import ArtifactStore, ObjectMissingError, StoreError, TooLargeError, layout, manifest

log = logging.getLogger("modelpress")
MAX_RECORD = 1024 * 1024  # bytes of result.json


def collect(request: RunRequest, store: ArtifactStore) -> RunResult:
    """The result of the run whose manifest stands under `request.prefix`; phase NotFound if none does.

    The record beside the artifacts is taken where it belongs to this manifest. If the run died between the two, the
    constraints are judged again from the manifest's metrics, and the record is written.

    Raises:
        ManifestError: what stands there is no manifest of ours, or a file that it names is damaged.
        StoreError: the store refused or failed.
    """
    found = manifest.read(store, request.prefix)
    if found is None:
        where = f"{store.uri}/{layout.join(request.prefix, layout.MANIFEST)}"
        return RunResult(phase="NotFound", reason=reasons.NOT_FOUND, message=f"there is no {where}")
    standing, digest = found
    path = layout.join(request.prefix, standing.folder, layout.RESULT)
    record = read_record(store, path)
    if record is not None and record.phase == "Succeeded" and record.manifest_digest == digest:
        return RunResult.model_validate(
            record.model_dump(exclude={"name", "trial", "conditions"}, exclude_none=True, by_alias=True)
        )
    result = _judged(request, store, standing, digest)
    trial = request.trial
    known = (trial.number, trial.parameters, trial.screened) if trial else ()
    record = RunRecord.of(result, request.name, *known, conditions=conditions_of(request.spec))
    try:
        store.put_bytes(path, record.model_dump_json(exclude_none=True).encode())
    except StoreError as error:  # whoever may only read can still collect
        log.warning("the record of the run could not be written: %s", error)
    return result


def read_record(store: ArtifactStore, path: str) -> RunRecord | None:
    """The record of a run; None if there is none or it cannot be read (it is a convenience: the manifest counts)."""
    try:
        return RunRecord.model_validate_json(store.get_bytes(path, MAX_RECORD))
    except ObjectMissingError:
        return None
    except TooLargeError as error:
        log.warning("%s; it is left out", error)
        return None
    except ValidationError as error:
        log.warning("%s/%s is not the record of a run (%s); it is left out", store.uri, path, error.errors()[0]["msg"])
        return None


def _judged(request: RunRequest, store: ArtifactStore, standing: manifest.Manifest, digest: str) -> RunResult:
    baseline, compressed = standing.metrics.baseline, standing.metrics.compressed
    spec = request.spec
    detail = _detail(request, store, standing)
    uncertain: list[str] = []
    try:
        judged = verdict(spec.constraints, spec.metrics, baseline, compressed, Spread.of(detail.get("timing")))
        unmet, uncertain = [violation.sentence for violation in judged.missed], list(judged.uncertain)
    except ConstraintError as error:
        unmet = [str(error)]
    tuning = missed_by_tuning(detail.get("stages"))
    unmet += tuning or []
    portable = standing.find(layout.PROGRAM) is not None
    reason = detail.get("portableReason")
    return RunResult(
        phase="Succeeded",
        reason=reasons.SUCCEEDED,
        message="collected from the manifest",
        manifest_digest=digest,
        code_digest=standing.code_digest,
        baseline=baseline,
        compressed=compressed,
        constraints_met=not unmet and not uncertain if spec.constraints or tuning is not None else None,
        unmet=unmet,
        uncertain=uncertain,
        smaller=_is_smaller(baseline, compressed),
        portable=portable,
        portable_reason=reason if not portable and isinstance(reason, str) else None,
    )


def _detail(request: RunRequest, store: ArtifactStore, standing: manifest.Manifest) -> dict[str, Any]:
    """metrics.json, verified; {} if the artifact has none."""
    if standing.find(layout.METRICS) is None:
        return {}
    with tempfile.TemporaryDirectory() as folder:
        files = manifest.fetch(store, request.prefix, standing, Path(folder), {layout.METRICS})
        try:
            value = json_of(files[layout.METRICS].read_bytes())
        except ValueError as error:
            where = f"{store.uri}/{layout.join(request.prefix, layout.METRICS)}"
            raise manifest.ManifestError(f"{where}: it is no JSON ({error}); run the job again") from None
    return value if isinstance(value, dict) else {}


def _is_smaller(baseline: Mapping[str, float], compressed: Mapping[str, float]) -> bool | None:
    """Whether counts went down; where only time did, None: a manifest does not tell how far times vary."""
    for name in ("parameters", "macs", "sizeBytes"):
        if name in baseline and name in compressed and compressed[name] < baseline[name]:
            return True
    if compressed.get("latencyMs", float("inf")) < baseline.get("latencyMs", float("-inf")):
        return None
    return False
