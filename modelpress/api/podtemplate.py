"""What a podTemplate may not say: what modelpress sets itself, and what PodSecurity `restricted` forbids.

The names of modelpress's own parts of a pod are here too, so that the operator builds what is checked here. Security
is that of https://kubernetes.io/docs/concepts/security/pod-security-standards (restricted, which includes baseline).
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping
from typing import Any

from .errors import Problem
from .messages import describe, keys_in_words

CONTAINER = "runner"
OWN_PREFIX = "modelpress-"  # of volumes that modelpress mounts
OWN_ENVIRONMENT = ("MODELPRESS_", "PET_")
# In images /var/run is a link to /run.
OWN_FOLDERS = (
    *("/etc/modelpress", "/workspace/code", "/var/run/secrets/modelpress.dev", "/run/secrets/modelpress.dev"),
)
OWN_DOMAIN = "modelpress.dev/"  # of labels and annotations
APPARMOR = "container.apparmor.security.beta.kubernetes.io/"  # annotations that still choose a container's profile
# What the kubelet calls of a container, from the node's network.
PROBES = ("livenessProbe", "readinessProbe", "startupProbe")
HOOKS = ("postStart", "preStop")
CALLS = ("httpGet", "tcpSocket")

# Kinds of volumes that `restricted` allows.
VOLUME_KINDS = (
    *("configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "image", "persistentVolumeClaim", "projected"),
    "secret",
)
_OWN = "modelpress sets it"
# Of the pod: key -> why it cannot be given.
FIXED_POD = {
    "restartPolicy": f"{_OWN}: an attempt is one pod that runs once",
    "activeDeadlineSeconds": f"{_OWN}: spec.activeDeadlineSeconds counts running time",
    "subdomain": _OWN,
    "hostname": _OWN,
    "serviceAccount": "it is an old name of runner.serviceAccountName",
    "automountServiceAccountToken": "no runner talks to the API server",
    "ephemeralContainers": "a pod cannot begin with them",
    "hostNetwork": "PodSecurity restricted forbids it",
    "hostPID": "PodSecurity restricted forbids it",
    "hostIPC": "PodSecurity restricted forbids it",
}
# Of the container `runner`.
FIXED_RUNNER = {
    "command": f"{_OWN}; user code comes from spec.code or the image",
    "args": f"{_OWN}; user code comes from spec.code or the image",
    "terminationMessagePath": f"{_OWN}: results are read there",
    "terminationMessagePolicy": f"{_OWN}: results are read there",
    "restartPolicy": f"{_OWN}: an attempt is one pod that runs once",
    "stdin": "a runner reads no input",
    "tty": "a runner reads no input",
    "$patch": "the container cannot be replaced or removed",
}
_DIRECTIVES = ("$setElementOrder/", "$deleteFromPrimitiveList/", "$retainKeys")
_REMOVE = "remove it"


def template_problems(template: Mapping[str, Any], path: str) -> Iterator[Problem]:
    """Problems of a podTemplate, as plain data; empty: what is rendered has every word of it."""
    metadata = template.get("metadata") or {}
    for kind, why_not in (("labels", label_problem), ("annotations", annotation_problem)):
        for key, value in (metadata.get(kind) or {}).items():
            if (said := why_not(key, value)) is not None:
                yield Problem(f"{path}.metadata.{kind}.{key}", *said)
    spec = template.get("spec") or {}
    where = f"{path}.spec"
    if shapes := list(_shape_problems(spec, where)):
        yield from shapes
        return
    yield from _directive_problems(spec, where)
    for key, why in FIXED_POD.items():
        if key in spec and not (key.startswith("host") and spec[key] is False):
            yield Problem(f"{where}.{key}", f"cannot be given: {why}", _REMOVE)
    yield from _security_problems(spec.get("securityContext"), f"{where}.securityContext")
    for kind in ("initContainers", "containers"):
        for index, container in enumerate(spec.get(kind) or []):
            yield from _container_problems(container, f"{where}.{kind}[{index}]", kind)
    for index, volume in enumerate(spec.get("volumes") or []):
        yield from _volume_problems(volume, f"{where}.volumes[{index}]")


def label_problem(key: str, value: str) -> tuple[str, str] | None:
    """Why a pod cannot have this label, and what to do; None if it can."""
    if key.startswith(OWN_DOMAIN) or key == "app.kubernetes.io/managed-by":
        return _OWN, "choose another domain"
    if key.startswith("batch.kubernetes.io/") or key in ("job-name", "controller-uid"):
        return "Kubernetes sets it: pods of a Job are found by it", _REMOVE
    if key == "app.kubernetes.io/component" and value in ("operator", "test"):
        return "the operator's Service finds its own pods by it", "choose another value"
    return None


def annotation_problem(key: str, value: str) -> tuple[str, str] | None:
    """Why a pod cannot have this annotation, and what to do; None if it can."""
    if key.startswith(OWN_DOMAIN):
        return _OWN, "choose another domain"
    if key.startswith(APPARMOR) and not (value in ("", "runtime/default") or value.startswith("localhost/")):
        return f"PodSecurity restricted forbids the AppArmor profile {value}", "write runtime/default, or remove it"
    return None


def normal_path(path: Any) -> str:
    """Where a mountPath is, as the kubelet takes it: absolute, without '.', '..' and doubled slashes."""
    return posixpath.normpath("/" + str(path).lstrip("/"))


def is_own_folder(place: str) -> bool:
    """Whether a normal path is one of modelpress's own folders, or below one."""
    return any(place == folder or place.startswith(f"{folder}/") for folder in OWN_FOLDERS)


def _shape_problems(spec: Mapping[str, Any], path: str) -> Iterator[Problem]:
    """Lists that are none, and entries without the name by which they are merged."""
    for kind in ("initContainers", "containers", "volumes"):
        entries = spec.get(kind) or []
        if not isinstance(entries, list):
            yield Problem(f"{path}.{kind}", f"must be a list, found {describe(entries)}", "begin each entry with '- '")
            continue
        for index, entry in enumerate(entries):
            if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
                fix = f"add name, {CONTAINER} being modelpress's own" if kind == "containers" else "add name"
                yield Problem(f"{path}.{kind}[{index}]", "needs a name, by which it is merged", fix)
                continue
            for key, mark in (("env", "name"), ("volumeMounts", "mountPath"), ("ports", "containerPort")):
                yield from _list_problems(entry.get(key), f"{path}.{kind}[{index}].{key}", mark)
            context = entry.get("securityContext")
            if context is not None and not isinstance(context, dict):
                where = f"{path}.{kind}[{index}].securityContext"
                yield Problem(where, f"must be a mapping, found {describe(context)}", "write keys with values below it")
    context = spec.get("securityContext")
    if context is not None and not isinstance(context, dict):
        message = f"must be a mapping, found {describe(context)}"
        yield Problem(f"{path}.securityContext", message, "write keys with values below it")


def _list_problems(entries: Any, path: str, mark: str) -> Iterator[Problem]:
    if entries is None:
        return
    if not isinstance(entries, list):
        yield Problem(path, f"must be a list, found {describe(entries)}", "begin each entry with '- '")
        return
    for index, entry in enumerate(entries):
        if not isinstance(entry, dict) or mark not in entry:
            yield Problem(f"{path}[{index}]", f"needs {mark}, by which it is merged", f"add {mark}")


def _directive_problems(value: Any, path: str) -> Iterator[Problem]:
    """Directives of strategic merge that only clients write who know what is there already."""
    if isinstance(value, dict):
        for key, item in value.items():
            where = f"{path}.{key}"
            if key.startswith(_DIRECTIVES):
                yield Problem(
                    where, "is no directive that podTemplate knows", "use '$patch: replace' or '$patch: delete'"
                )
            elif key == "$patch" and item not in ("replace", "delete", "merge"):
                yield Problem(where, f"must be replace, delete or merge, found {describe(item)}", "write one of them")
            elif key == "$patch" and path.endswith(".podTemplate.spec") and item != "merge":
                yield Problem(where, "a pod cannot be replaced or removed as a whole", _REMOVE)
            else:
                yield from _directive_problems(item, where)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _directive_problems(item, f"{path}[{index}]")


def _container_problems(container: Mapping[str, Any], path: str, kind: str) -> Iterator[Problem]:
    own = kind == "containers" and container["name"] == CONTAINER
    if own:
        for key, why in FIXED_RUNNER.items():
            if key in container:
                yield Problem(f"{path}.{key}", f"cannot be given: {why}", _REMOVE)
    elif container["name"] == CONTAINER:
        message = f"{CONTAINER} is the name of modelpress's own container"
        yield Problem(f"{path}.name", message, "choose another name")
    elif kind == "containers" and container.get("$patch") != "delete":
        message = f"'{container['name']}' would have to end by itself before the pod can"
        fix = f"write it into initContainers with 'restartPolicy: Always', or name the container {CONTAINER}"
        yield Problem(path, message, fix)
    for index, variable in enumerate(container.get("env") or []):
        name = str(variable["name"])
        if own and name.startswith(OWN_ENVIRONMENT):
            yield Problem(f"{path}.env[{index}]", f"{name} cannot be given: {_OWN}", _REMOVE)
    for index, mount in enumerate(container.get("volumeMounts") or []):
        where, place = f"{path}.volumeMounts[{index}]", normal_path(mount["mountPath"])
        if own and is_own_folder(place):
            yield Problem(where, f"{place} cannot be mounted: {_OWN}", "choose another path")
        elif str(mount.get("name", "")).startswith(OWN_PREFIX):
            message = f"{mount['name']} is a volume of modelpress's own"
            yield Problem(f"{where}.name", message, "mount a volume of the template")
    for kind_of_call, call in calls_of(container):
        if call.get("host"):
            message = "PodSecurity restricted forbids calls of the kubelet to another host"
            yield Problem(f"{path}.{kind_of_call}.host", message, _REMOVE)
    for index, port in enumerate(container.get("ports") or []):
        if port.get("hostPort"):
            message = "PodSecurity restricted forbids ports of the node"
            yield Problem(f"{path}.ports[{index}].hostPort", message, _REMOVE)
    yield from _security_problems(container.get("securityContext"), f"{path}.securityContext")


def calls_of(container: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The kubelet's calls to a container, in probes and hooks, each with its path: livenessProbe.httpGet."""
    hooks = container.get("lifecycle")
    handlers: dict[str, Any] = {name: container.get(name) for name in PROBES}
    if isinstance(hooks, dict):
        handlers |= {f"lifecycle.{name}": hooks.get(name) for name in HOOKS}
    for place, handler in handlers.items():
        for kind in CALLS if isinstance(handler, dict) else ():
            if isinstance(call := handler.get(kind), dict):
                yield f"{place}.{kind}", call


def _security_problems(context: Mapping[str, Any] | None, path: str) -> Iterator[Problem]:
    for key, value in (context or {}).items():
        if not allowed(key, value):
            message = f"PodSecurity restricted forbids {describe(value).removeprefix('the text ')} here"
            yield Problem(f"{path}.{key}", message, _REMOVE)


def allowed(key: str, value: Any) -> bool:
    """Whether one setting of a securityContext, of a pod or a container, stays within PodSecurity `restricted`."""
    if key in ("privileged", "allowPrivilegeEscalation"):
        return bool(value is False)
    if key == "runAsNonRoot":
        return bool(value is True)
    if key == "runAsUser":
        return bool(value != 0)
    if key in ("seccompProfile", "appArmorProfile"):
        return isinstance(value, dict) and value.get("type") in ("RuntimeDefault", "Localhost")
    if key == "capabilities":
        return isinstance(value, dict) and set(value) <= {"drop"} and "ALL" in (value.get("drop") or [])
    if key == "procMount":
        return bool(value == "Default")
    if key == "seLinuxOptions":
        types = ("", "container_t", "container_init_t", "container_kvm_t", "container_engine_t")
        return isinstance(value, dict) and value.get("type", "") in types and not {"user", "role"} & set(value)
    return key not in ("sysctls", "windowsOptions")


def _volume_problems(volume: Mapping[str, Any], path: str) -> Iterator[Problem]:
    if volume["name"].startswith(OWN_PREFIX):
        yield Problem(f"{path}.name", f"names that begin with {OWN_PREFIX} are modelpress's own", "choose another name")
    if volume.get("$patch") != "delete" and not any(volume.get(kind) is not None for kind in VOLUME_KINDS):
        yield Problem(path, "names no kind of volume", f"add one of {keys_in_words(VOLUME_KINDS)}")
    for kind in volume:
        if kind not in VOLUME_KINDS and kind not in ("name", "$patch"):
            message = f"PodSecurity restricted forbids volumes of the kind {kind}"
            yield Problem(f"{path}.{kind}", message, f"use one of {keys_in_words(VOLUME_KINDS)}")
