"""Strategic merge of pod templates, as the API server and `kubectl patch --type=strategic` do it.

https://github.com/kubernetes/community/blob/master/contributors/devel/sig-api-machinery/strategic-merge-patch.md.
Lists of a PodSpec that have a patchMergeKey in k8s.io/api/core/v1 are merged by it; every other list is replaced.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_DIRECTIVE = "$patch"

_CONTAINER_LISTS = {"env": "name", "ports": "containerPort", "volumeMounts": "mountPath", "volumeDevices": "devicePath"}
_CONTAINERS = ("containers", "initContainers", "ephemeralContainers")

# Path of a list within a PodSpec, without indices -> the key that its entries are merged by.
MERGE_KEYS: Mapping[tuple[str, ...], str] = {
    ("volumes",): "name",
    ("imagePullSecrets",): "name",
    ("resourceClaims",): "name",
    ("schedulingGates",): "name",
    ("hostAliases",): "ip",
    ("topologySpreadConstraints",): "topologyKey",
    **{(container,): "name" for container in _CONTAINERS},
    **{(container, field): key for container in _CONTAINERS for field, key in _CONTAINER_LISTS.items()},
}
# Entries that are unions: of what was there only the keys that the patch names remain (patchStrategy retainKeys).
_UNIONS = frozenset({("volumes",), ("resourceClaims",)})


def merge_pod_spec(base: Mapping[str, Any], patch: Mapping[str, Any]) -> dict[str, Any]:
    """A PodSpec with a patch on top; neither argument is changed.

    A null removes a key. `$patch: replace` in a mapping, or as an entry of its own in a list, replaces what was there;
    `$patch: delete` removes the mapping, or the list's entry of that key.
    """
    return _mapping(base, patch, ())


def _mapping(base: Mapping[str, Any], patch: Mapping[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    directive = patch.get(_DIRECTIVE)
    if directive == "delete":
        return {}
    out = {} if directive == "replace" else dict(base)
    for key, value in patch.items():
        if key == _DIRECTIVE:
            continue
        if value is None or (isinstance(value, dict) and value.get(_DIRECTIVE) == "delete"):
            out.pop(key, None)
        else:
            out[key] = _value(out.get(key), value, (*path, key))
    return out


def _value(base: Any, patch: Any, path: tuple[str, ...]) -> Any:
    if isinstance(patch, Mapping):
        return _mapping(base if isinstance(base, Mapping) else {}, patch, path)
    if isinstance(patch, list):
        key = MERGE_KEYS.get(path)
        if key is None:
            return [_plain(item) for item in patch]
        return _list(base if isinstance(base, list) else [], patch, key, path)
    return patch


def _list(base: Sequence[Any], patch: Sequence[Any], key: str, path: tuple[str, ...]) -> list[Any]:
    """Entries keep their place; new ones come last, in the patch's order."""
    replace = any(item.get(_DIRECTIVE) == "replace" and key not in item for item in patch)
    out = [] if replace else [dict(item) for item in base]
    for item in patch:
        if key not in item:
            continue  # the directive itself
        index = next((place for place, old in enumerate(out) if old.get(key) == item[key]), None)
        if item.get(_DIRECTIVE) == "delete":
            if index is not None:
                del out[index]
            continue
        old = {} if index is None else out[index]
        if path in _UNIONS:
            old = {name: value for name, value in old.items() if name in item}
        new = _mapping(old, item, path)
        if index is None:
            out.append(new)
        else:
            out[index] = new
    return out


def _plain(value: Any) -> Any:
    """A value that is there as a whole: nulls and directives in it have nothing to act on."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items() if key != _DIRECTIVE and item is not None}
    return [_plain(item) for item in value] if isinstance(value, list) else value
