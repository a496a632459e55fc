"""Kinds of stages: what runs a block of `stages` in YAML, found by its name."""

from __future__ import annotations

import importlib
from typing import Any

from modelpress.api.stages import rules
from modelpress_runner.stages.base import StageKind


def kind(name: str) -> StageKind[Any]:
    """What runs the stages whose block is called `name`; KeyError if there is no such kind."""
    module, _, attribute = rules(name).runner.partition(":")
    found = getattr(importlib.import_module(module), attribute)
    assert isinstance(found, StageKind)
    return found
