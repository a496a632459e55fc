"""Inputs to measure a file with: random ones as its signature describes them, or the user's own."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from modelpress_runner.errors import first_line
from modelpress_runner.serving.errors import CallError
from modelpress_runner.serving.signature import Signature

Feed = dict[str, np.ndarray[Any, Any]]
_FREE = 8  # elements along an axis that is free and not the batch


def random_feed(signature: Signature, rows: int, seed: int) -> Feed:
    """`rows` rows, uniform between the least and the greatest element of the example inputs of the export.

    Axes that are free besides the batch get 8 elements.
    """
    generator, made = np.random.default_rng(seed), {}
    for spec in signature.inputs:
        shape = [size if isinstance(size, int) else rows if size == "batch" else _FREE for size in spec.shape]
        kind = np.dtype(spec.dtype)
        if kind == np.bool_:
            made[spec.name] = generator.random(shape) < 0.5 if spec.low < spec.high else np.full(shape, bool(spec.high))
        elif np.issubdtype(kind, np.integer):
            made[spec.name] = generator.integers(int(spec.low), int(spec.high) + 1, shape).astype(kind)
        else:
            made[spec.name] = generator.uniform(spec.low, spec.high, shape).astype(kind)
    return made


def user_rows(path: Path, signature: Signature) -> Feed:
    """The arrays of an .npz file: one for each input of the file, by its name, with as many rows.

    Raises:
        CallError: it is no such file, or its arrays are not what the model takes.
    """
    names = [spec.name for spec in signature.inputs]
    try:
        with np.load(path, allow_pickle=False) as archive:
            found = {name: archive[name] for name in archive.files}
    except (ValueError, EOFError, zipfile.BadZipFile, AttributeError) as error:
        raise CallError(
            f"{path}: is no .npz file that is read without pickles; write one with numpy.savez: arrays of numbers, "
            f"named {', '.join(names)}"
        ) from error
    except OSError as error:
        raise CallError(f"{path}: cannot be read: {error.strerror or first_line(error)}") from error
    if missing := [name for name in names if name not in found]:
        raise CallError(f"{path}: there is no array {missing[0]!r}; the model takes {', '.join(names)}")
    feed = {name: found[name] for name in names}
    lengths = {len(each) if each.ndim else 0 for each in feed.values()}
    if len(lengths) != 1 or 0 in lengths:
        raise CallError(f"{path}: its arrays must have the same number of rows, at least one, along axis 0")
    signature.check(feed)
    return feed


def batch_of(feed: Mapping[str, np.ndarray[Any, Any]], number: int, rows: int) -> Feed:
    """The `number`-th batch: rows in their order, and from the first again behind the last."""
    length = len(next(iter(feed.values())))
    which = np.arange(number * rows, (number + 1) * rows) % length
    return {name: np.ascontiguousarray(each[which]) for name, each in feed.items()}
