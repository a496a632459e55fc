"""What a template cannot change in a pod: what modelpress relies on, and PodSecurity `restricted`.

Validation refuses templates that try (modelpress.api.podtemplate); this holds whatever gets past it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from modelpress.api.podtemplate import (
    CALLS,
    CONTAINER,
    FIXED_POD,
    FIXED_RUNNER,
    OWN_ENVIRONMENT,
    OWN_PREFIX,
    PROBES,
    VOLUME_KINDS,
    allowed,
    calls_of,
    is_own_folder,
    normal_path,
)


def restricted(spec: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """A merged PodSpec, with our own parts put back and everything forbidden taken out.

    Args:
        own: the PodSpec before the merge.
    """
    out = dict(spec)
    _put_back(out, own, FIXED_POD)
    context = {key: value for key, value in (spec.get("securityContext") or {}).items() if allowed(key, value)}
    out["securityContext"] = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}, **context}
    ours = own["containers"][0]
    merged = next((item for item in spec.get("containers") or () if item["name"] == CONTAINER), ours)
    out["containers"] = [_runner(merged, ours)]
    if spec.get("initContainers"):
        out["initContainers"] = [_contained(item) for item in spec["initContainers"]]
    volumes = [volume for volume in spec.get("volumes") or () if not volume["name"].startswith(OWN_PREFIX)]
    volumes = [volume for volume in volumes if volume.keys() <= {"name", *VOLUME_KINDS}]
    # Without a kind the API server makes one of these; PodSecurity sees none.
    volumes = [volume if len(volume) > 1 else {**volume, "emptyDir": {}} for volume in volumes]
    out["volumes"] = [*(volume for volume in own["volumes"] if volume["name"].startswith(OWN_PREFIX)), *volumes]
    return out


def _put_back(out: dict[str, Any], own: Mapping[str, Any], keys: Mapping[str, str]) -> None:
    for key in keys:
        out.pop(key, None)
        if key in own:
            out[key] = own[key]


def _runner(merged: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    out = _contained(merged)
    _put_back(out, own, FIXED_RUNNER)
    out["securityContext"].setdefault("readOnlyRootFilesystem", True)
    env = [item for item in merged.get("env") or () if not item["name"].startswith(OWN_ENVIRONMENT)]
    # First ours: $(VARIABLES) refer to those before them.
    out["env"] = [*(item for item in own["env"] if item["name"].startswith(OWN_ENVIRONMENT)), *env]
    sources = own.get("envFrom") or []
    if rest := [*sources, *(item for item in merged.get("envFrom") or () if item not in sources)]:
        out["envFrom"] = rest
    mounts = [item for item in own["volumeMounts"] if item["name"].startswith(OWN_PREFIX)]
    taken = {normal_path(mount["mountPath"]) for mount in mounts}
    out["volumeMounts"] = [
        *mounts,
        *(item for item in out.get("volumeMounts") or () if not _collides(normal_path(item["mountPath"]), taken)),
    ]
    return out


def _collides(place: str, taken: set[str]) -> bool:
    return place in taken or is_own_folder(place)


def _contained(container: Mapping[str, Any]) -> dict[str, Any]:
    """A container, or an init container, within PodSecurity restricted."""
    out = dict(container)
    given = container.get("securityContext") or {}
    out["securityContext"] = {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        **{key: value for key, value in given.items() if allowed(key, value)},
    }
    if ports := container.get("ports"):
        out["ports"] = [{key: value for key, value in port.items() if key != "hostPort" or not value} for port in ports]
    if mounts := container.get("volumeMounts"):
        out["volumeMounts"] = [item for item in mounts if not str(item.get("name", "")).startswith(OWN_PREFIX)]
    if any(call.get("host") for _, call in calls_of(container)):
        for key in (*PROBES, "lifecycle"):
            if key in container:
                out[key] = _without_hosts(container[key])
    return out


def _without_hosts(value: Any) -> Any:
    """A probe or a lifecycle whose calls go to the pod itself."""
    if not isinstance(value, dict):
        return value
    return {
        key: {name: part for name, part in item.items() if name != "host"}
        if key in CALLS and isinstance(item, dict)
        else _without_hosts(item)
        for key, item in value.items()
    }
