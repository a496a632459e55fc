"""YAML of Neural Compressor 1.x whose keys stand beside the key that they belong under, as in its documents."""

from __future__ import annotations

from typing import Any

from modelpress.api.errors import Location
from modelpress.convert.notes import Book, Field, Note

# What belongs under a key; where the key has no value, and these stand beside it, they are meant to be its value.
_BELOW: dict[str, tuple[str, ...]] = {
    "model": ("name", "framework", "inputs", "outputs"),
    "quantization": ("approach", "calibration", "model_wise", "op_wise"),
    "distillation": ("train",),
    "evaluation": ("accuracy", "performance"),
    "accuracy": ("metric",),
    "train": ("start_epoch", "end_epoch", "iteration", "criterion", "optimizer"),
    "criterion": (
        "KnowledgeDistillationLoss",
        "IntermediateLayersKnowledgeDistillationLoss",
        "SelfKnowledgeDistillationLoss",
        "CrossEntropyLoss",
    ),
    "optimizer": ("SGD", "Adam", "AdamW"),
    "metric": ("topk", "map", "f1"),
    "dataloader": ("batch_size", "dataset", "transform"),
    "mixed_precision": ("precisions",),
    "tuning": ("accuracy_criterion", "exit_policy", "random_seed", "strategy"),
}


def nested(top: Field) -> Field:
    """The configuration with misplaced keys where they belong, and a note for each key that got them."""
    if not isinstance(top.data, dict):
        return top
    lines = dict(top.book.lines)
    data = _nested(top.data, (), (), top.book, lines)
    top.book.lines = lines
    return Field(data, top.book)


def _nested(value: Any, old: Location, new: Location, book: Book, lines: dict[Location, int]) -> Any:
    if isinstance(value, list):
        return [_nested(item, (*old, index), (*new, index), book, lines) for index, item in enumerate(value)]
    if not isinstance(value, dict):
        return value
    out: dict[str, Any] = {}
    moved: set[str] = set()
    for key, item in value.items():
        if key in moved:
            continue
        line = book.line_of((*old, key))
        if line is not None:
            lines[(*new, key)] = line
        below = [name for name in _BELOW.get(key, ()) if name in value and name not in out]
        if item is None and below:
            held = {name: value[name] for name in below}
            moved |= set(below)
            out[key] = _nested(held, old, (*new, key), book, lines)
            book.notes.append(_said(key, below, line))
        else:
            out[key] = _nested(item, (*old, key), (*new, key), book, lines)
    return out


def _said(key: str, below: list[str], line: int | None) -> Note:
    return Note("mended", key, f"{', '.join(below)} stood beside it, and belong under it", line)
