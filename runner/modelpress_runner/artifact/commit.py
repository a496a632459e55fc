"""From a finished run to its committed artifact."""

from __future__ import annotations

import json
from pathlib import Path

from modelpress.request import RunRequest
from modelpress.store import layout, manifest
from modelpress.store.base import ArtifactStore
from modelpress_runner.artifact import files as artifact
from modelpress_runner.artifact.files import Written
from modelpress_runner.engine.outcome import RecipeOutcome
from modelpress_runner.measure.measuring import Measured
from modelpress_runner.subject.subject import Subject


def write(
    folder: Path, request: RunRequest, outcome: RecipeOutcome, measured: Measured, subject: Subject, notes: list[str]
) -> Written:
    """Writes all files of the artifact into `folder`."""
    written = artifact.write_files(
        folder,
        model=outcome.model,
        dummy_input=subject.dummy_input,
        edits=outcome.edits,
        masks=outcome.masks,
        metrics={"baseline": measured.baseline, "compressed": measured.compressed},
        spec=request.spec,
        stages=outcome.stages,
        notes=notes,
        name=request.name,
        timing=measured.timing or None,
        ready=measured.made,
        layout=subject.layout,
    )
    _add_training(folder / layout.METRICS, outcome.training)
    return written


def commit(
    store: ArtifactStore,
    request: RunRequest,
    written: Written,
    measured: Measured,
    outcome: RecipeOutcome,
    code_digest: str,
) -> tuple[str, bool]:
    """Uploads the files and commits the manifest.

    Returns:
        The sha256 of the manifest that stands, and whether it is ours; if it is not, our files are deleted again.
    """
    folder = layout.attempt_folder(request.attempt, request.run_uid)
    entries = []
    for path in written.files:
        entries.append(manifest.entry(layout.join(folder, written.name_of(path)), path))
        store.put_file(layout.join(request.prefix, entries[-1].path), path)
    ours = manifest.Manifest.model_validate(
        {
            "apiVersion": artifact.API_VERSION,
            "attempt": request.attempt,
            "files": [entry.to_dict() for entry in entries],
            "metrics": {
                "baseline": measured.baseline,
                "compressed": measured.compressed,
                "stages": outcome.stages,
            },
            "specDigest": artifact.spec_digest(request.spec),
            "codeDigest": code_digest or None,
            "versions": artifact.module_versions(),
            "requiredImports": written.required_imports,
        }
    )
    standing, digest = manifest.commit(store, request.prefix, ours)
    mine = standing.folder == folder
    if not mine:
        store.delete_prefix(layout.join(request.prefix, folder))
    return digest, mine


def _add_training(path: Path, training: dict[str, int]) -> None:
    metrics = json.loads(path.read_text(encoding="utf-8"))
    metrics["training"] = training
    path.write_text(json.dumps(metrics, indent=2, sort_keys=True, allow_nan=False) + "\n", encoding="utf-8")
