"""Named metrics of a file of a runtime, over the user's rows and their labels: with numpy alone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from modelpress_runner.serving.errors import CallError
from modelpress_runner.serving.inputs import Feed, user_rows
from modelpress_runner.serving.session import Session

LABELS = "labels"  # the array beside those of the inputs
IGNORED = -100  # a label of a token that does not count
_TOP = re.compile(r"top([1-9][0-9]{0,3})")
_Array = np.ndarray[Any, Any]


def measured(session: Session, path: Path, metric: str, rows: int) -> float:
    """The metric of the first output over all rows of an .npz file.

    top1, top5, ...: the share of rows whose label is among so many greatest of the outputs (rows, classes). f1: the
    mean over classes of the harmonic mean of precision and recall. perplexity: e to the mean negative logarithm of the
    probability of each label, of outputs (rows, tokens, words), labels of -100 left out. retrieval: the share of rows
    whose nearest other row, by the cosine of the outputs, has the same label, rows whose label nothing shares left out.

    Args:
        session: an opened file.
        path: of the .npz file: an array for each input, and `labels`.
        metric: its name.
        rows: in each call.

    Raises:
        CallError: the file has no labels, or they do not fit the outputs.
    """
    feed = user_rows(path, session.signature)
    with np.load(path, allow_pickle=False) as archive:
        labels = archive[LABELS] if LABELS in archive.files else None
    length = len(next(iter(feed.values())))
    if labels is None or len(labels) != length:
        raise CallError(f"{path}: {metric} needs an array '{LABELS}' with one entry for each of the {length} rows")
    if metric == "perplexity":
        return _perplexity(session, feed, labels, rows, path)
    outputs = np.concatenate([found for found, _ in _outputs(session, feed, rows)])
    if outputs.ndim != 2 or labels.ndim != 1:
        raise CallError(
            f"{path}: {metric} is of outputs (rows, values) and one label for each row; the outputs are "
            f"{outputs.shape}, the labels {labels.shape}"
        )
    if metric == "retrieval":
        return _retrieval(outputs.astype(np.float64), labels)
    if not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0 or labels.max() >= outputs.shape[1]:
        raise CallError(f"{path}: labels must be whole numbers from 0 to {outputs.shape[1] - 1}, one for each class")
    if metric == "f1":
        return _f1(outputs.argmax(1), labels)
    top = _TOP.fullmatch(metric)
    assert top is not None
    count = min(int(top[1]), outputs.shape[1])
    best = np.argsort(-outputs, axis=1, kind="stable")[:, :count]
    return float((best == labels[:, None]).any(1).mean())


def _outputs(session: Session, feed: Feed, rows: int) -> Iterator[tuple[_Array, slice]]:
    """The first output for each part of the rows, without repeating any."""
    length = len(next(iter(feed.values())))
    for start in range(0, length, rows):
        part = slice(start, min(start + rows, length))
        yield session.run({name: np.ascontiguousarray(each[part]) for name, each in feed.items()})[0], part


def _perplexity(session: Session, feed: Feed, labels: _Array, rows: int, path: Path) -> float:
    total, count = 0.0, 0
    for logits, part in _outputs(session, feed, rows):
        wanted = labels[part]
        if logits.ndim != 3 or wanted.shape != logits.shape[:2]:
            raise CallError(
                f"{path}: perplexity is of outputs (rows, tokens, words) and a label for each token; the outputs are "
                f"{logits.shape}, the labels {wanted.shape}"
            )
        here = wanted != IGNORED
        if (wanted[here] < 0).any() or (wanted[here] >= logits.shape[2]).any():
            raise CallError(f"{path}: labels must be from 0 to {logits.shape[2] - 1}, or {IGNORED}")
        values = logits[here].astype(np.float64)
        most = values.max(1, keepdims=True)
        logs = values - most - np.log(np.exp(values - most).sum(1, keepdims=True))
        total -= float(logs[np.arange(len(logs)), wanted[here]].sum())
        count += len(logs)
    if not count:
        raise CallError(f"{path}: every label is {IGNORED}, so there is nothing to be predicted")
    return float(np.exp(total / count))


def _retrieval(outputs: _Array, labels: _Array) -> float:
    unit = outputs / np.maximum(np.linalg.norm(outputs, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    near = unit @ unit.T
    np.fill_diagonal(near, -np.inf)
    _, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    shared = counts[inverse] > 1
    if not shared.any():
        raise CallError("retrieval needs rows that share a label")
    return float((labels[near.argmax(1)] == labels)[shared].mean())


def _f1(found: _Array, labels: _Array) -> float:
    scores = []
    for kind in np.union1d(found, labels):
        both = int(((found == kind) & (labels == kind)).sum())
        scores.append(2 * both / (int((found == kind).sum()) + int((labels == kind).sum())))
    return float(np.mean(scores))
