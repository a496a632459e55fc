"""What an administrator lets specifications ask for: the rest is refused with its field and what to do."""

from __future__ import annotations

from typing import Any

import pytest
from render_cases import Case, job, sweep

from modelpress.api.podtemplate import template_problems
from modelpress_operator.allowed import Allowed
from modelpress_operator.render import RenderError, RenderSettings

IMAGE = "registry.example.com/modelpress/runner:1.0"


def refusals(runner: dict[str, Any], **allowed: Any) -> str:
    """What rendering a job with this runner is refused for; empty: it is rendered."""
    settings = RenderSettings(image=IMAGE, allowed=Allowed.model_validate(allowed))
    try:
        Case(job(runner=runner), settings=settings).render()
    except RenderError as error:
        return str(error)
    return ""


def template(**spec: Any) -> dict[str, Any]:
    return {"podTemplate": {"spec": spec}}


def token(**source: Any) -> dict[str, Any]:
    return template(volumes=[{"name": "t", "projected": {"sources": [{"configMap": {"name": "a"}}, source]}}])


API_TOKEN = token(serviceAccountToken={"path": "t"})
NODE = template(nodeName="node-1")
DEFAULT: dict[str, Any] = {}


@pytest.mark.parametrize(
    ("runner", "allowed", "where"),
    [
        (API_TOKEN, DEFAULT, "podTemplate.spec.volumes[0].projected.sources[1].serviceAccountToken"),
        (
            token(podCertificate={"signerName": "a/b", "keyType": "ED25519"}),
            DEFAULT,
            "podTemplate.spec.volumes[0].projected.sources[1].podCertificate",
        ),
        (NODE, DEFAULT, "podTemplate.spec.nodeName"),
        ({"priorityClassName": "system-node-critical"}, DEFAULT, "priorityClassName"),
        (template(priorityClassName="system-cluster-critical"), DEFAULT, "podTemplate.spec.priorityClassName"),
        ({"priorityClassName": "high"}, {"priorityClassNames": ["low", "batch-*"]}, "priorityClassName"),
        ({"serviceAccountName": "admin"}, {"serviceAccountNames": ["trainer"]}, "serviceAccountName"),
        (
            template(serviceAccountName="admin"),
            {"serviceAccountNames": ["trainer"]},
            "podTemplate.spec.serviceAccountName",
        ),
        ({"image": "registry.example.evil/a:1"}, {"images": ["registry.example/*"]}, "image"),
        (
            template(containers=[{"name": "runner", "image": "other/a:1"}]),
            {"images": ["registry.example/*"]},
            "podTemplate.spec.containers[0].image",
        ),
        (
            template(initContainers=[{"name": "a", "image": "registry.example/a:1"}, {"name": "b", "image": "b"}]),
            {"images": ["registry.example/*"]},
            "podTemplate.spec.initContainers[1].image",
        ),
        (
            template(volumes=[{"name": "t", "image": {"reference": "other:1"}}]),
            {"images": []},
            "podTemplate.spec.volumes[0].image.reference",
        ),
        (template(hostUsers=False), {"podTemplate": False}, "podTemplate"),
        ({"podTemplate": {"metadata": {"labels": {"a": "b"}}}}, {"podTemplate": False}, "podTemplate"),
    ],
)
def test_what_is_not_allowed_is_refused(runner: dict[str, Any], allowed: dict[str, Any], where: str) -> None:
    """No word of it is wrong in itself; the field is named, and the value of the chart that would allow it."""
    if "podTemplate" in runner:
        assert list(template_problems(runner["podTemplate"], "t")) == []
    said = refusals(runner, **allowed)
    assert said.startswith(f"spec.runner.{where}: this cluster ")
    assert "of the chart's runner.allowed" in said or "in the chart's runner.allowed" in said


@pytest.mark.parametrize(
    ("runner", "allowed"),
    [
        (API_TOKEN, {"projectedTokens": True}),
        (NODE, {"nodeName": True}),
        ({"priorityClassName": "system-node-critical"}, {"priorityClassNames": ["system-node-critical"]}),
        ({"priorityClassName": "batch-low"}, {"priorityClassNames": ["low", "batch-*"]}),
        ({"serviceAccountName": "trainer"}, {"serviceAccountNames": ["trainer"]}),
        ({"image": "registry.example/team/a@sha256:" + "0" * 64}, {"images": ["registry.example/*"]}),
        ({}, {"images": [], "serviceAccountNames": [], "priorityClassNames": [], "podTemplate": False}),
        ({"image": "any/image:1", "serviceAccountName": "any", "priorityClassName": "any"}, DEFAULT),
        (template(volumes=[{"name": "t", "projected": {"sources": [{"secret": {"name": "a"}}]}}]), DEFAULT),
    ],
)
def test_what_is_allowed_is_rendered(runner: dict[str, Any], allowed: dict[str, Any]) -> None:
    """The operator's defaults always are, whatever the lists say."""
    assert refusals(runner, **allowed) == ""


def test_a_sweep_is_told_where_its_template_says_it() -> None:
    """The path is the sweep's."""
    case = Case(sweep(runner=NODE), "prepare", RenderSettings(image=IMAGE))
    with pytest.raises(RenderError, match=r"^spec\.template\.spec\.runner\.podTemplate\.spec\.nodeName: this cluster"):
        case.render()


def test_an_administrators_template_is_not_asked_about() -> None:
    """What the operator gives all pods was chosen by who chooses what is allowed."""
    settings = RenderSettings(
        image=IMAGE, pod_template=API_TOKEN["podTemplate"], allowed=Allowed.model_validate({"podTemplate": False})
    )
    (body,) = Case(job(), settings=settings).render()
    names = [volume["name"] for volume in body["spec"]["template"]["spec"]["volumes"]]
    assert "t" in names
