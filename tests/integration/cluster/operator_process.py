"""The operator as a process of its own: a service account with the least rights, its token, and nothing else."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from control_plane import ControlPlane, free_port

if TYPE_CHECKING:
    from warm_processes import WarmProcess, WarmProcesses

ACCOUNT = "modelpress-operator"
RULES = [
    {
        "apiGroups": ["modelpress.dev"],
        "resources": ["compressionjobs", "compressionsweeps"],
        "verbs": ["list", "watch"],
    },
    {"apiGroups": ["modelpress.dev"], "resources": ["compressionjobs"], "verbs": ["get", "create"]},
    {
        "apiGroups": ["modelpress.dev"],
        "resources": ["compressionjobs/status", "compressionsweeps/status"],
        "verbs": ["patch"],
    },
    {"apiGroups": ["batch"], "resources": ["jobs"], "verbs": ["list", "watch", "get", "create", "delete"]},
    {"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "watch"]},
    {"apiGroups": [""], "resources": ["services"], "verbs": ["get", "create", "delete"]},
    {"apiGroups": ["networking.k8s.io"], "resources": ["networkpolicies"], "verbs": ["get", "create", "delete"]},
    {"apiGroups": ["events.k8s.io"], "resources": ["events"], "verbs": ["create", "list"]},
]
LEASE_RULES = [{"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["get", "create", "patch"]}]


def make_account(cluster: ControlPlane, namespace: str, *, cluster_wide: bool = False) -> Path:
    """The operator's service account in a namespace, with its rights; the kubeconfig with its token."""
    cluster.request("POST", f"/api/v1/namespaces/{namespace}/serviceaccounts", {"metadata": {"name": ACCOUNT}})
    rbac, group = "/apis/rbac.authorization.k8s.io/v1", "rbac.authorization.k8s.io"
    subject = {"kind": "ServiceAccount", "name": ACCOUNT, "namespace": namespace}

    def allow(kind: str, name: str, rules: list[dict[str, Any]]) -> None:
        where = rbac if kind == "ClusterRole" else f"{rbac}/namespaces/{namespace}"
        plural = kind.lower()
        cluster.request("POST", f"{where}/{plural}s", {"metadata": {"name": name}, "rules": rules})
        binding = {
            "metadata": {"name": name},
            "subjects": [subject],
            "roleRef": {"apiGroup": group, "kind": kind, "name": name},
        }
        cluster.request("POST", f"{where}/{plural}bindings", binding)

    allow("ClusterRole" if cluster_wide else "Role", f"{ACCOUNT}-{namespace}", RULES)
    allow("Role", f"{ACCOUNT}-lease", LEASE_RULES)
    path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{ACCOUNT}/token"
    token = cluster.request("POST", path, {"spec": {"expirationSeconds": 3600}})["status"]["token"]
    return cluster.write_kubeconfig(f"operator-{namespace}", token=token)


class OperatorProcess:
    """One replica. A context manager that stops it in good order.

    `apart`: probes and progress on their own ports. `warm`: where it comes from, if not from a new interpreter.
    """

    def __init__(
        self,
        kubeconfig: Path,
        namespace: str,
        *,
        folder: Path,
        identity: str = "replica-0",
        cluster_wide: bool = False,
        lease_seconds: float = 15,
        apart: bool = False,
        warm: WarmProcesses | None = None,
        **environment: str,
    ) -> None:
        self.port = free_port()
        self.probe_port, self.progress_port = (free_port(), free_port()) if apart else (self.port, self.port)
        self.log = folder / f"operator-{identity}.log"
        self._warm = warm
        self._command = [sys.executable, "-m", "modelpress_operator"]
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("MODELPRESS_")},
            "MODELPRESS_KUBECONFIG": str(kubeconfig),
            "MODELPRESS_NAMESPACES": "" if cluster_wide else namespace,
            "MODELPRESS_LEASE_NAMESPACE": namespace,
            "MODELPRESS_LEASE_SECONDS": str(lease_seconds),
            "MODELPRESS_IDENTITY": identity,
            "MODELPRESS_HOST": "127.0.0.1",
            "MODELPRESS_PORT": str(self.port),
            "MODELPRESS_PROBE_PORT": str(self.probe_port),
            "MODELPRESS_PROGRESS_PORT": str(self.progress_port),
            "MODELPRESS_LOG_LEVEL": "info",
            **environment,
        }
        self._process: subprocess.Popen[bytes] | WarmProcess | None = None

    def __enter__(self) -> OperatorProcess:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.stop()

    def start(self) -> None:
        """Start it; returns at once."""
        if self._warm is not None:
            self._process = self._warm.start((), Path.cwd(), self._environment, self.log)
            return
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(self._command, env=self._environment, stdout=log, stderr=log)

    def kill(self) -> None:
        """SIGKILL."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise

    def wait(self, seconds: float = 30) -> int:
        """Until it ends by itself; the exit code."""
        assert self._process is not None
        return self._process.wait(seconds)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def get(self, path: str) -> tuple[int, str]:
        """Status and text of one of its own HTTP paths; status 0 where nobody listens."""
        ports = {"/healthz": self.probe_port, "/readyz": self.probe_port, "/progress": self.progress_port}
        try:
            url = f"http://127.0.0.1:{ports.get(path, self.port)}{path}"
            with urllib.request.urlopen(url, timeout=5) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def metric(self, name: str, **labels: str) -> float:
        """Sum of the samples of a metric that carry these labels."""
        total = 0.0
        for line in self.get("/metrics")[1].splitlines():
            head, _, value = line.rpartition(" ")
            if head.partition("{")[0] == name and all(f'{key}="{text}"' in head for key, text in labels.items()):
                total += float(value)
        return total

    def wait_ready(self) -> None:
        """Until it has listed the cluster."""
        until(lambda: self.get("/readyz")[0] == 200, "the operator to be ready", context=self.tail)

    def tail(self) -> str:
        """The end of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-40:]) if self.log.exists() else ""

    def lines(self) -> Iterator[dict[str, Any]]:
        """Its log, parsed; every line must be JSON."""
        for line in self.log.read_text().splitlines():
            yield json.loads(line)


def until(
    check: Callable[[], Any], what: str, *, seconds: float = 60, context: Callable[[], str] = str, every: float = 0.05
) -> Any:
    """The first true value of `check`."""
    deadline = time.monotonic() + seconds
    while True:
        value = check()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {seconds:g} s in vain for {what}\n{context()}")
        time.sleep(every)
