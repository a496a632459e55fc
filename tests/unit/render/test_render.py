"""From a CreateJob to a batch/v1 Job.

Golden files: MODELPRESS_UPDATE_GOLDEN=1 pytest tests/unit/render writes them anew.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from render_cases import CASES, FULL, SETTINGS, SWEEP_UID, TEMPLATE, UID, Case, action, job, sweep

from modelpress.api.podtemplate import template_problems
from modelpress.request import RunRequest
from modelpress_operator.render import RenderError, RenderSettings, SpecTooLargeError, render_job

GOLDEN = Path(__file__).parent / "golden"


def rendered(case: Case) -> dict[str, Any]:
    return case.render()[-1]


def pod(case: Case) -> dict[str, Any]:
    return rendered(case)["spec"]["template"]


def runner(case: Case) -> dict[str, Any]:
    (container,) = pod(case)["spec"]["containers"]
    return container


def templated(template: dict[str, Any], **more: Any) -> Case:
    return Case(job(runner={"podTemplate": {"spec": template}}, **more))


@pytest.mark.parametrize("name", CASES)
def test_golden(name: str) -> None:
    """Every word of a rendered Job is meant; the request in its annotation is readable there."""
    objects = CASES[name].render()
    annotations = objects[-1]["spec"]["template"]["metadata"]["annotations"]
    shown = json.loads(annotations["modelpress.dev/spec"])
    assert json.loads(RunRequest.model_validate(shown).to_json()) == shown
    annotations["modelpress.dev/spec"] = shown  # as data, for people
    text = yaml.safe_dump_all(objects, sort_keys=False, width=120)
    path = GOLDEN / f"{name}.yaml"
    if os.environ.get("MODELPRESS_UPDATE_GOLDEN"):
        path.write_text(text, encoding="utf-8")
    assert path.read_text(encoding="utf-8") == text


def test_every_golden_file_has_a_case() -> None:
    """No file outlives its case."""
    assert sorted(path.stem for path in GOLDEN.glob("*.yaml")) == sorted(CASES)


def test_whose_it_is() -> None:
    """Labels of Job and pods say what it belongs to; the controller reference is what the core goes by."""
    found = rendered(Case(job(sweep=True)))
    labels = {
        "app.kubernetes.io/managed-by": "modelpress-operator",
        "modelpress.dev/job": "search-00007",
        "modelpress.dev/sweep": "search",
        "modelpress.dev/trial": "7",
        "modelpress.dev/attempt": "1",
        "modelpress.dev/purpose": "trial",
    }
    assert found["metadata"]["labels"] == labels
    assert found["spec"]["template"]["metadata"]["labels"] == labels
    assert found["metadata"]["ownerReferences"] == [
        {
            "apiVersion": "modelpress.dev/v1alpha1",
            "kind": "CompressionJob",
            "name": "search-00007",
            "uid": UID,
            "controller": True,
        }
    ]
    of_sweep = rendered(Case(sweep(), "publish"))["metadata"]
    assert of_sweep["labels"]["modelpress.dev/sweep"] == "search"
    assert "modelpress.dev/job" not in of_sweep["labels"]
    assert of_sweep["ownerReferences"][0]["uid"] == SWEEP_UID


def test_failures_are_told_apart_in_this_order() -> None:
    """Invalid, terminated, disrupted: the first rule that fits names the cause; no pod is started again."""
    spec = rendered(CASES["minimal"])["spec"]
    assert (spec["backoffLimit"], spec["podReplacementPolicy"]) == (0, "Failed")
    rules = spec["podFailurePolicy"]["rules"]
    assert [rule["action"] for rule in rules] == ["FailJob"] * 3
    assert [rule.get("onExitCodes", {}).get("values") for rule in rules] == [[2], [143], None]
    assert rules[2]["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    assert not {"activeDeadlineSeconds", "ttlSecondsAfterFinished"} & spec.keys()


def test_the_request_is_what_the_core_asked_for() -> None:
    """The annotation is the action's request; the run's uid is left to the pod."""
    wanted = action(job())
    text = pod(Case(job()))["metadata"]["annotations"]["modelpress.dev/spec"]
    assert RunRequest.model_validate_json(text) == wanted.request
    env = {item["name"]: item for item in runner(Case(job()))["env"]}
    assert env["MODELPRESS_RUN_UID"]["valueFrom"] == {"fieldRef": {"fieldPath": "metadata.uid"}}


def test_code_of_a_config_map_is_where_the_request_says() -> None:
    """The runner finds the mounted folder in its request; code from elsewhere it fetches itself."""
    found = pod(CASES["trial"])
    request = RunRequest.model_validate_json(found["metadata"]["annotations"]["modelpress.dev/spec"])
    mounts = {mount["mountPath"] for mount in found["spec"]["containers"][0]["volumeMounts"]}
    assert request.code_path == "/workspace/code"
    assert request.code_path in mounts
    of_git = json.loads(pod(CASES["prepare"])["metadata"]["annotations"]["modelpress.dev/spec"])
    assert "codePath" not in of_git


@pytest.mark.parametrize("purpose", ["collect", "publish", "suggest"])
def test_small_jobs_take_no_devices_and_no_queue(purpose: str) -> None:
    """What copies and counts waits for no GPU, whatever spec and template say."""
    with_claims = FULL | {
        "podTemplate": {
            "spec": {
                "resourceClaims": [{"name": "x", "resourceClaimName": "x"}],
                "containers": [
                    {"name": "runner", "resources": {"limits": {"nvidia.com/gpu": 4}, "claims": [{"name": "x"}]}}
                ],
                "initContainers": [{"name": "i", "image": "i:1", "resources": {"claims": [{"name": "x"}]}}],
            }
        }
    }
    owner = job(runner=with_claims) if purpose == "collect" else sweep(runner=with_claims)
    found = rendered(Case(owner, purpose))
    text = json.dumps(found["spec"]["template"]["spec"])
    assert 'nvidia.com/gpu": ' not in text
    assert "claims" not in text.lower()
    assert "suspend" not in found["spec"]
    assert "kueue.x-k8s.io/queue-name" not in found["metadata"]["labels"]
    cpu, memory, limit = ("500m", "1Gi", "2Gi") if purpose == "suggest" else ("100m", "256Mi", "1Gi")
    assert found["spec"]["template"]["spec"]["containers"][0]["resources"] == {
        "requests": {"cpu": cpu, "memory": memory},
        "limits": {"memory": limit},
    }


def test_threads_follow_the_cores_that_a_pod_may_use() -> None:
    """A limit goes before a request; where neither is given the runner counts for itself; a template may say."""

    def threads(**more: Any) -> Any:
        found = [item for item in runner(Case(job(runner=more)))["env"] if item["name"] == "OMP_NUM_THREADS"]
        return found[0].get("value") or found[0]["valueFrom"]["resourceFieldRef"]["resource"] if found else None

    assert threads(resources={"requests": {"cpu": 1}, "limits": {"cpu": 2}}) == "limits.cpu"
    assert threads(resources={"requests": {"cpu": 1}}) == "requests.cpu"
    assert threads(resources={"limits": {"memory": "1Gi"}}) is None
    own = {"spec": {"containers": [{"name": "runner", "env": [{"name": "OMP_NUM_THREADS", "value": "3"}]}]}}
    assert threads(podTemplate=own) == "3"


def test_the_spec_goes_before_the_cluster() -> None:
    """Image, pull policy, account and template: the operator's are defaults, the job's own come last."""
    settings = RenderSettings(
        image="default:1",
        image_pull_policy="Always",
        service_account="default-runner",
        pod_template={"metadata": {"labels": {"a": "cluster", "b": "cluster"}}, "spec": {"dnsPolicy": "Default"}},
    )
    plain = pod(Case(job(), settings=settings))
    assert plain["spec"]["containers"][0]["image"] == "default:1"
    assert plain["spec"]["containers"][0]["imagePullPolicy"] == "Always"
    assert (plain["spec"]["serviceAccountName"], plain["spec"]["dnsPolicy"]) == ("default-runner", "Default")
    template = {"metadata": {"labels": {"b": "job"}}, "spec": {"dnsPolicy": "None"}}
    named = {"image": "own:2", "imagePullPolicy": "Never", "serviceAccountName": "own", "podTemplate": template}
    own = pod(Case(job(runner=named), settings=settings))
    assert own["spec"]["containers"][0]["image"] == "own:2"
    assert own["spec"]["containers"][0]["imagePullPolicy"] == "Never"
    assert (own["spec"]["serviceAccountName"], own["spec"]["dnsPolicy"]) == ("own", "None")
    assert {"a": "cluster", "b": "job"}.items() <= own["metadata"]["labels"].items()


def test_an_image_must_come_from_somewhere() -> None:
    """Without an image in the spec and a default there is no pod."""
    with pytest.raises(RenderError, match=r"spec\.runner\.image: names no image"):
        Case(job(), settings=RenderSettings()).render()


def test_what_does_not_fit_is_refused() -> None:
    """The API server takes 256 KiB of annotations; the message says how much there is."""
    args = {"blob": "x" * 200_000}
    fits = Case(job(model={"entrypoint": "a:b", "args": args}))
    assert len(pod(fits)["metadata"]["annotations"]["modelpress.dev/spec"]) > 200_000
    notes = {"metadata": {"annotations": {f"example.com/{n}": "y" * 4096 for n in range(8)}}}
    with pytest.raises(SpecTooLargeError, match=r"spec: needs 26\d{4} bytes of a pod's annotations, which take 258048"):
        Case(job(model={"entrypoint": "a:b", "args": args}, runner={"podTemplate": notes})).render()


def test_a_default_template_is_checked_when_it_is_set() -> None:
    """A cluster's template that asks for the impossible stops the operator, not every job."""
    with pytest.raises(ValueError, match=r"podTemplate\.spec\.hostPID: cannot be given"):
        RenderSettings(pod_template={"spec": {"hostPID": True}})


def test_store_credentials_stay_beside_those_of_a_template() -> None:
    """envFrom is replaced as a whole by a merge; the store's Secret must not get lost by it."""
    sources = runner(CASES["template"])["envFrom"]
    assert sources == [{"secretRef": {"name": "s3", "optional": True}}, {"secretRef": {"name": "tracking"}}]


HOSTILE: dict[str, Any] = {
    "restartPolicy": "OnFailure",
    "hostNetwork": True,
    "automountServiceAccountToken": True,
    "securityContext": {"runAsNonRoot": False, "runAsUser": 0, "seccompProfile": {"type": "Unconfined"}, "fsGroup": 5},
    "containers": [
        {
            "name": "runner",
            "command": ["sh"],
            "args": ["-c", "id"],
            "terminationMessagePath": "/tmp/x",
            "terminationMessagePolicy": "FallbackToLogsOnError",
            "securityContext": {
                "privileged": True,
                "allowPrivilegeEscalation": True,
                "capabilities": {"add": ["SYS_ADMIN"]},
                "runAsUser": 1234,
                "readOnlyRootFilesystem": False,
            },
            "env": [{"name": "MODELPRESS_RUN_UID", "value": "mine"}],
            "volumeMounts": [
                {"name": "host", "mountPath": "/etc/modelpress"},
                {"name": "host", "mountPath": "/etc/modelpress/"},
                {"name": "host", "mountPath": "/workspace/code/x"},
                {"name": "host", "mountPath": "/etc/./modelpress"},
                {"name": "host", "mountPath": "etc/x/../modelpress"},
                {"name": "host", "mountPath": "//run/secrets/modelpress.dev/progress"},
                {"name": "modelpress-request", "mountPath": "/elsewhere"},
            ],
            "ports": [{"containerPort": 80, "hostPort": 80}],
        },
        {"name": "second", "image": "a:1"},
    ],
    "initContainers": [{"name": "root", "image": "a:1", "securityContext": {"privileged": True}}],
    "volumes": [
        {"name": "host", "hostPath": {"path": "/"}},
        {"name": "modelpress-request", "emptyDir": {}},
    ],
}


def test_what_gets_past_validation_is_put_back() -> None:
    """A template that nobody checked changes neither what runs nor its security."""
    found, plain = pod(templated(HOSTILE))["spec"], pod(Case(job()))["spec"]
    (ours,), (usual,) = found["containers"], plain["containers"]
    for key in ("name", "command", "terminationMessagePath", "terminationMessagePolicy", "volumeMounts", "env"):
        assert {str(item) for item in ours[key]} == {str(item) for item in usual[key]}, key
    assert "args" not in ours
    assert ours["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "runAsUser": 1234,
        "readOnlyRootFilesystem": False,
    }
    assert ours["ports"] == [{"containerPort": 80}]
    assert found["securityContext"] == {
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
        "fsGroup": 5,
    }
    assert found["initContainers"][0]["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
    }
    assert (found["restartPolicy"], found["automountServiceAccountToken"]) == ("Never", False)
    assert "hostNetwork" not in found
    assert {volume["name"]: volume for volume in found["volumes"]} == {
        volume["name"]: volume for volume in plain["volumes"]
    }


def test_the_hostile_template_has_no_word_that_validation_lets_pass() -> None:
    """Each part of it is a problem, so a user is told instead of overruled."""
    found = {problem.path.removeprefix("t.spec.") for problem in template_problems({"spec": HOSTILE}, "t")}
    assert found >= {
        "restartPolicy",
        "hostNetwork",
        "automountServiceAccountToken",
        "securityContext.runAsNonRoot",
        "securityContext.runAsUser",
        "securityContext.seccompProfile",
        "containers[0].command",
        "containers[0].args",
        "containers[0].terminationMessagePath",
        "containers[0].terminationMessagePolicy",
        "containers[0].securityContext.privileged",
        "containers[0].env[0]",
        *(f"containers[0].volumeMounts[{index}]" for index in range(6)),
        "containers[0].volumeMounts[6].name",
        "containers[0].ports[0].hostPort",
        "containers[1]",
        "initContainers[0].securityContext.privileged",
        "volumes[0].hostPath",
        "volumes[1].name",
    }


settings_of_a_context = st.fixed_dictionaries(
    {},
    optional={
        "privileged": st.booleans(),
        "allowPrivilegeEscalation": st.booleans(),
        "runAsNonRoot": st.booleans(),
        "runAsUser": st.integers(0, 3),
        "capabilities": st.sampled_from(
            [{"drop": ["ALL"]}, {"drop": ["KILL"]}, {"add": ["CHOWN"], "drop": ["ALL"]}, {}]
        ),
        "seccompProfile": st.sampled_from([{"type": "RuntimeDefault"}, {"type": "Unconfined"}, {}]),
        "readOnlyRootFilesystem": st.booleans(),
        "procMount": st.sampled_from(["Default", "Unmasked"]),
    },
)


@given(settings_of_a_context, settings_of_a_context)
def test_no_template_lowers_the_security(pod_context: dict[str, Any], context: dict[str, Any]) -> None:
    """Whatever the security contexts say, the result is what PodSecurity restricted demands of every container."""
    pod_level = {key: value for key, value in pod_context.items() if key.startswith(("runAs", "seccomp"))}
    containers = [{"name": "runner", "securityContext": context}]
    init = [{"name": "i", "image": "a:1", "securityContext": context}]
    spec = {"securityContext": pod_level, "containers": containers, "initContainers": init}
    found = pod(templated(spec))["spec"]
    assert found["securityContext"]["runAsNonRoot"] is True
    assert found["securityContext"]["seccompProfile"]["type"] in ("RuntimeDefault", "Localhost")
    assert found["securityContext"].get("runAsUser") != 0
    for container in (*found["containers"], *found["initContainers"]):
        rights = container["securityContext"]
        assert rights["allowPrivilegeEscalation"] is False
        assert rights["capabilities"] == {"drop": ["ALL"]}
        assert rights.get("privileged", False) is False
        assert rights.get("runAsNonRoot", True) is True
        assert rights.get("runAsUser") != 0
        assert rights.get("seccompProfile", {"type": "RuntimeDefault"})["type"] == "RuntimeDefault"
        assert rights.get("procMount", "Default") == "Default"


def test_what_a_template_may_say_is_there() -> None:
    """A template without problems is in the pod word for word, as far as lists are not merged with ours."""
    assert list(template_problems(TEMPLATE, "t")) == []
    found = pod(CASES["template"])
    assert TEMPLATE["metadata"]["labels"].items() <= found["metadata"]["labels"].items()
    assert TEMPLATE["metadata"]["annotations"].items() <= found["metadata"]["annotations"].items()
    spec, wanted = found["spec"], TEMPLATE["spec"]
    for key in ("terminationGracePeriodSeconds", "topologySpreadConstraints"):
        assert spec[key] == wanted[key]
    assert wanted["securityContext"].items() <= spec["securityContext"].items()
    assert all(volume in spec["volumes"] for volume in wanted["volumes"])
    for init in wanted["initContainers"]:
        assert any(init.items() <= item.items() for item in spec["initContainers"])
    (container,) = wanted["containers"]
    assert all(item in spec["containers"][0]["env"] for item in container["env"])
    assert all(item in spec["containers"][0]["volumeMounts"] for item in container["volumeMounts"])


def test_ranks_meet_at_the_first_one() -> None:
    """With several nodes each pod is a rank of an Indexed Job, and finds rank 0 by a headless Service."""
    service, policy, found = CASES["nodes"].render()
    assert (service["kind"], service["spec"]["clusterIP"]) == ("Service", "None")
    assert service["metadata"]["name"] == policy["metadata"]["name"] == found["metadata"]["name"] == "digits-1"
    ranks = {"podSelector": {"matchLabels": service["spec"]["selector"]}}
    assert policy["spec"] == {**ranks, "policyTypes": ["Ingress"], "ingress": [{"from": [ranks]}]}
    assert service["spec"]["selector"] == {"batch.kubernetes.io/job-name": "digits-1"}
    spec = found["spec"]
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 2, 2)
    assert spec["template"]["spec"]["subdomain"] == "digits-1"
    env = {item["name"]: item.get("value") for item in spec["template"]["spec"]["containers"][0]["env"]}
    assert (env["PET_NNODES"], env["PET_NPROC_PER_NODE"], env["PET_MASTER_PORT"]) == ("2", "8", "29500")
    assert env["MASTER_ADDR"] == env["PET_MASTER_ADDR"] == "digits-1-0.digits-1"


def test_rendering_is_pure() -> None:
    """The same action gives the same Job, and neither owner nor action is changed by it."""
    case = Case(job(sweep=True, runner=FULL))
    owner = case.owner.to_dict()
    before = json.dumps(owner, sort_keys=True)
    asked = action(case.owner)
    first, second = (render_job(asked, owner, SETTINGS) for _ in range(2))
    assert first == second
    assert json.dumps(owner, sort_keys=True) == before
