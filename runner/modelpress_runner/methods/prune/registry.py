"""All pruning methods by name: the objects that the table of algorithms names."""

from __future__ import annotations

import importlib

from modelpress.api.v1alpha1.algorithms import algorithm, names
from modelpress_runner.errors import InvalidSpecError
from modelpress_runner.methods.prune.protocol import DataDrivenMethod, PruneMethod

_LOADED: dict[str, tuple[str, PruneMethod]] = {}  # name -> where it was loaded from, the method


def method(name: str) -> PruneMethod:
    """The method of this name.

    Raises:
        KeyError: the table has none of this name.
        InvalidSpecError: what its row names cannot be loaded, or is none.
    """
    place = algorithm("prune", name).place
    known = _LOADED.get(name)
    if known is None or known[0] != place:
        known = _LOADED[name] = place, _load(name, place)
    return known[1]


def methods() -> dict[str, PruneMethod]:
    """All of them, shipped ones first."""
    return {name: method(name) for name in names("prune")}


def _load(name: str, place: str) -> PruneMethod:
    module, _, attribute = place.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise InvalidSpecError(f"the pruning method {name} cannot be loaded from {place}: {error}") from error
    wanted = DataDrivenMethod if algorithm("prune", name).data_driven else PruneMethod
    if not isinstance(found, wanted) or found.name != name:
        what = f"no {wanted.__name__} called {name}"
        raise InvalidSpecError(f"{place} is {what}, which its row in the table of algorithms says it is")
    return found
