"""A whole cluster of one node in namespaces of its own: run by e2e.py as their first process, never by hand.

    unshare --net --mount --pid --fork --kill-child --mount-proc python node.py FOLDER

When this process ends, however it ends, the kernel ends every process below it, containers too, and with them go
mounts, interfaces and rules. What is left are the files of FOLDER and empty cgroups, which e2e.py removes.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
import network  # noqa: E402
from control_plane import ControlPlane  # noqa: E402

NODE = "node-1"
CGROUP = "modelpress-e2e"
CGROUPS = Path("/sys/fs/cgroup")
S3_PORT = 7070
S3_BUCKET = "models"
# The kubelet and kube-proxy want to set these for the whole machine; here they write to copies.
TUNABLES = (
    *("vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops"),
    *("kernel/keys/root_maxkeys", "kernel/keys/root_maxbytes"),
)
# Folders with fixed names that containerd, the kubelet and runc write to.
OWN_FOLDERS = ("/run", "/var/log", "/var/lib/kubelet", "/var/lib/cni", "/etc/cni")


class Node:
    """Everything that runs; `settings` is what e2e.py wrote to FOLDER/settings.json."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.settings: dict[str, Any] = json.loads((folder / "settings.json").read_text())
        self.plane = ControlPlane(
            folder / "plane",
            bind=network.NODE_ADDRESS,
            service_cidr=network.SERVICE_CIDR,
            pod_cidr=network.POD_CIDR,
            # The server announces itself behind the Service `kubernetes`; its address is not loopback here.
            apiserver_flags={"endpoint-reconciler-type": "lease", "kubelet-preferred-address-types": "InternalIP"},
            # A test waits for a node that falls silent.
            controller_flags={"node-monitor-grace-period": "30s"},
            scheduler=True,
        )
        self.socket = folder / "containerd.sock"
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    # Start -----------------------------------------------------------------------------------------------------------

    def start(self) -> dict[str, Any]:
        """Starts all of it, in order; what e2e.py and tests need to know."""
        self._isolate()
        cni = network.set_up(self.folder)
        self._start_containerd(cni)
        self.plane.__enter__()
        s3 = self._start_s3()
        self._start_proxy()
        self._start_dns()
        self._start_kubelet()
        self._wait_for("the node to be ready", self._node_is_ready)
        self._announce_s3()
        return {
            "kubeconfig": str(self.plane.kubeconfig),
            "url": self.plane.url,
            "bin": str(self.plane.bin),
            "containerd": str(self.socket),
            "node": NODE,
            "nodeAddress": network.NODE_ADDRESS,
            "s3": s3,
        }

    def _isolate(self) -> None:
        """Own copies, in this mount namespace only, of what would otherwise be shared with the machine."""
        for index, path in enumerate(OWN_FOLDERS):
            if not Path(path).is_dir():
                Path(path).mkdir(parents=True)
            own = self.folder / "own" / str(index)
            own.mkdir(parents=True)
            subprocess.run(["mount", "--bind", own, path], check=True)
        for tunable in TUNABLES:
            real = Path("/proc/sys") / tunable
            if real.exists():
                copy = self.folder / "own" / tunable.replace("/", ".")
                copy.write_text(real.read_text())
                subprocess.run(["mount", "--bind", copy, real], check=True)
        # Pods' cgroups lie below one of ours, so that they can be found and removed.
        for hierarchy in cgroup_hierarchies():
            (hierarchy / CGROUP).mkdir(exist_ok=True)

    def _start_containerd(self, cni: Path) -> None:
        configuration = self.folder / "containerd.toml"
        configuration.write_text(f"""version = 2
root = "{self.settings["containerdRoot"]}"
state = "{self.folder}/containerd"
oom_score = 0
disabled_plugins = ["io.containerd.internal.v1.opt"]
[grpc]
  address = "{self.socket}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{self.settings["pause"]}"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{network.PLUGINS}"
    conf_dir = "{cni}"
""")
        self._spawn("containerd", ["containerd", "--config", str(configuration)])
        ctr = ["ctr", "--address", str(self.socket), "--namespace", "k8s.io"]
        quiet = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
        self._wait_for("containerd", lambda: subprocess.run([*ctr, "version"], **quiet).returncode == 0)  # type: ignore[call-overload]
        # Its storage outlives a cluster, containers do not.
        for name in subprocess.run([*ctr, "containers", "ls", "-q"], **quiet).stdout.split():  # type: ignore[call-overload]
            subprocess.run([*ctr, "containers", "rm", name], check=True)

    def _start_s3(self) -> dict[str, str]:
        buckets = self.folder / "buckets"
        (buckets / S3_BUCKET).mkdir(parents=True)
        access, secret = secrets.token_hex(10), secrets.token_hex(20)
        command = [self.settings["s3"], "--quiet", "--port", f"{network.NODE_ADDRESS}:{S3_PORT}", "posix", str(buckets)]
        keys = {"ROOT_ACCESS_KEY": access, "ROOT_SECRET_KEY": secret}
        self._spawn("s3", command, environment=os.environ | keys)
        return {
            "endpoint": f"http://{network.NODE_ADDRESS}:{S3_PORT}",
            "bucket": S3_BUCKET,
            "accessKey": access,
            "secretKey": secret,
        }

    def _announce_s3(self) -> None:
        """A name for it, as examples/ call it: s3.storage.svc, port 9000."""
        meta = {"name": "s3", "namespace": "storage"}
        service: dict[str, Any] = {"apiVersion": "v1", "kind": "Service", "metadata": meta}
        port = {"name": "s3", "protocol": "TCP"}
        endpoints = {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": meta | {"labels": {"kubernetes.io/service-name": "s3"}},
            "addressType": "IPv4",
            "endpoints": [{"addresses": [network.NODE_ADDRESS]}],
            "ports": [port | {"port": S3_PORT}],
        }
        namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "storage"}}
        self.plane.request("POST", "/api/v1/namespaces", namespace)
        service["spec"] = {"ports": [port | {"port": 9000, "targetPort": S3_PORT}]}
        self.plane.request("POST", "/api/v1/namespaces/storage/services", service)
        self.plane.request("POST", "/apis/discovery.k8s.io/v1/namespaces/storage/endpointslices", endpoints)

    def _start_proxy(self) -> None:
        """kube-proxy, before the first pod: without it a call to a Service's address has nowhere to go."""
        pair = self.plane.authority.issue("proxy", "system:kube-proxy")
        configuration = {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "clientConnection": {
                "kubeconfig": str(self.plane.write_kubeconfig("proxy", pair.certificate, pair.key)),
            },
            "mode": "iptables",
            "clusterCIDR": network.POD_CIDR,
            "hostnameOverride": NODE,
            "bindAddress": network.NODE_ADDRESS,
            "healthzBindAddress": "127.0.0.1:10256",
            "metricsBindAddress": "127.0.0.1:10249",
            "oomScoreAdj": 0,
            "iptables": {"minSyncPeriod": "0s", "syncPeriod": "30s"},
            # The table of connections is the machine's; leave its limits alone.
            "conntrack": {
                "maxPerCore": 0,
                "min": 0,
                "tcpEstablishedTimeout": "0s",
                "tcpCloseWaitTimeout": "0s",
            },
        }
        path = self.folder / "proxy.json"
        path.write_text(json.dumps(configuration))
        self._spawn("kube-proxy", [str(self.plane.bin / "kube-proxy"), f"--config={path}"])

    def _start_dns(self) -> None:
        pair = self.plane.authority.issue("dns", "system:coredns", "system:masters")
        path = self.folder / "Corefile"
        path.write_text(f""".:53 {{
    bind {network.NODE_ADDRESS}
    errors
    ready {network.NODE_ADDRESS}:8181
    kubernetes cluster.local in-addr.arpa {{
        kubeconfig {self.plane.write_kubeconfig("dns", pair.certificate, pair.key)}
        pods insecure
        ttl 5
    }}
    template ANY ANY {{
        rcode NXDOMAIN
    }}
}}
""")
        self._spawn("coredns", [self.settings["coredns"], "-conf", str(path)])

    def _start_kubelet(self) -> None:
        pair = self.plane.authority.issue("kubelet", f"system:node:{NODE}", "system:nodes")
        server = self.plane.authority.issue("kubelet-server", NODE, hosts=(NODE, network.NODE_ADDRESS))
        configuration = {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "address": network.NODE_ADDRESS,
            "healthzBindAddress": "127.0.0.1",
            "authentication": {
                "x509": {"clientCAFile": str(self.plane.authority.certificate)},
                "webhook": {"enabled": True},
                "anonymous": {"enabled": False},
            },
            "authorization": {"mode": "Webhook"},
            "tlsCertFile": str(server.certificate),
            "tlsPrivateKeyFile": str(server.key),
            "containerRuntimeEndpoint": f"unix://{self.socket}",
            "clusterDNS": [network.NODE_ADDRESS],
            "clusterDomain": "cluster.local",
            "resolvConf": "",
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": f"/{CGROUP}",
            "failCgroupV1": False,
            "failSwapOn": False,
            "enforceNodeAllocatable": [],
            "oomScoreAdj": 0,
            # A disk that is nearly full is no reason to delete images that nobody can pull again.
            "imageGCHighThresholdPercent": 100,
            "imageGCLowThresholdPercent": 99,
            "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
            "podLogsDir": "/var/log/pods",
            "maxPods": 60,
            "serializeImagePulls": False,
            "nodeStatusUpdateFrequency": "4s",
            "rotateCertificates": False,
            "featureGates": {},
        }
        path = self.folder / "kubelet.json"
        path.write_text(json.dumps(configuration))
        flags = {
            "config": path,
            "kubeconfig": self.plane.write_kubeconfig("kubelet", pair.certificate, pair.key),
            "hostname-override": NODE,
            "node-ip": network.NODE_ADDRESS,
            "root-dir": self.folder / "kubelet",
        }
        command = [str(self.plane.bin / "kubelet"), *(f"--{name}={value}" for name, value in flags.items())]
        self._spawn("kubelet", command)

    def _node_is_ready(self) -> bool:
        with contextlib.suppress(OSError):
            conditions = self.plane.request("GET", f"/api/v1/nodes/{NODE}")["status"].get("conditions", [])
            return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)
        return False

    # Processes -------------------------------------------------------------------------------------------------------

    def _spawn(self, name: str, command: list[str], *, environment: dict[str, str] | None = None) -> None:
        with open(self.folder / f"{name}.log", "ab") as log:
            self.processes[name] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, cwd=self.folder
            )

    def _wait_for(self, what: str, check: Any, seconds: float = 120) -> None:
        deadline = time.monotonic() + seconds
        while not check():
            self.check_alive()
            if time.monotonic() > deadline:
                raise RuntimeError(f"waited {seconds:.0f} s in vain for {what}; logs are in {self.folder}")
            time.sleep(0.2)

    def check_alive(self) -> None:
        """Raises RuntimeError when something that should run has ended."""
        for name, process in self.processes.items():
            if process.poll() is not None:
                log = (self.folder / f"{name}.log").read_text(errors="replace").splitlines()[-15:]
                raise RuntimeError(f"{name} ended with {process.returncode}:\n" + "\n".join(log))
        self.plane.check_alive()

    def serve(self, *, until_end_of_input: bool) -> None:
        """Reaps what containers leave behind, until a signal, or the end of standard input, or a failure."""
        inputs = [sys.stdin] if until_end_of_input else []
        while True:
            readable, _, _ = select.select(inputs, [], [], 1.0)
            if readable and not sys.stdin.buffer.read1(4096):  # type: ignore[attr-defined]
                return
            self.check_alive()
            self._reap()

    def _reap(self) -> None:
        """The first process of a PID namespace inherits orphans; ours are left to their Popen."""
        ours = {process.pid for process in (*self.processes.values(), *self.plane.processes)}
        while True:
            try:
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if ended is None or ended.si_pid in ours:
                return
            os.waitpid(ended.si_pid, 0)

    def stop(self) -> None:
        """Ends the kubelet and containerd in good order; the kernel sees to the rest."""
        for name in ("kubelet", "kube-proxy", "coredns", "s3", "containerd"):
            if process := self.processes.get(name):
                process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(5)


def cgroup_hierarchies() -> list[Path]:
    """The mount points of the machine's cgroups: one for each controller of version 1, else the one of version 2."""
    if (CGROUPS / "cgroup.controllers").exists():
        return [CGROUPS]
    return [path for path in CGROUPS.iterdir() if (path / "cgroup.procs").exists()]


def main() -> int:
    folder = Path(sys.argv[1])
    until_end_of_input = "--until-eof" in sys.argv[2:]
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))
    node = Node(folder)
    state: dict[str, Any] = {}
    try:
        state = node.start()
        _write(folder / "state.json", state)
        node.serve(until_end_of_input=until_end_of_input)
    except Exception as error:
        _write(folder / "state.json", state | {"error": f"{type(error).__name__}: {error}"})
        return 1
    finally:
        node.stop()
    return 0


def _write(path: Path, content: Any) -> None:
    part = path.with_suffix(".part")
    part.write_text(json.dumps(content, indent=2))
    part.chmod(0o600)
    shutil.move(part, path)


if __name__ == "__main__":
    sys.exit(main())
