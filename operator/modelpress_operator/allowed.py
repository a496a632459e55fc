"""What an administrator lets the specifications of jobs and sweeps ask for in their `runner`. Pure.

Who may create a CompressionJob has the operator create pods. This is where a cluster says which: as Argo's
workflowRestrictions do for workflows. What the administrator's own defaults say is not asked about.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import Field

from modelpress.api.errors import Problem
from modelpress.api.v1alpha1 import Runner
from modelpress.api.v1alpha1.base import ApiModel

_SYSTEM = "system-"  # priority classes of what a node or cluster cannot do without
_TOKENS = ("serviceAccountToken", "podCertificate")  # what a projected volume signs in to the API server with
_NAMES = "names of which * stands for any characters"


class Allowed(ApiModel):
    """Values of the chart below runner.allowed, and keys of MODELPRESS_RUNNER_ALLOWED."""

    images: list[str] = Field(default=["*"], description=f"Images, as {_NAMES}.")
    service_account_names: list[str] = Field(default=["*"], description=f"Service accounts, as {_NAMES}.")
    priority_class_names: list[str] = Field(
        default=["*"], description=f"Priority classes, as {_NAMES}; one that begins with system- in full only."
    )
    pod_template: bool = Field(default=True, description="Whether spec.runner.podTemplate may be used.")
    node_name: bool = Field(default=False, description="Whether a podTemplate may choose the node, past the scheduler.")
    projected_tokens: bool = Field(
        default=False, description="Whether a podTemplate may mount tokens and certificates of its service account."
    )

    def problems(self, runner: Runner, path: str) -> Iterator[Problem]:
        """What `runner`, at `path`, asks for and may not have."""
        yield from self._named("image", runner.image, f"{path}.image")
        yield from self._named("service account", runner.service_account_name, f"{path}.serviceAccountName")
        yield from self._named("priority class", runner.priority_class_name, f"{path}.priorityClassName")
        if runner.pod_template is None:
            return
        template = runner.pod_template.to_dict()
        if not self.pod_template and template:
            fix = "remove it, or have podTemplate allowed in the chart's runner.allowed"
            yield Problem(f"{path}.podTemplate", "this cluster lets no job have one", fix)
            return
        yield from self._spec_problems(template.get("spec") or {}, f"{path}.podTemplate.spec")

    def _spec_problems(self, spec: Mapping[str, Any], path: str) -> Iterator[Problem]:
        yield from self._named("service account", spec.get("serviceAccountName"), f"{path}.serviceAccountName")
        yield from self._named("priority class", spec.get("priorityClassName"), f"{path}.priorityClassName")
        if spec.get("nodeName") is not None and not self.node_name:
            fix = "use nodeSelector or affinity, or have nodeName allowed in the chart's runner.allowed"
            yield Problem(f"{path}.nodeName", "this cluster lets no job choose its node past the scheduler", fix)
        for kind in ("initContainers", "containers"):
            for index, container in enumerate(_mappings(spec.get(kind))):
                yield from self._named("image", container.get("image"), f"{path}.{kind}[{index}].image")
        for index, volume in enumerate(_mappings(spec.get("volumes"))):
            where = f"{path}.volumes[{index}]"
            if isinstance(image := volume.get("image"), dict):
                yield from self._named("image", image.get("reference"), f"{where}.image.reference")
            projected = volume.get("projected")
            sources = projected.get("sources") if isinstance(projected, dict) else None
            for number, source in enumerate(_mappings(sources)):
                for token in _TOKENS:
                    if source.get(token) is not None and not self.projected_tokens:
                        text = "this cluster lets no job mount tokens or certificates of a service account"
                        fix = "remove it, or have projectedTokens allowed in the chart's runner.allowed"
                        yield Problem(f"{where}.projected.sources[{number}].{token}", text, fix)

    def _named(self, what: str, name: Any, path: str) -> Iterator[Problem]:
        if name is None:
            return
        patterns, value = {
            "image": (self.images, "images"),
            "service account": (self.service_account_names, "serviceAccountNames"),
            "priority class": (self.priority_class_names, "priorityClassNames"),
        }[what]
        plain = what != "priority class" or not str(name).startswith(_SYSTEM)
        if str(name) in patterns or (plain and any(_fits(pattern, str(name)) for pattern in patterns)):
            return
        message = f"this cluster does not let jobs have the {what} {name}"
        known = ", ".join(patterns) or "the operator's default"
        fix = f"use one of {known}, or have it added to {value} of the chart's runner.allowed"
        yield Problem(path, message, fix)


def _mappings(value: Any) -> list[dict[str, Any]]:
    return [item if isinstance(item, dict) else {} for item in value] if isinstance(value, list) else []


def _fits(pattern: str, name: str) -> bool:
    return re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), name, re.DOTALL) is not None
