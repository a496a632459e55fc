"""mp.load: from an artifact back to a model."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from modelpress.plainjson import json_of
from modelpress.store import StoreError as ArtifactStoreError
from modelpress.store import layout, manifest, open_store
from modelpress_runner.edits.wrappers import unwrapped
from modelpress_runner.errors import ArtifactError, StoreError
from modelpress_runner.export.pt2.program import open_program
from modelpress_runner.export.weights import load_into


def load(
    uri: str | Path,
    into: nn.Module | None = None,
    *,
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
        digest: sha256 that manifest.json must have, as a job's status says it (`manifestDigest`); None: any.
        operators: operators that the program may call besides those of the list, as in ["torchvision::nms"].
        max_calls: how many operators the program may call; None: 4,096, and one more for each 512 bytes of its file.
        endpoint: of an S3-compatible server.
        region: of the bucket.

    Returns:
        The program, or `into`.

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
