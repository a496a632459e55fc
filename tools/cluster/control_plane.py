"""A real control plane on loopback: etcd, kube-apiserver and kube-controller-manager, for tests.

As a command it stays up until Ctrl-C:  python tools/cluster/control_plane.py [FOLDER]
It starts only its own processes and stops only those. No kubelet runs: Jobs get pods, and pods stay Pending unless a
test plays the kubelet.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
from certificates import Authority, service_account_key  # noqa: E402

AUDIENCE = "https://kubernetes.default.svc"
START_SECONDS = 120
BINARIES = ("etcd", "kube-apiserver", "kube-controller-manager", "kubectl")


def build(*names: str) -> Path:
    """Folder of the binaries; builds what is missing (minutes, once per machine)."""
    done = subprocess.run([str(HERE / "build.sh"), *names], check=True, stdout=subprocess.PIPE, text=True)
    return Path(done.stdout.strip().splitlines()[-1])


def free_port() -> int:
    """A loopback port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class ControlPlane:
    """One cluster without nodes. A context manager; `folder` keeps its data, certificates and logs.

    `bind` is the address of the API server (a bridge's, when kubelets must reach it). `apiserver_flags` and
    `controller_flags` are added, or override a flag of the same name. `scheduler` starts kube-scheduler too.
    """

    def __init__(
        self,
        folder: Path,
        *,
        bind: str = "127.0.0.1",
        service_cidr: str = "10.96.0.0/16",
        pod_cidr: str | None = None,
        apiserver_flags: Mapping[str, str] | None = None,
        controller_flags: Mapping[str, str] | None = None,
        audit: bool = False,
        scheduler: bool = False,
    ) -> None:
        self.folder = folder
        self.bind = bind
        self.service_cidr = service_cidr
        self.pod_cidr = pod_cidr
        self.audit_log = folder / "audit.log" if audit else None
        self._apiserver_flags = dict(apiserver_flags or {})
        self._controller_flags = dict(controller_flags or {})
        self._scheduler = scheduler
        self._processes: list[subprocess.Popen[bytes]] = []

    # Start and stop --------------------------------------------------------------------------------------------------

    def __enter__(self) -> ControlPlane:
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _start(self) -> None:
        self.bin = build(*BINARIES, *(["kube-scheduler"] if self._scheduler else []))
        self.folder.mkdir(parents=True, exist_ok=True)
        self.authority = Authority(self.folder)
        service_ip = str(next(iter(_hosts(self.service_cidr))))
        names = ("kubernetes", "kubernetes.default", "kubernetes.default.svc", "localhost", "127.0.0.1", service_ip)
        self.server_pair = self.authority.issue("apiserver", "kube-apiserver", hosts=(*names, self.bind))
        admin = self.authority.issue("admin", "kubernetes-admin", "system:masters")
        controllers = self.authority.issue("controllers", "system:kube-controller-manager")
        kubelet_client = self.authority.issue("apiserver-kubelet-client", "kube-apiserver", "system:masters")
        self.service_account_key = service_account_key(self.folder)

        etcd_port, peer_port = free_port(), free_port()
        self.port = free_port()
        self.url = f"https://{self.bind}:{self.port}"
        self.etcd_url = f"http://127.0.0.1:{etcd_port}"
        self.kubeconfig = self.write_kubeconfig("admin", admin.certificate, admin.key)
        self._spawn(
            "etcd",
            {
                "data-dir": str(self.folder / "etcd"),
                "listen-client-urls": self.etcd_url,
                "advertise-client-urls": self.etcd_url,
                "listen-peer-urls": f"http://127.0.0.1:{peer_port}",
                "initial-advertise-peer-urls": f"http://127.0.0.1:{peer_port}",
                "initial-cluster": f"default=http://127.0.0.1:{peer_port}",
                "unsafe-no-fsync": "true",  # a test cluster's data need not outlive the machine
                "log-level": "warn",
            },
        )
        flags = {
            "etcd-servers": self.etcd_url,
            "bind-address": self.bind,
            "advertise-address": self.bind,
            "secure-port": str(self.port),
            "tls-cert-file": str(self.server_pair.certificate),
            "tls-private-key-file": str(self.server_pair.key),
            "client-ca-file": str(self.authority.certificate),
            "kubelet-client-certificate": str(kubelet_client.certificate),
            "kubelet-client-key": str(kubelet_client.key),
            "authorization-mode": "Node,RBAC",
            "service-account-issuer": AUDIENCE,
            "service-account-signing-key-file": str(self.service_account_key),
            "service-account-key-file": str(self.service_account_key),
            "service-cluster-ip-range": self.service_cidr,
            "endpoint-reconciler-type": "none",
            "disable-admission-plugins": "",
            "allow-privileged": "true",
        }
        if self.audit_log:
            policy = self.folder / "audit-policy.yaml"
            policy.write_text(
                "apiVersion: audit.k8s.io/v1\nkind: Policy\nomitStages: [RequestReceived]\nrules:\n- level: Metadata\n"
            )
            flags |= {
                "audit-policy-file": str(policy),
                "audit-log-path": str(self.audit_log),
                "audit-log-mode": "blocking-strict",
            }
        self._spawn("kube-apiserver", flags | self._apiserver_flags)
        self._wait_until_ready()
        flags = {
            "kubeconfig": str(self.write_kubeconfig("controllers", controllers.certificate, controllers.key)),
            "service-account-private-key-file": str(self.service_account_key),
            "root-ca-file": str(self.authority.certificate),
            "use-service-account-credentials": "true",
            "leader-elect": "false",
            "bind-address": "127.0.0.1",
            "secure-port": "0",
            "controllers": "*,-nodeipam,-route,-service,-cloud-node-lifecycle",
            "kube-api-qps": "200",
            "kube-api-burst": "400",
        }
        if self.pod_cidr:
            flags |= {"cluster-cidr": self.pod_cidr}
        self._spawn("kube-controller-manager", flags | self._controller_flags)
        if self._scheduler:
            pair = self.authority.issue("scheduler", "system:kube-scheduler")
            kubeconfig = str(self.write_kubeconfig("scheduler", pair.certificate, pair.key))
            self._spawn(
                "kube-scheduler",
                {
                    "kubeconfig": kubeconfig,
                    "authentication-kubeconfig": kubeconfig,
                    "authorization-kubeconfig": kubeconfig,
                    "leader-elect": "false",
                    "bind-address": "127.0.0.1",
                    "secure-port": "0",
                },
            )
        self._wait_for_default_service_account()

    def stop(self) -> None:
        """Stops what was started, last first.

        The API server is killed: told to end it waits for its watchers, and all it has is in etcd and the audit log.
        """
        for process in reversed(self._processes):
            process.send_signal(signal.SIGKILL if _name(process) == "kube-apiserver" else signal.SIGTERM)
        for process in reversed(self._processes):
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._processes.clear()

    @property
    def processes(self) -> tuple[subprocess.Popen[bytes], ...]:
        """What was started and not stopped."""
        return tuple(self._processes)

    def _spawn(self, name: str, flags: Mapping[str, str]) -> None:
        arguments = [f"--{flag}={value}" for flag, value in flags.items() if value != ""]
        with open(self.folder / f"{name}.log", "ab") as log:
            process = subprocess.Popen(
                [str(self.bin / name), *arguments],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        self._processes.append(process)

    def check_alive(self) -> None:
        """Raises RuntimeError, with the end of its log, when a process has ended."""
        for process in self._processes:
            if process.poll() is not None:
                name = _name(process)
                log = (self.folder / f"{name}.log").read_text(errors="replace").splitlines()[-15:]
                raise RuntimeError(f"{name} ended with {process.returncode}:\n" + "\n".join(log))

    def _wait_until_ready(self) -> None:
        self._poll("the API server to be ready", lambda: self.request("GET", "/readyz", raw=True) == b"ok")

    def _wait_for_default_service_account(self) -> None:
        path = "/api/v1/namespaces/default/serviceaccounts/default"
        self._poll("the service account 'default'", lambda: bool(self.request("GET", path)))

    def _poll(self, what: str, check: Any) -> None:
        deadline = time.monotonic() + START_SECONDS
        while True:
            self.check_alive()
            with contextlib.suppress(OSError):
                if check():
                    return
            if time.monotonic() > deadline:
                raise RuntimeError(f"waited {START_SECONDS} s in vain for {what}; logs are in {self.folder}")
            time.sleep(0.1)

    # Use -------------------------------------------------------------------------------------------------------------

    def request(
        self, method: str, path: str, body: Any = None, *, content_type: str = "application/json", raw: bool = False
    ) -> Any:
        """One request as cluster admin; `body` is JSON-ready data or bytes. HTTPError (urllib) on 4xx and 5xx."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": content_type}, method=method)
        with urllib.request.urlopen(request, context=self._trust, timeout=30) as response:
            answer = response.read()
        return answer if raw else json.loads(answer)

    @functools.cached_property
    def _trust(self) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.authority.certificate))
        context.load_cert_chain(self.folder / "admin.crt", self.folder / "admin.key")
        return context

    def kubectl(self, *arguments: str, text: str | None = None) -> str:
        """Runs kubectl as cluster admin and returns its output. Raises CalledProcessError with stderr in it."""
        command = [str(self.bin / "kubectl"), f"--kubeconfig={self.kubeconfig}", *arguments]
        done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=120)
        if done.returncode:
            raise RuntimeError(f"kubectl {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    def wait_established(self, *crds: str) -> None:
        """Until CRDs are served: names or files, as kubectl takes them; all that there are, if none is given.

        kubectl itself fails on one that has no conditions yet.
        """
        wanted = crds or ("crd", "--all")
        end = time.monotonic() + START_SECONDS
        while True:
            try:
                self.kubectl("wait", "--for=condition=Established", *wanted, "--timeout=60s")
                return
            except RuntimeError as error:
                if "accessor error" not in str(error) or time.monotonic() > end:
                    raise
                time.sleep(0.1)

    def write_kubeconfig(
        self, name: str, certificate: Path | None = None, key: Path | None = None, *, token: str = ""
    ) -> Path:
        """<name>.kubeconfig for a client certificate or a bearer token."""
        encoded = base64.b64encode(self.authority.certificate.read_bytes()).decode()
        user: dict[str, str] = (
            {"token": token} if token else {"client-certificate": str(certificate), "client-key": str(key)}
        )
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": {"server": self.url, "certificate-authority-data": encoded}}],
            "users": [{"name": name, "user": user}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": name}}],
            "current-context": "test",
        }
        path = self.folder / f"{name}.kubeconfig"
        path.touch(mode=0o600)
        path.write_text(json.dumps(config))
        return path


def _hosts(cidr: str) -> Iterator[Any]:
    import ipaddress

    return ipaddress.ip_network(cidr).hosts()


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(tempfile.mkdtemp(prefix="modelpress-cluster-"))
    with ControlPlane(folder) as cluster:
        print(f"export KUBECONFIG={cluster.kubeconfig}", flush=True)
        print(f"# {cluster.url}; logs in {folder}; Ctrl-C stops it", file=sys.stderr)
        signal.signal(signal.SIGTERM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
        with contextlib.suppress(KeyboardInterrupt):
            signal.pause()


if __name__ == "__main__":
    main()


def _name(process: subprocess.Popen[bytes]) -> str:
    return Path(process.args[0]).name  # type: ignore[index]
