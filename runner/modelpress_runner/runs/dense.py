"""The dense model and its baseline, built once per root and kept in the store for every run that starts from it.

`<root>/dense/<digest>/` holds weights under the digest of their content; files of any size go up in parts. Of several
builders one stands: `weights.json`, put-if-absent, says whose weights all go on with. `baseline.json`, written last and
put-if-absent, is the commit point.

Of several processes that train together every one builds the model, so that a pretraining of the user's may use them
all; rank 0 alone writes, and all go on with what stands in the store.
"""

from __future__ import annotations

import contextlib
import re
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modelpress.api.v1alpha1 import CompressionJobSpec
from modelpress.plainjson import json_of
from modelpress.store import layout
from modelpress.store.base import ArtifactStore
from modelpress.store.errors import ObjectMissingError
from modelpress.store.manifest import canonical_json, hash_file
from modelpress_runner.artifact.identity import versions
from modelpress_runner.errors import ArtifactError, InvalidModelError
from modelpress_runner.export import state as weights
from modelpress_runner.measure.measuring import Measuring, Metrics
from modelpress_runner.process.stopping import StopFlag
from modelpress_runner.runtime import distributed as ranks
from modelpress_runner.subject.entrypoint import ModelSource, load_weights
from modelpress_runner.subject.subject import Subject

MAX_RECORD = 1024 * 1024  # bytes of weights.json and baseline.json
_CONTENT_NAME = re.compile(r"model-[0-9a-f]{64}\.safetensors")


@dataclass
class Dense:
    """The dense model in its subject, its metrics, and its state digest.

    Attributes:
        subject: the dense model with its evaluator.
        baseline: metrics that depend on no clock.
        digest: sha256 of the model's state.
        cached: whether the weights came from the store.
        notes: remarks for the model card.
        folder: in the store.
    """

    subject: Subject
    baseline: Metrics
    digest: str
    cached: bool
    notes: list[str] = field(default_factory=list)
    folder: str = ""


class DenseCache:
    """The dense models below one root.

    Args:
        store: where.
        root: the root of the job or sweep.
        digest: of everything that the dense model depends on.
    """

    def __init__(self, store: ArtifactStore, root: str, digest: str) -> None:
        folder = layout.dense_prefix(root, digest)
        self._store = store
        self._folder, self._baseline = folder, f"{folder}/{layout.BASELINE}"
        self._pointer = f"{folder}/{layout.DENSE_WEIGHTS}"

    def obtain(
        self, spec: CompressionJobSpec, entry: ModelSource, base: str | None, stop: StopFlag, timed: bool
    ) -> Dense:
        """The dense model: from the cache where it is, else built and put there.

        Args:
            spec: the recipe.
            entry: what gives the model.
            base: the folder that a relative path of its weights refers to; None: the working directory.
            stop: ends the run.
            timed: whether latency will be measured.

        Raises:
            InvalidModelError: the entrypoint is not what it must be, or the cached weights do not fit what it gives.
            ArtifactError: the cache is damaged.
        """
        with stop.at_once():
            cached = self._cached_weights()
            train = cached is None and spec.model.weights is None
            subject = entry.subject(spec.model, seed=spec.seed, train=train)
            notes: list[str] = []
            if cached is not None:
                notes += _replace(subject, cached, entry)
            elif spec.model.weights is not None:
                load_weights(subject, spec.model.weights, base, spec.store)
            if subject.evaluator is not None:
                subject.evaluator.record_parameter_names(subject.model)
            if cached is None:
                self._write_weights(subject)
            subject.find_inputs()
            digest = weights.state_digest(subject.model)
            baseline = ranks.on_rank_zero(lambda: self._read_baseline(digest))
            if baseline is None:
                measured = Measuring(spec, subject, timed).dense(subject.model)
                baseline = ranks.on_rank_zero(lambda: self._write_baseline(measured, digest))
        return Dense(subject, baseline, digest, cached is not None, notes, self._folder)

    def _standing(self) -> str | None:
        """Path of the weights that stand; None: there are none."""
        try:
            data = self._store.get_bytes(self._pointer, MAX_RECORD)
        except ObjectMissingError:
            old = f"{self._folder}/{layout.WEIGHTS}"  # where earlier versions put them
            return old if self._store.exists(old) else None
        with contextlib.suppress(ValueError, KeyError, TypeError):
            name = json_of(data)["file"]
            if _CONTENT_NAME.fullmatch(name):
                return f"{self._folder}/{name}"
        where = f"{self._store.uri}/{self._pointer}"
        raise ArtifactError(f"{where} is damaged; delete its folder, and it is built again")

    def _read_weights(self, path: str) -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            local = Path(folder) / layout.WEIGHTS
            try:
                self._store.get_file(path, local)
            except ObjectMissingError:
                where = f"{self._store.uri}/{path}"
                raise ArtifactError(f"{where} is gone; delete its folder, and it is built again") from None
            return weights.read(local)

    def _cached_weights(self) -> dict[str, Any] | None:
        """Those in the store, on every rank or on none."""
        path = ranks.on_rank_zero(self._standing)
        return None if path is None else self._read_weights(path)

    def _write_weights(self, subject: Subject) -> None:
        """Puts the subject's weights into the store, or takes over those that stand there by now, on every rank."""
        path, ours = ranks.on_rank_zero(lambda: self._put_weights(subject))
        if not ours or not ranks.is_rank_zero():
            weights.load_strict(subject.model, self._read_weights(path), f"{self._store.uri}/{path}")

    def _put_weights(self, subject: Subject) -> tuple[str, bool]:
        """Path of the weights that stand, and whether they are the subject's."""
        with tempfile.TemporaryDirectory() as folder:
            local = Path(folder) / layout.WEIGHTS
            weights.save(subject.model, local)
            name = f"model-{hash_file(local)[0]}.safetensors"
            ours = f"{self._folder}/{name}"
            if not self._store.exists(ours):
                self._store.put_file(ours, local)
        self._store.put_if_absent(self._pointer, canonical_json({"file": name}))
        standing = self._standing() or ours
        return standing, standing == ours

    def _read_baseline(self, digest: str) -> Metrics | None:
        where = f"{self._store.uri}/{self._baseline}"
        try:
            data = self._store.get_bytes(self._baseline, MAX_RECORD)
        except ObjectMissingError:
            return None
        try:
            value = json_of(data)
            metrics = {str(name): float(number) for name, number in value["metrics"].items()}
            state = value["stateDigest"]
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ArtifactError(f"{where} is damaged; delete its folder, and it is built again") from None
        if state != digest:
            raise ArtifactError(
                f"{where} belongs to other weights than those beside it; delete its folder, and it is built again"
            )
        return metrics

    def _write_baseline(self, metrics: Metrics, digest: str) -> Metrics:
        data = canonical_json({"metrics": metrics, "stateDigest": digest, "versions": versions()})
        self._store.put_if_absent(self._baseline, data)
        return self._read_baseline(digest) or metrics


def _replace(subject: Subject, cached: dict[str, Any], entry: ModelSource) -> list[str]:
    """Loads cached weights over what the entrypoint gave; a note if that was another model than the first time."""
    before = None if entry.knows_train else weights.state_digest(subject.model)
    try:
        weights.load_strict(subject.model, cached, "the dense model in the store")
    except InvalidModelError as error:
        raise InvalidModelError(
            f"called again, {entry.name} gave another model: {error}; it must give the same one each time",
            entry.path,
        ) from error
    if before is not None and before != weights.state_digest(subject.model):
        return [
            f"called again, {entry.name} gave other weights than before; those of the first call were used "
            "(if it trains the model, let it take a keyword train, so that it is trained only once)"
        ]
    return []
