"""Quantizers of NNI, which Auptimizer's are, by class or key: quantize stages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from modelpress.api.v1alpha1.base import plain

from .notes import Field
from .spaces import Space

ALGORITHMS = {
    "naive": "ptq_static",
    "observer": "ptq_static",
    "ptq": "ptq_static",
    "qat": "qat",
    "dorefa": "dorefa",
    "bnn": "bnn",
    "lsq": "lsq",
    "lsqplus": "lsq",
}


def is_quantizer(name: str) -> bool:
    """Whether it is the name of a quantizer, in any spelling."""
    return plain(name.rpartition(".")[2]).removesuffix("quantizer") in ALGORITHMS


def quantize_stages(
    name: Field, entries: Sequence[Field], given: Field, space: Space, number: int
) -> list[dict[str, Any]]:
    """The stages that a quantizer becomes."""
    name.say("missing", f"{name.data}: this version has no quantize stage")
    return []
