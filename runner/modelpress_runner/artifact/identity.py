"""Digests that say whether two runs are about the same thing."""

from __future__ import annotations

import platform
from typing import Any

import torch

from modelpress._version import __version__
from modelpress.api.v1alpha1 import CompressionJobSpec


def versions() -> dict[str, str]:
    """Versions of what a run's numbers depend on."""

    return {"modelpress": __version__, "python": platform.python_version(), "torch": torch.__version__}


def checkpoint_identity(spec: CompressionJobSpec, dense: str) -> str:
    """What a checkpoint is good for: the same recipe, seed and dense model (or what makes it), and versions."""
    data = spec.to_dict()
    recipe = {key: data[key] for key in ("model", "stages", "seed")}
    return _digest({"recipe": recipe, "dense": dense, "versions": versions()})


def stages_identity(spec: CompressionJobSpec, dense: str, processes: int) -> str:
    """What the state behind a recipe's first stages depends on besides them, wherever the run writes.

    Args:
        spec: the recipe.
        dense: the dense model, and what makes it.
        processes: how many train together.
    """
    data = spec.to_dict()
    said = {key: data.get(key) for key in ("model", "data", "metrics", "target", "benchmark", "seed")}
    return _digest({"recipe": said, "dense": dense, "processes": processes, "versions": versions()})


def dense_digest(spec: CompressionJobSpec, code_digest: str, inputs_digest: str = "") -> str:
    """What a dense model and its baseline depend on: model, code, inputs, seed, versions, and the form measured."""
    return _digest(
        {
            "model": spec.model.to_dict(),
            "data": None if spec.data is None else spec.data.to_dict(),
            "code": code_digest,
            "inputs": inputs_digest,
            "seed": spec.seed,
            "target": spec.target.to_dict(),
            "versions": versions(),
        }
    )


def _digest(value: Any) -> str:
    from modelpress.store.manifest import canonical_json, digest_of

    return digest_of(canonical_json(value))
