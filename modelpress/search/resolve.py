"""From a template and parameters to a trial's spec."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from modelpress.api.errors import problems_of
from modelpress.api.search_space import PlacementError, Space
from modelpress.api.semantic import job_problems
from modelpress.api.v1alpha1 import CompressionJobSpec, CompressionSweepSpec
from modelpress.api.v1alpha1.base import Scalar


class RefusedError(ValueError):
    """Parameters that give no valid recipe; the message names the field, what is wrong and what to do."""


def resolve(
    spec: CompressionSweepSpec, parameters: Mapping[str, Scalar], space: Space | None = None
) -> CompressionJobSpec:
    """The template with the parameters put in, in the order of the search space, and the sweep's constraints appended.

    Parameters that are absent leave the template's value. A constraint that the template has already is not doubled.

    Args:
        space: that of the spec, where it is at hand.

    Raises:
        RefusedError: a pointer leads nowhere, or the result is no valid recipe.
    """
    try:
        doc: dict[str, Any] = dict((space or Space.of(spec)).place(parameters))
    except PlacementError as error:
        raise RefusedError(str(error)) from error
    constraints = list(doc.get("constraints", []))
    constraints += [new for item in spec.constraints or () if (new := item.to_dict()) not in constraints]
    if constraints:
        doc["constraints"] = constraints
    try:
        resolved = CompressionJobSpec.model_validate(doc)
        problems = [problem.under("spec.template") for problem in job_problems(resolved)]
    except ValidationError as error:
        problems = problems_of(error, CompressionJobSpec, root="spec.template.spec")
    if problems:
        given = ", ".join(f"{name}={value}" for name, value in parameters.items())
        raise RefusedError(f"{problems[0]} (with {given})")
    return resolved
