"""A namespace of the control plane with objects of ours in it, and what tests ask about them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from control_plane import ControlPlane
from fake_kubelet import FakeKubelet, Fate
from operator_process import ACCOUNT, OperatorProcess, make_account, until

if TYPE_CHECKING:
    from warm_processes import WarmProcesses

API = "/apis/modelpress.dev/v1alpha1/namespaces"
MODEL = {"entrypoint": "digits:create"}
STORE = {"uri": "s3://models/out"}
WRITES = ("create", "patch", "update", "delete")
PLURAL = {"CompressionJob": "compressionjobs", "CompressionSweep": "compressionsweeps"}


def job(name: str, **spec: Any) -> dict[str, Any]:
    """A CompressionJob that halves the channels."""
    prune = {"algorithm": "l1", "configList": [{"opTypes": ["Conv2d"], "sparsity": 0.5}]}
    body = {"model": MODEL, "stages": [{"prune": prune}], "store": STORE, **spec}
    return {"apiVersion": "modelpress.dev/v1alpha1", "kind": "CompressionJob", "metadata": {"name": name}, "spec": body}


def sweep(name: str, trials: int, parallelism: int = 4, **spec: Any) -> dict[str, Any]:
    """A random search for a sparsity."""
    space = {"name": "sparsity", "paths": ["/stages/0/prune/configList/0/sparsity"], "float": {"min": 0.1, "max": 0.9}}
    body = {
        "template": {"spec": job("x")["spec"]},
        "searchSpace": [space],
        "objectives": [{"metric": "default"}, {"metric": "macs"}],
        "algorithm": {"name": "random", "seed": 7},
        "parallelism": parallelism,
        "maxTrials": trials,
        **spec,
    }
    return {
        "apiVersion": "modelpress.dev/v1alpha1",
        "kind": "CompressionSweep",
        "metadata": {"name": name},
        "spec": body,
    }


class Cluster:
    """One namespace of the control plane, with a fake kubelet and a service account for the operator."""

    def __init__(
        self, plane: ControlPlane, kubelet: FakeKubelet, namespace: str, folder: Path, operators: WarmProcesses
    ) -> None:
        self.plane = plane
        self.kubelet = kubelet
        self.namespace = namespace
        self.folder = folder
        self._operators = operators
        plane.kubectl("create", "namespace", namespace)

    def operator(self, *, cluster_wide: bool = False, warm: bool = True, **options: Any) -> OperatorProcess:
        """A replica that serves this namespace, or the cluster; one that is not `warm` is a new interpreter."""
        kubeconfig = self.folder / "operator.kubeconfig"
        if not kubeconfig.exists():
            made = make_account(self.plane, self.namespace, cluster_wide=cluster_wide)
            made.rename(kubeconfig)
        options |= {"cluster_wide": cluster_wide, "warm": self._operators if warm else None}
        return OperatorProcess(kubeconfig, self.namespace, folder=self.folder, **options)

    def fate_of(self, purpose: str, fate: Fate, attempt: int = 1) -> None:
        """What becomes of one attempt's runs of a purpose; all else succeeds at once."""
        self.kubelet.script = lambda run: (
            fate
            if (run["purpose"], run["attempt"]) == (purpose, attempt) and run["namespace"] == self.namespace
            else Fate()
        )

    def create(self, body: dict[str, Any]) -> dict[str, Any]:
        """Create an object of ours."""
        answer: dict[str, Any] = self.plane.request("POST", f"{API}/{self.namespace}/{PLURAL[body['kind']]}", body)
        return answer

    def get(self, kind: str, name: str) -> dict[str, Any]:
        """An object of ours."""
        answer: dict[str, Any] = self.plane.request("GET", f"{API}/{self.namespace}/{PLURAL[kind]}/{name}")
        return answer

    def patch(self, kind: str, name: str, body: dict[str, Any]) -> None:
        """Merge-patch an object of ours, as a user."""
        path = f"{API}/{self.namespace}/{PLURAL[kind]}/{name}"
        self.plane.request("PATCH", path, body, content_type="application/merge-patch+json")

    def list(self, path: str) -> list[dict[str, Any]]:
        """All objects of a collection in this namespace; `path` is such as apis/batch/v1 and jobs."""
        prefix, _, plural = path.rpartition("/")
        items: list[dict[str, Any]] = self.plane.request("GET", f"/{prefix}/namespaces/{self.namespace}/{plural}")[
            "items"
        ]
        return items

    def trials(self) -> list[dict[str, Any]]:
        """All CompressionJobs, by name."""
        return sorted(
            self.list("apis/modelpress.dev/v1alpha1/compressionjobs"), key=lambda one: one["metadata"]["name"]
        )

    def phase(self, kind: str, name: str) -> str | None:
        """The phase of an object of ours."""
        phase: str | None = self.get(kind, name).get("status", {}).get("phase")
        return phase

    def wait_for(self, kind: str, name: str, *phases: str, seconds: float = 60) -> dict[str, Any]:
        """The object once it is in one of these phases."""
        until(
            lambda: self.phase(kind, name) in phases,
            f"{kind} {name} to be {' or '.join(phases)}",
            seconds=seconds,
            context=lambda: json.dumps(self.get(kind, name).get("status"), indent=1) + self.logs(),
        )
        return self.get(kind, name)

    def wait_condition(self, kind: str, name: str, type_: str, **wanted: str) -> dict[str, Any]:
        """The condition of that type once its fields are as wanted."""
        return until(
            lambda: next((c for c in [condition(self.get(kind, name), type_)] if wanted.items() <= c.items()), None),
            f"{kind} {name} to have {type_} with {wanted}",
            context=lambda: json.dumps(self.get(kind, name).get("status"), indent=1) + self.logs(),
        )

    def logs(self) -> str:
        """The ends of the operators' logs."""
        return "\n".join(path.read_text()[-3000:] for path in sorted(self.folder.glob("operator-*.log")))

    def requests(self, since: int = 0) -> list[dict[str, Any]]:
        """What the operator's service account asked of the API server, from the audit log."""
        assert self.plane.audit_log is not None
        user = f"system:serviceaccount:{self.namespace}:{ACCOUNT}"
        lines = self.plane.audit_log.read_text().splitlines()
        found = [event for event in map(json.loads, lines[since:]) if event["user"]["username"] == user]
        return [event for event in found if event.get("objectRef", {}).get("resource") != "leases"]

    def audit_size(self) -> int:
        """Where the audit log ends now."""
        assert self.plane.audit_log is not None
        return len(self.plane.audit_log.read_text().splitlines())


def condition(obj: dict[str, Any], type_: str) -> dict[str, Any]:
    """A condition of an object, empty if it has none of that type."""
    conditions = obj.get("status", {}).get("conditions", [])
    return next((item for item in conditions if item["type"] == type_), {})


def parameters(trials: list[dict[str, Any]]) -> list[str]:
    """The parameters of trials, in the order of their numbers."""
    return [trial["metadata"]["annotations"]["modelpress.dev/parameters"] for trial in trials]
