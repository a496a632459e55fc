"""mp.load: from an artifact back to a model."""

from __future__ import annotations

import re
import shutil
import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from modelpress.plainjson import json_of
from modelpress.store import StoreError as ArtifactStoreError
from modelpress.store import layout, manifest, open_store
from modelpress.store.base import ArtifactStore
from modelpress_runner.edits.wrappers import unwrapped
from modelpress_runner.errors import ArtifactError, StoreError
from modelpress_runner.export.formats import Format, format_names, format_of
from modelpress_runner.export.pt2.program import open_program
from modelpress_runner.export.weights import load_into

PT2 = "pt2"


def load(
    uri: str | Path,
    into: nn.Module | None = None,
    *,
    format: str | None = None,
    digest: str | None = None,
    operators: Sequence[str] = (),
    max_calls: int | None = None,
    endpoint: str | None = None,
    region: str | None = None,
) -> nn.Module:
    """Loads a compressed model. Every file is verified against the manifest before it is opened; nothing is unpickled.

    A program of somebody else is somebody else's code as soon as it runs: it can call only operators of a list, yet
    what it computes, and how long, is its maker's choice. `into` is the safe form: there only numbers are read.

    Without `into` the program is opened: it needs no code of the model, is in eval mode, takes any batch size, and can
    be run, switched with train() and eval(), and finetuned. With `into`, the dense model, the artifact's edits are
    replayed on it, in place, and its weights loaded: a module of your own classes, fit for anything. If that fails,
    the dense model is as it was.

    Args:
        uri: a folder with a manifest.json (a job's, a trial's or best/): a path, file://, s3://, gs:// or az://.
        into: the dense model, built as for the job.
        format: "pt2", the program; "onnxruntime" or "openvino", an mp.RuntimeModule of that file; None: the program,
            or, where there is none, the file of a runtime.
        digest: sha256 that manifest.json must have, as a job's status says it (`manifestDigest`); None: any.
        operators: operators that the program may call besides those of the list, as in ["torchvision::nms"].
        max_calls: how many operators the program may call; None: 4,096, and one more for each 512 bytes of its file.
        endpoint: of an S3-compatible server.
        region: of the bucket.

    Returns:
        The program, the RuntimeModule, or `into`.

    Raises:
        ArtifactError: there is no manifest; a file is missing or damaged; there is no program; it needs a newer torch
            or a package that is not imported; it calls too many operators, or one that is neither in the
            list nor among `operators`;
            the dense model is another one; the manifest has another digest.
        StoreError: the store refused or failed.
    """
    text = re.sub(rf"/*(?:{re.escape(layout.MANIFEST)})?$", "", str(uri)) or str(uri)
    try:
        store = open_store(text, endpoint=endpoint, region=region)
        found = manifest.read(store, "")
        if found is None:
            raise ArtifactError(
                f"{text} has no {layout.MANIFEST}; give the folder of a finished job or trial, or the best/ of a sweep"
            )
        listed = found[0]
        if digest is not None and found[1] != digest.lower():
            raise ArtifactError(
                f"{text}: its manifest has the sha256 {found[1]}, not {digest}; do not use this artifact"
            )
        chosen = None if into is not None else _chosen(listed, format, text)
        if chosen is not None:
            return _in_runtime(store, listed, chosen)
        if into is None:
            _check_program(listed, text)
        names = {layout.PROGRAM, layout.METRICS} if into is None else {layout.WEIGHTS, layout.SHRINK}
        with tempfile.TemporaryDirectory(prefix="modelpress-load-") as folder:
            present = {name for name in names if listed.find(name) is not None}
            manifest.fetch(store, "", listed, Path(folder), present)
            if into is not None:
                load_into(unwrapped(into), Path(folder))
                return into
            if layout.PROGRAM not in present:
                raise ArtifactError(
                    f"{text} has no program{_reason(Path(folder) / layout.METRICS)}; build the dense model and load it "
                    "with mp.load(uri, into=model)"
                )
            return open_program(Path(folder) / layout.PROGRAM, frozenset(operators), max_calls)
    except manifest.ManifestError as error:
        raise ArtifactError(str(error)) from error
    except ArtifactStoreError as error:
        raise StoreError(str(error)) from error


def _chosen(listed: manifest.Manifest, name: str | None, uri: str) -> Format | None:
    """The runtime's format that is wanted; None: the program."""
    kinds = {each: format_of(each) for each in format_names() if format_of(each).exported}
    present = [each for each, kind in kinds.items() if kind.file and listed.find(kind.file) is not None]
    if name is not None and name not in kinds:
        raise ArtifactError(f"there is no format {name!r} to load; known: {', '.join(kinds)}")
    if name is not None and name != PT2 and name not in present:
        raise ArtifactError(
            f"{uri} has no {kinds[name].file}; it has {', '.join(present) or 'weights alone'} (a job writes one with "
            f"export: {{formats: [{kinds[name].exported}]}})"
        )
    wanted = name or next((each for each in (PT2, *present) if each in present), PT2)
    return None if wanted == PT2 else kinds[wanted]


def _in_runtime(store: ArtifactStore, listed: manifest.Manifest, kind: Format) -> nn.Module:
    """The files of a format, opened; they lie on the disk as long as the module lives."""
    assert kind.file is not None
    folder = tempfile.mkdtemp(prefix="modelpress-load-")
    try:
        path = Path(folder) / kind.file
        wanted = {each.name for each in kind.parts(path) if listed.find(each.name) is not None}
        manifest.fetch(store, "", listed, Path(folder), wanted)
        module = kind.open(nn.Identity(), path, None)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    weakref.finalize(module, shutil.rmtree, folder, ignore_errors=True)
    return module


def _check_program(listed: manifest.Manifest, uri: str) -> None:
    written = listed.versions.get("torch")
    if written and _release(written) > _release(torch.__version__):
        raise ArtifactError(
            f"{uri} was written with torch {written} and this is torch {torch.__version__}; install torch "
            f"{'.'.join(str(part) for part in _release(written))} or later, or load it with mp.load(uri, into=model)"
        )


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d{1,6}", version.partition("+")[0])[:2])


def _reason(metrics: Path) -> str:
    try:
        reason = json_of(metrics.read_text()).get("portableReason")
    except (OSError, ValueError, AttributeError):
        return ""
    return f" ({reason})" if isinstance(reason, str) and reason else ""
