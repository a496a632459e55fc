"""The artifact of a run: every file of it, written the same way each time, and committed by its manifest."""

from __future__ import annotations

import json
import platform
import shutil
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from modelpress._version import __version__
from modelpress.api.v1alpha1 import CompressionJobSpec, Export
from modelpress.store import StoreError as ArtifactStoreError
from modelpress.store import layout as names
from modelpress.store import manifest, open_store
from modelpress_runner.artifact.card import card
from modelpress_runner.edits.base import Edit
from modelpress_runner.edits.masks import Masks
from modelpress_runner.errors import ArtifactError, StoreError
from modelpress_runner.export import weights
from modelpress_runner.export.formats import Format, exports, write_export
from modelpress_runner.export.formats.base import FreeAxes
from modelpress_runner.export.layout import Layout, LayoutError
from modelpress_runner.export.pt2.equivalence import NotPortableError
from modelpress_runner.export.pt2.program import export_program

API_VERSION = "modelpress.dev/v1alpha1"


@dataclass(frozen=True)
class Written:
    """What `write_files` wrote into `folder`. `files` are local paths, in order of their names."""

    folder: Path
    files: list[Path]
    portable: bool
    portable_reason: str | None = None
    required_imports: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def name_of(self, path: Path) -> str:
        """The name of one of its files within the artifact: `model.pt2`, `transformers/config.json`."""
        return path.relative_to(self.folder).as_posix()


@dataclass(frozen=True)
class Saved:
    """A committed artifact: its manifest, the sha256 of that, and what was written."""

    uri: str
    manifest: manifest.Manifest
    digest: str
    written: Written


def write_files(
    out: Path,
    *,
    model: nn.Module,
    dummy_input: Any,
    edits: Sequence[Edit],
    masks: Masks | None,
    metrics: Mapping[str, Any],
    spec: CompressionJobSpec | Mapping[str, Any],
    stages: Sequence[Mapping[str, Any]] = (),
    notes: Sequence[str] = (),
    name: str = "model",
    timing: Mapping[str, Any] | None = None,
    ready: Mapping[str, Path] | None = None,
    versions: Mapping[str, str] | None = None,
    layout: Layout | None = None,
) -> Written:
    """Writes all files of an artifact but the manifest; equal arguments give equal bytes.

    model.pt2 (where the model is portable), model.safetensors, shrink.json, masks.safetensors (where there are masks),
    the files of other formats that the spec asks for or was measured in, metrics.json, job.yaml and README.md.

    Args:
        out: a folder, made if it is not there.
        model: the compressed model.
        dummy_input: example inputs; None: there will be no program.
        edits: what makes its structure of the dense model's, in order of replay.
        masks: masks in force, 1 = kept.
        metrics: {baseline, compressed} by metric name.
        spec: the resolved spec; a mapping is written as it is.
        stages: what each stage did, JSON-ready.
        notes: sentences for the model card.
        name: of the job.
        timing: `measure.Timed.detail`.
        ready: files of this very model that were exported already, by their name in the artifact: they are copied.
        versions: of what made it; none: `versions()`.
        layout: another library's, for a folder of its name; where it cannot hold the model, a note says why.

    Raises:
        InvalidModelError: the model's state holds something that is no tensor.
        CompressionError: it has no form in a format that the spec asks for.
    """
    out.mkdir(parents=True, exist_ok=True)
    files = weights.save(model, out, edits, masks)
    plain = spec.to_dict() if isinstance(spec, CompressionJobSpec) else dict(spec)
    export = Export.model_validate(plain.get("export") or {})
    target, ready = (plain.get("target") or {}).get("format", "eager"), ready or {}
    free = export.free_axes()
    reason, imports, all_notes = _program(
        out / names.PROGRAM, model, dummy_input, ready.get(names.PROGRAM), list(notes), free
    )
    if reason is None:
        files.append(out / names.PROGRAM)
    for kind in exports(export.formats, target):
        files += _exported(kind, model, dummy_input, out, ready, layout, free)
    if layout is not None:
        beside, note = _beside(layout, model, dummy_input, out)
        files += beside
        all_notes = [*all_notes, note] if note else all_notes
    records = [dict(stage) for stage in stages or metrics.get("stages") or ()]
    measured = {
        "baseline": dict(metrics.get("baseline") or {}),
        "compressed": dict(metrics.get("compressed") or {}),
        "stages": records,
        "timing": dict(timing) if timing is not None else None,
        "portable": reason is None,
        "portableReason": reason,
        "requiredImports": imports,
        "notes": all_notes,
    }
    files.append(_text(out / names.METRICS, json.dumps(measured, indent=2, sort_keys=True, allow_nan=False) + "\n"))
    files.append(_text(out / names.JOB, job_yaml(name, plain)))
    known = dict(versions) if versions is not None else module_versions()
    text = card(
        name=name,
        recipe=plain.get("stages") or [],
        metrics=measured,
        timing=timing,
        target=target,
        files=[path.relative_to(out).as_posix() for path in files],
        portable_reason=reason,
        required_imports=imports,
        versions=known,
        notes=all_notes,
        stages=records,
    )
    files.append(_text(out / names.CARD, text))
    return Written(out, sorted(files), reason is None, reason, imports, all_notes)


def save(
    uri: str,
    *,
    attempt: int = 1,
    run_uid: str | None = None,
    code_digest: str | None = None,
    endpoint: str | None = None,
    region: str | None = None,
    **files: Any,
) -> Saved:
    """Writes an artifact to `<uri>/<attempt>-<id>/` and commits `<uri>/manifest.json`.

    Args:
        uri: a folder, or s3://, gs://, az://.
        attempt: number of the attempt.
        run_uid: what tells attempts apart; none: random.
        code_digest: of the user's code, if known.
        endpoint: of an S3-compatible server.
        region: of the bucket.
        files: the arguments of `write_files`, without `out`.

    Raises:
        ArtifactError: there is an artifact at `uri` already.
        StoreError: the store refused or failed.
    """
    versions = dict(files.pop("versions", None) or module_versions())
    with tempfile.TemporaryDirectory(prefix="modelpress-save-") as folder:
        written = write_files(Path(folder), versions=versions, **files)
        try:
            store = open_store(uri, endpoint=endpoint, region=region)
            if manifest.read(store, "") is not None:
                raise _taken(uri)
            below = names.attempt_folder(attempt, run_uid or uuid.uuid4().hex)
            entries = []
            for path in written.files:
                entries.append(manifest.entry(names.join(below, written.name_of(path)), path))
                store.put_file(entries[-1].path, path)
            measured = json.loads((Path(folder) / names.METRICS).read_text())
            ours = manifest.Manifest.model_validate(
                {
                    "apiVersion": API_VERSION,
                    "attempt": attempt,
                    "files": [entry.to_dict() for entry in entries],
                    "metrics": {key: measured[key] for key in ("baseline", "compressed", "stages")},
                    "specDigest": spec_digest(files["spec"]),
                    "codeDigest": code_digest,
                    "versions": versions,
                    "requiredImports": written.required_imports,
                }
            )
            standing, digest = manifest.commit(store, "", ours)
        except ArtifactStoreError as error:
            raise StoreError(str(error)) from error
    if standing.folder != ours.folder:
        raise _taken(uri)
    return Saved(uri, standing, digest, written)


def spec_digest(spec: CompressionJobSpec | Mapping[str, Any]) -> str:
    """sha256 of a spec's canonical JSON."""
    plain = spec.to_dict() if isinstance(spec, CompressionJobSpec) else dict(spec)
    return manifest.digest_of(manifest.canonical_json(plain))


def module_versions() -> dict[str, str]:
    """Versions of Python, modelpress and the packages that decide what an artifact is like."""
    found = {"python": platform.python_version(), "modelpress": __version__, "torch": torch.__version__}
    found["safetensors"] = metadata.version("safetensors")
    return found


def job_yaml(name: str, spec: Mapping[str, Any]) -> str:
    """A spec as a CompressionJob document."""
    document = {"apiVersion": API_VERSION, "kind": "CompressionJob", "metadata": {"name": name}, "spec": dict(spec)}
    return yaml.safe_dump(document, sort_keys=False, default_flow_style=False, allow_unicode=True, width=100)


def _program(
    path: Path, model: nn.Module, dummy_input: Any, ready: Path | None, notes: list[str], free: FreeAxes
) -> tuple[str | None, list[str], list[str]]:
    if dummy_input is None:
        return "there is no dummy_input to trace it with", [], notes
    if ready is not None:
        from modelpress_runner.export.pt2.program import describe

        known = describe(ready)
        if ready.resolve() != path.resolve():
            shutil.copyfile(ready, path)
        return None, known.required_imports, notes + known.notes
    try:
        exported = export_program(model, dummy_input, path, free)
    except NotPortableError as error:
        return error.reason, [], notes
    return None, exported.required_imports, notes + exported.notes


def _exported(
    kind: Format,
    model: nn.Module,
    dummy_input: Any,
    out: Path,
    ready: Mapping[str, Path],
    layout: Layout | None,
    free: FreeAxes,
) -> list[Path]:
    """The files of a format: copied where they are ready, else written."""
    if kind.file is None or kind.file not in ready:
        return write_export(kind, model, dummy_input, out, layout, free)
    made = kind.files(ready[kind.file])
    for path in made:
        shutil.copyfile(path, out / path.name)
    return [out / path.name for path in made]


def _beside(layout: Layout, model: nn.Module, dummy_input: Any, out: Path) -> tuple[list[Path], str | None]:
    """The files of another library's layout; where there are none, a note on why."""
    folder = out / layout.name
    try:
        layout.write(model, dummy_input, folder)
    except LayoutError as error:
        other: list[Path] = []
        loads = "mp.load(uri) or mp.load(uri, into=model)"
        if layout.otherwise is not None:
            other, why = _beside(layout.otherwise, model, dummy_input, out)
            loads += "" if why is not None else f", or by the loader in the folder {layout.otherwise.name}"
        return other, f"there is no folder {layout.name}: {error}; load it with {loads}"
    return [path for path in folder.rglob("*") if path.is_file()], None


def _text(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def _taken(uri: str) -> ArtifactError:
    return ArtifactError(f"{uri} holds an artifact already, and artifacts are never overwritten; give another URI")
