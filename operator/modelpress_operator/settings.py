"""What the operator can be told, by flags or by environment variables; flags win."""

from __future__ import annotations

import argparse
import os
import socket
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from pydantic import ValidationError

from modelpress.api.errors import problems_of
from modelpress.api.podtemplate import template_problems
from modelpress.api.v1alpha1 import PodTemplate
from modelpress.api.yaml_loader import parse

from .allowed import Allowed

LEVELS = ("debug", "info", "warning", "error")


class SettingsError(Exception):
    """A flag or variable is wrong; the text says which one and what to do."""


def _setting(default: Any, text: str, **more: Any) -> Any:
    return field(default=default, metadata={"help": text, **more})


def _names(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def _group(text: str) -> int | None:
    if text == "none":
        return None
    if not (text.isascii() and text.isdigit() and int(text) < 2**31):
        raise ValueError(f"'{text}' is no group; give its number, or none")
    return int(text)


def _pod_template(text: str) -> Mapping[str, Any] | None:
    documents, wrong = parse(text)
    if wrong:
        raise ValueError(f"is no YAML: {wrong[0]}")
    if not documents:
        return None
    if len(documents) > 1 or not isinstance(documents[0].data, dict):
        raise ValueError("is no mapping; give it the keys of spec.runner.podTemplate: metadata and spec")
    try:
        template = PodTemplate.model_validate(documents[0].data).to_dict()
    except ValidationError as error:
        raise ValueError("; ".join(str(problem) for problem in problems_of(error, PodTemplate))) from None
    if problems := [str(problem) for problem in template_problems(template, "podTemplate")]:
        raise ValueError("; ".join(problems))
    return template or None


def _allowed(text: str) -> Mapping[str, Any]:
    documents, wrong = parse(text)
    if wrong:
        raise ValueError(f"is no YAML: {wrong[0]}")
    if len(documents) != 1 or not isinstance(documents[0].data, dict):
        raise ValueError("is no mapping; give it keys of the chart's runner.allowed, such as podTemplate: false")
    try:
        return Allowed.model_validate(documents[0].data).to_dict()
    except ValidationError as error:
        raise ValueError("; ".join(str(problem) for problem in problems_of(error, Allowed))) from None


@dataclass(frozen=True)
class Settings:
    """Each field is the flag --field-name and the variable MODELPRESS_FIELD_NAME."""

    namespaces: tuple[str, ...] = _setting(
        (), "Namespaces to serve, separated by commas; none: all of the cluster.", parse=_names
    )
    kubeconfig: str | None = _setting(None, "File that says how to reach the cluster; none: the pod's service account.")
    runner_image: str = _setting("modelpress/runner:latest", "Image of runners whose spec names none.")
    runner_image_pull_policy: str | None = _setting(
        None, "imagePullPolicy of runners.", choices=("Always", "IfNotPresent", "Never")
    )
    runner_service_account: str | None = _setting(None, "Service account of runners whose spec names none.")
    runner_pod_template: Mapping[str, Any] | None = _setting(
        None,
        "What every runner's pod gets, YAML or JSON like spec.runner.podTemplate, which goes on top.",
        parse=_pod_template,
    )
    runner_allowed: Mapping[str, Any] | None = _setting(
        None,
        "What jobs may ask for in spec.runner, YAML or JSON like runner.allowed of the chart.",
        parse=_allowed,
    )
    runner_fs_group: int | None = _setting(
        65532, "Group of the files on a store's volume claim, or none.", parse=_group
    )
    runner_grace_seconds: int = _setting(120, "Time for a checkpoint between SIGTERM and SIGKILL.", least=1)
    progress_url: str | None = _setting(None, "Address that running trials report to; none: they do not.")
    progress_audience: str = _setting("modelpress-progress", "Audience of the tokens that they report with.")
    identity: str = _setting("", "Name of this replica; the same after a restart of its container only.")
    lease_name: str = _setting("modelpress-operator", "Name of the Lease that the leader holds.")
    lease_namespace: str = _setting(
        "", "Namespace of the Lease; none: of the pod, else the first served, else default."
    )
    lease_seconds: float = _setting(15.0, "How long a leader that is silent keeps the Lease.", least=1.0)
    address: str | None = _setting(
        None, "How other replicas and pods reach this one, http://host:port; told in the Lease."
    )
    host: str = _setting("", "Address to serve metrics, probes and progress on; none: all.")
    port: int = _setting(8080, "Port for metrics; 0: any free one.", least=0)
    probe_port: int = _setting(8081, "Port for probes; 0: any free one. Equal ports are one server.", least=0)
    progress_port: int = _setting(8082, "Port for progress of running trials; 0: any free one.", least=0)
    workers: int = _setting(8, "Objects reconciled at one time.", least=1)
    watch_silence_seconds: float = _setting(
        300.0, "Silence of a watch after which the process is not alive.", least=1.0
    )
    lost_pod_seconds: float = _setting(
        120.0, "How long a pod may outstay its end before it counts as lost with its node.", least=1.0
    )
    log_level: str = _setting("info", "Least severe level to log.", choices=LEVELS)

    @property
    def cluster_wide(self) -> bool:
        return not self.namespaces


def load_settings(arguments: Sequence[str] | None = None, environ: Mapping[str, str] | None = None) -> Settings:
    """Settings from command-line arguments and the environment.

    Raises:
        SettingsError: a variable or flag has an unusable value.
        SystemExit: --help, or an unknown flag.
    """
    environ = os.environ if environ is None else environ
    parser = argparse.ArgumentParser(prog="python -m modelpress_operator", description="The modelpress operator.")
    for item in fields(Settings):
        flag = f"--{item.name.replace('_', '-')}"
        text = f"{item.metadata['help']} ({_variable(item.name)}; default: {_shown(item.default)})"
        parser.add_argument(flag, dest=item.name, metavar="VALUE", help=text)
    given = {name: value for name, value in vars(parser.parse_args(arguments)).items() if value is not None}
    values: dict[str, Any] = {}
    for item in fields(Settings):
        variable = _variable(item.name)
        if item.name in given:
            values[item.name] = _parsed(item, given[item.name], f"--{item.name.replace('_', '-')}")
        elif environ.get(variable):
            values[item.name] = _parsed(item, environ[variable], variable)
    values.setdefault("identity", f"{socket.gethostname()}_{uuid.uuid4().hex[:12]}")
    if not values.get("lease_namespace"):
        served = values.get("namespaces") or ("default",)
        values["lease_namespace"] = environ.get("POD_NAMESPACE") or served[0]
    return Settings(**values)


def _variable(name: str) -> str:
    return f"MODELPRESS_{name.upper()}"


def _shown(default: Any) -> str:
    return "none" if default in (None, "", ()) else str(default)


def _parsed(item: Any, text: str, where: str) -> Any:
    text = text.strip()
    choices, least = item.metadata.get("choices"), item.metadata.get("least")
    parsing: Callable[[str], Any] | None = item.metadata.get("parse")
    if parsing is not None:
        try:
            return parsing(text)
        except ValueError as error:
            raise SettingsError(f"{where}: {error}") from None
    if choices is not None and text not in choices:
        raise SettingsError(f"{where}: '{text}' is not known; use one of {', '.join(choices)}")
    if least is None:
        return text
    number = int if isinstance(item.default, int) else float
    try:
        value = number(text)
    except ValueError:
        kind = "a whole number" if number is int else "a number"
        raise SettingsError(f"{where}: '{text}' is not {kind}; give {kind} of at least {least:g}") from None
    if not least <= value <= 1e9:
        raise SettingsError(f"{where}: {text} is out of range; give at least {least:g}")
    return value
