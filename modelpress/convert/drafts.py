"""Recipes in the making, and the documents that they become."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from modelpress.api.v1alpha1 import API_VERSION

from .notes import Book
from .spaces import Space

_MAX_NAME = 40
_TRIALS = 20


@dataclass
class Draft:
    """One recipe, or one search over recipes.

    Attributes:
        name: as the configuration has it; any text.
        model: the block `model` of the spec.
        stages: in order.
        spec: what else stands in the spec of the job, or of a sweep's template.
        space: parameters of a search.
        sweep: what else stands in the spec of a sweep; None: one recipe.
    """

    name: str
    model: dict[str, Any] = field(default_factory=dict)
    stages: list[dict[str, Any]] = field(default_factory=list)
    spec: dict[str, Any] = field(default_factory=dict)
    space: Space = field(default_factory=Space)
    sweep: dict[str, Any] | None = None

    def document(self, book: Book) -> dict[str, Any]:
        """The CompressionJob or CompressionSweep, as plain data."""
        spec: dict[str, Any] = {"model": self.model, "code": {"path": "."}, "stages": self.stages, **self.spec}
        if not self.space.parameters:
            if self.sweep is not None:
                book.say("changed", (), "nothing in it is searched, so it became a single recipe")
            return _object("CompressionJob", self.name, spec)
        sweep = dict(self.sweep or {})
        if "maxTrials" not in sweep:
            book.say("todo", (), f"how many trials there are; {_TRIALS} were taken")
        return _object(
            "CompressionSweep",
            self.name,
            {
                "template": {"spec": spec},
                "searchSpace": self.space.parameters,
                "objectives": sweep.pop("objectives", [{"metric": "default", "goal": "maximize"}]),
                "maxTrials": sweep.pop("maxTrials", _TRIALS),
                **sweep,
            },
        )


def _object(kind: str, name: str, spec: dict[str, Any]) -> dict[str, Any]:
    return {"apiVersion": API_VERSION, "kind": kind, "metadata": {"name": slug(name)}, "spec": spec}


def slug(text: str) -> str:
    """A text as the name of an object: lower-case letters, digits and '-', first a letter."""
    word = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    word = re.sub(r"^[^a-z]+", "", word)[:_MAX_NAME].strip("-")
    return word or "converted"
