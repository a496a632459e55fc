"""Samplers by name. Each is a module of its own, loaded when a sweep asks for it."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from modelpress.api.search_space import Space
from modelpress.api.v1alpha1 import Goal

from .base import Observation, Sampler, derive

# algorithm.name -> (module, class)
SAMPLERS = {
    "random": ("modelpress.search.samplers.random", "RandomSampler"),
    "grid": ("modelpress.search.samplers.grid", "GridSampler"),
    "qmc": ("modelpress.search.samplers.qmc", "QmcSampler"),
    "tpe": ("modelpress.search.samplers.tpe", "TpeSampler"),
    "nsga2": ("modelpress.search.samplers.nsga2", "Nsga2Sampler"),
    "cmaes": ("modelpress.search.samplers.cmaes", "CmaesSampler"),
    "gp": ("modelpress.search.samplers.gp", "GpSampler"),
}


def create(name: str, space: Space, goals: Sequence[Goal], seed: int) -> Sampler:
    """The sampler of that name, bound to a space.

    Raises:
        KeyError: there is no such sampler.
        SpaceError: it cannot search this space.
    """
    module, attribute = SAMPLERS[name]
    sampler: type[Sampler] = getattr(importlib.import_module(module), attribute)
    return sampler(space, goals, seed)


__all__ = ["SAMPLERS", "Observation", "Sampler", "create", "derive"]
