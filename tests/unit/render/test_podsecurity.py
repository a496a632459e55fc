"""Rendered pods before Kubernetes' own judge: the PodSecurity library, level restricted, its newest minor version."""

from __future__ import annotations

import json
import random
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from render_cases import CASES, Case, job

from modelpress.api.podtemplate import template_problems

ROOT = Path(__file__).resolve().parents[3]
Judge = Callable[[list[dict[str, Any]]], list[dict[str, Any]]]
TEMPLATES = 4000


@pytest.fixture(scope="module")
def judge() -> Iterator[Judge]:
    """Verdicts on pods: {"allowed": True}, or False with reason and detail."""
    built = subprocess.run([str(ROOT / "tools" / "cluster" / "podsecurity.sh")], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr

    def ask(pods: list[dict[str, Any]]) -> list[dict[str, Any]]:
        lines = "".join(f"{json.dumps(pod)}\n" for pod in pods)
        done = subprocess.run([built.stdout.strip()], input=lines, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    return ask


def pod_of(body: dict[str, Any]) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Pod", **body["spec"]["template"]}


def rendered(template: dict[str, Any]) -> dict[str, Any]:
    return pod_of(Case(job(runner={"podTemplate": template})).render()[-1])


def test_every_case_is_allowed(judge: Judge) -> None:
    """Whatever users can ask for is a pod that restricted admits."""
    assert judge([pod_of(case.render()[-1]) for case in CASES.values()]) == [{"allowed": True}] * len(CASES)


CALL = {"host": "169.254.169.254", "port": 80}
WITH_HOST = [
    {place: {kind: CALL}}
    for place in ("livenessProbe", "readinessProbe", "startupProbe")
    for kind in ("httpGet", "tcpSocket")
] + [{"lifecycle": {hook: {kind: CALL}}} for hook in ("postStart", "preStop") for kind in ("httpGet", "tcpSocket")]
FORBIDDEN: list[dict[str, Any]] = [
    {"metadata": {"annotations": {"container.apparmor.security.beta.kubernetes.io/runner": "unconfined"}}},
    *({"spec": {"containers": [{"name": "runner", **part}]}} for part in WITH_HOST),
    *({"spec": {"initContainers": [{"name": "a", "image": "a", **part}]}} for part in WITH_HOST),
    {"spec": {"volumes": [{"name": "a"}]}},
]


@pytest.mark.parametrize("template", FORBIDDEN, ids=json.dumps)
def test_what_restricted_forbids_is_refused_and_stripped(judge: Judge, template: dict[str, Any]) -> None:
    """As written it is forbidden; validation says so, and what gets past validation is taken out."""
    plain = rendered({})
    there = {**plain["metadata"]["annotations"], **template.get("metadata", {}).get("annotations", {})}
    spec = dict(plain["spec"])
    for kind, entries in template.get("spec", {}).items():
        spec[kind] = [*spec.get(kind, []), *({"name": "x", **entry, "image": "x"} for entry in entries)]
        if kind == "volumes":
            spec[kind] = [*plain["spec"]["volumes"], *entries]
    before, after = judge([{**plain, "metadata": {"annotations": there}, "spec": spec}, rendered(template)])
    assert before["allowed"] is False
    assert len(list(template_problems(template, "t"))) == 1
    assert after == {"allowed": True}


class Generator:
    """Random podTemplates of valid types, made of what the security standard speaks of."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)

    def some(self, **parts: Callable[[], Any]) -> dict[str, Any]:
        """A few of the parts."""
        return {key: make() for key, make in parts.items() if self.chance.random() < 0.12}

    def one(self, *values: Any) -> Callable[[], Any]:
        return lambda: self.chance.choice(values)

    def template(self) -> dict[str, Any]:
        profile = self.one({"type": "RuntimeDefault"}, {"type": "Unconfined"}, {"type": "Localhost"}, {"type": ""}, {})
        shared: dict[str, Callable[[], Any]] = {
            "runAsNonRoot": self.one(True, False),
            "runAsUser": self.one(0, 1, 1000),
            "seccompProfile": profile,
            "appArmorProfile": profile,
            "seLinuxOptions": self.one({"type": "container_t"}, {"type": "spc_t"}, {"user": "a"}, {"role": "b"}, {}),
            "windowsOptions": self.one({"hostProcess": True}, {"hostProcess": False}, {}),
        }
        own: dict[str, Callable[[], Any]] = {
            "privileged": self.one(True, False),
            "allowPrivilegeEscalation": self.one(True, False),
            "capabilities": self.one(
                *({"drop": ["ALL"]}, {"drop": ["KILL"]}, {"add": ["NET_BIND_SERVICE"], "drop": ["ALL"]}),
                *({"add": ["SYS_ADMIN"]}, {"drop": []}, {"add": [], "drop": ["ALL"]}, {}),
            ),
            "procMount": self.one("Default", "Unmasked", ""),
            "readOnlyRootFilesystem": self.one(True, False),
        }

        def call() -> dict[str, Any]:
            kind = self.chance.choice(["httpGet", "tcpSocket"])
            return {kind: {"port": 80, **self.some(host=self.one("", "127.0.0.1", "localhost"))}}

        def container(name: str) -> dict[str, Any]:
            return {
                "name": name,
                **self.some(
                    securityContext=lambda: self.some(**shared, **own),
                    livenessProbe=call,
                    readinessProbe=call,
                    startupProbe=call,
                    lifecycle=lambda: {"preStop": call(), "postStart": call()},
                    ports=lambda: [{"containerPort": 80, **self.some(hostPort=self.one(0, 80), hostIP=self.one("::"))}],
                    stdin=self.one(True, False),
                ),
            }

        volume = self.one(
            *({"emptyDir": {}}, {"hostPath": {"path": "/"}}, {"secret": {"secretName": "a"}}, {}),
            *({"nfs": {"server": "a", "path": "/"}}, {"image": {"reference": "a"}}, {"csi": {"driver": "a"}}),
            *({"hostPath": {"path": "/"}, "emptyDir": {}}, {"emptyDir": None}, {"iscsi": None, "configMap": {}}),
            {"projected": {"sources": []}},
        )
        sysctl = self.one("kernel.shm_rmid_forced", "kernel.msgmax", "net.ipv4.tcp_syncookies")
        prefix = "container.apparmor.security.beta.kubernetes.io/"
        spec = self.some(
            securityContext=lambda: self.some(
                **shared, sysctls=lambda: [{"name": sysctl(), "value": "1"}], fsGroup=self.one(0, 5)
            ),
            hostNetwork=self.one(True, False),
            hostPID=self.one(True, False),
            hostIPC=self.one(True, False),
            hostUsers=self.one(True, False),
            shareProcessNamespace=self.one(True, False),
            os=self.one({"name": "linux"}, {"name": "windows"}),
            automountServiceAccountToken=self.one(True, False),
        )
        spec["containers"] = [container("runner")]
        spec["initContainers"] = [container(f"init-{number}") for number in range(self.chance.randint(0, 1))]
        spec["volumes"] = [{"name": f"v{number}", **volume()} for number in range(self.chance.randint(0, 1))]
        annotations = self.some(
            **{
                f"{prefix}{name}": self.one("unconfined", "runtime/default", "localhost/a", "")
                for name in ("a", "runner")
            },
            **{"seccomp.security.alpha.kubernetes.io/pod": self.one("unconfined", "runtime/default")},
        )
        return {"metadata": {"annotations": annotations}, "spec": spec}


def test_no_random_template_makes_a_forbidden_pod(judge: Judge) -> None:
    """Of thousands none passes validation and is forbidden; and none is forbidden even unvalidated."""
    make = Generator(20261128)
    templates = [make.template() for _ in range(TEMPLATES)]
    verdicts = judge([rendered(template) for template in templates])
    assert len(verdicts) == TEMPLATES
    wrong = [
        (template, verdict)
        for template, verdict in zip(templates, verdicts, strict=True)
        if verdict != {"allowed": True}
    ]
    assert wrong[:3] == []
    passed = sum(not list(template_problems(template, "t")) for template in templates)
    assert passed > TEMPLATES // 20  # the generator has both kinds
    assert passed < TEMPLATES // 2


def test_a_template_without_problems_is_in_the_pod_whole(judge: Judge) -> None:
    """What validation lets pass is not taken out behind the user's back: as written, it is allowed too."""
    make = Generator(1128)
    fine = [each for each in (make.template() for _ in range(TEMPLATES)) if not list(template_problems(each, "t"))]
    for template in fine:
        pod = rendered(template)
        runner, given = pod["spec"]["containers"][0], template["spec"]["containers"][0]
        for key in given.keys() - {"name", "securityContext"}:
            assert runner[key] == given[key]
        assert given.get("securityContext", {}).items() <= runner["securityContext"].items()
        assert template["spec"].get("securityContext", {}).items() <= pod["spec"]["securityContext"].items()
        assert template["metadata"]["annotations"].items() <= pod["metadata"]["annotations"].items()
