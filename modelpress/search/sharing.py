"""How many first stages several trials of a sweep are bound to have alike."""

from __future__ import annotations

import math
import re

from modelpress.api.search_space import Space
from modelpress.api.v1alpha1 import CompressionSweepSpec, Parameter

_STAGE = re.compile(r"/stages/(\d+)(?:/|$)")


def shared_stages(spec: CompressionSweepSpec, space: Space | None = None) -> int:
    """The number of first stages that have fewer forms than the sweep has trials, the last stage not among them.

    Forms are the values that parameters give to these stages and to all that lies outside of stages, the model's
    arguments for one. A continuous parameter has no end of them.

    Args:
        space: that of the spec, where it is at hand.
    """
    space = space or Space.of(spec)
    forms = {parameter.name: _forms(space, parameter) for parameter in spec.search_space}
    shared = 0
    for number in range(len(spec.template.spec.stages or ()) - 1):
        product = 1
        for parameter in spec.search_space:
            if min(map(_first_stage, parameter.paths)) <= number:
                size = forms[parameter.name]
                product = product * size if size is not None else spec.max_trials
        if product >= spec.max_trials:
            break
        shared = number + 1
    return shared


def _forms(space: Space, parameter: Parameter) -> int | None:
    sizes = [dimension.size for dimension in space.of_parameter(parameter)]
    return None if None in sizes else math.prod(size or 1 for size in sizes)


def _first_stage(path: str) -> int:
    """Of what the path changes: -1 is all of them."""
    found = _STAGE.match(path)
    return int(found[1]) if found else -1
