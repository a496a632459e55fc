"""From a template and parameters to a trial's spec."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from modelpress.api import json_pointer
from modelpress.api.errors import problems_of
from modelpress.api.semantic import job_problems
from modelpress.api.v1alpha1 import CompressionJobSpec, CompressionSweepSpec
from modelpress.api.v1alpha1.base import Scalar


class RefusedError(ValueError):
    """Parameters that give no valid recipe; the message names the field, what is wrong and what to do."""


def resolve(spec: CompressionSweepSpec, parameters: Mapping[str, Scalar]) -> CompressionJobSpec:
    """The template with the parameters put in, in the order of the search space, and the sweep's constraints appended.

    Parameters that are absent leave the template's value. A constraint that the template has already is not doubled.

    Raises:
        RefusedError: a pointer leads nowhere, or the result is no valid recipe.
    """
    doc = document_of(spec, spec.template.spec.to_dict(), parameters)
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


def document_of(
    spec: CompressionSweepSpec, template: dict[str, Any], parameters: Mapping[str, Scalar]
) -> dict[str, Any]:
    """`template`, a template's spec as JSON, with the parameters put in; not validated.

    Raises:
        RefusedError: a pointer leads nowhere.
    """
    doc = template
    for position, parameter in enumerate(spec.search_space):
        if parameter.name not in parameters:
            continue
        for index, path in enumerate(parameter.paths):
            try:
                doc = json_pointer.set(doc, path, parameters[parameter.name])
            except json_pointer.PointerError as error:
                known = f"; known there: {', '.join(error.known[:20])}" if error.known else ""
                raise RefusedError(f"spec.searchSpace[{position}].paths[{index}]: {error}{known}") from error
    return doc
