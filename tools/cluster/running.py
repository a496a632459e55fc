"""The running cluster as tests see it. Works in its network only: tools/cluster/e2e.sh exec, or run."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml


def restricted_pod(
    name: str, namespace: str, image: str, command: Sequence[str], *, limits: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """A pod that PodSecurity restricted admits, with nothing to write to but /tmp."""
    container = {
        "name": "main",
        "image": image,
        "command": list(command),
        "resources": {"limits": dict(limits or {})},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [container],
            "volumes": [{"name": "tmp", "emptyDir": {}}],
        },
    }


HERE = Path(__file__).resolve().parent
SYSTEM = "modelpress-system"  # the operator's namespace
RELEASE = "modelpress"


class NotInCluster(Exception):  # noqa: N818
    """This process is not in a cluster's network; the message says how to get there."""


class Timeout(AssertionError):  # noqa: N818
    """What was waited for did not come; the message has what there was instead."""


@dataclass(frozen=True)
class S3:
    """The cluster's S3 server, by address, for pods and for tests alike."""

    endpoint: str
    bucket: str
    access_key: str
    secret_key: str

    @property
    def credentials(self) -> dict[str, str]:
        """As environment variables, and as the keys of a Secret."""
        return {"AWS_ACCESS_KEY_ID": self.access_key, "AWS_SECRET_ACCESS_KEY": self.secret_key}


@dataclass(frozen=True)
class Running:
    """A cluster that e2e.py started. `folder` has its files and goes with it.

    `images` maps a target of the Dockerfile to the image's name.
    """

    folder: Path
    node: str
    node_address: str
    s3: S3
    images: Mapping[str, str]
    image_bytes: Mapping[str, int]
    containerd: Path
    kubeconfig: Path
    bin: Path
    tools: Path
    prometheus: Path  # folder of prometheus and promtool
    monitoring: Path  # folder of the Prometheus operator's CustomResourceDefinitions

    @classmethod
    def find(cls) -> Running:
        """The cluster of this process's network.

        Raises:
            NotInCluster: there is none.
        """
        path = os.environ.get("MODELPRESS_E2E")
        if not path or not Path(path).exists():
            raise NotInCluster("these tests run in a cluster's network; start them with: make e2e")
        state = json.loads(Path(path).read_text())
        s3 = state["s3"]
        return cls(
            folder=Path(path).parent,
            node=state["node"],
            node_address=state["nodeAddress"],
            s3=S3(s3["endpoint"], s3["bucket"], s3["accessKey"], s3["secretKey"]),
            images=state["images"],
            image_bytes=state["imageBytes"],
            containerd=Path(state["containerd"]),
            kubeconfig=Path(state["kubeconfig"]),
            bin=Path(state["bin"]),
            tools=Path(state["tools"]),
            prometheus=Path(state["prometheus"]),
            monitoring=Path(state["monitoring"]),
        )

    def kubectl(self, *arguments: str, text: str | None = None, seconds: float = 60) -> str:
        """Output of kubectl as cluster admin; RuntimeError with its message if it fails."""
        return self._run([str(self.bin / "kubectl"), *arguments], text, seconds)

    def helm(self, *arguments: str, seconds: float = 180) -> str:
        """Output of helm as cluster admin; RuntimeError with its message if it fails."""
        return self._run([str(self.tools / "helm"), *arguments], None, seconds)

    def install(self, *settings: str) -> None:
        """Installs the chart with this checkout's images, or changes it; `settings` as of helm --set. Waits for it."""
        labels = {"pod-security.kubernetes.io/enforce": "restricted"}
        self.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SYSTEM, "labels": labels}})
        values = [*settings]
        for key, target in (("image", "operator"), ("runner.image", "runner")):
            repository, _, tag = self.images[target].rpartition(":")
            values += [f"{key}.repository={repository}", f"{key}.tag={tag}"]
        chart = str(HERE.parents[1] / "helm" / "modelpress")
        command = ["upgrade", "--install", RELEASE, chart, "--namespace", SYSTEM, "--wait", "--timeout", "150s"]
        try:
            self.helm(*command, "--set", ",".join(values))
        except RuntimeError as error:
            raise RuntimeError(f"{error}\n{self.story(SYSTEM)}") from None

    def _run(self, command: list[str], text: str | None, seconds: float) -> str:
        environment = os.environ | {"KUBECONFIG": str(self.kubeconfig)}
        done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=seconds, env=environment)
        if done.returncode:
            raise RuntimeError(f"{Path(command[0]).name} {' '.join(command[1:])}: {done.stderr.strip()}")
        return done.stdout

    def on_node(self, *command: str) -> str:
        """Output of a command in the node's own file system, processes and network, as root."""
        outermost = (self.folder / "pid").read_text().strip()
        first = Path(f"/proc/{outermost}/task/{outermost}/children").read_text().split()[0]
        return self._run(["nsenter", "--target", first, "--mount", "--pid", "--net", "--", *command], None, 60)

    def rendered(self, **settings: str) -> list[dict[str, Any]]:
        """All objects of the chart as helm renders them for the operator's namespace; settings as of helm --set."""
        values = ",".join(f"{key.replace('__', '.')}={value}" for key, value in settings.items())
        version = json.loads(self.kubectl("version", "-o", "json"))["serverVersion"]["gitVersion"]
        command = ["template", RELEASE, str(HERE.parents[1] / "helm" / "modelpress"), "--namespace", SYSTEM]
        text = self.helm(*command, f"--kube-version={version}", *(["--set", values] if values else []))
        return [document for document in yaml.load_all(text, Loader=yaml.CSafeLoader) if document]

    def get(self, kind: str, name: str, namespace: str) -> dict[str, Any]:
        """One object."""
        found: dict[str, Any] = json.loads(self.kubectl("get", kind, name, "--namespace", namespace, "-o", "json"))
        return found

    def list(self, kind: str, namespace: str, selector: str = "") -> list[dict[str, Any]]:
        """All objects of a kind in a namespace, or those that a label selector chooses."""
        found = self.kubectl("get", kind, "--namespace", namespace, "--selector", selector, "-o", "json")
        items: list[dict[str, Any]] = json.loads(found)["items"]
        return items

    def apply(self, *objects: Mapping[str, Any]) -> None:
        """Creates or changes objects; each names its namespace."""
        self.kubectl("apply", "-f", "-", text=json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))

    def create(self, *objects: Mapping[str, Any]) -> None:
        """Creates objects, refused when there."""
        self.kubectl("create", "-f", "-", text=json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))

    def output(self, namespace: str, image: str, command: Sequence[str], *, name: str = "once") -> str:
        """What a command prints in a restricted pod of the image; AssertionError with it where it fails."""
        self.create(restricted_pod(name, namespace, image, command))
        phase = self.finished("pod", name, namespace)
        log = self.kubectl("logs", name, "--namespace", namespace)
        assert phase == "Succeeded", f"{' '.join(command)} in {image} failed:\n{log}"
        return log

    def layers(self, target: str) -> Iterator[Iterator[bytes]]:
        """The layers of an image, base first: each in chunks, not compressed."""
        ctr = ["ctr", "--address", str(self.containerd), "--namespace", "k8s.io"]
        listed = self._run([*ctr, "images", "ls", f"name=={self.images[target]}"], None, 60)
        manifest = json.loads(self._run([*ctr, "content", "get", listed.splitlines()[1].split()[2]], None, 60))
        for layer in manifest["layers"]:
            with subprocess.Popen([*ctr, "content", "get", layer["digest"]], stdout=subprocess.PIPE) as process:
                assert process.stdout is not None
                yield iter(functools.partial(process.stdout.read, 1 << 20), b"")

    def finished(self, kind: str, name: str, namespace: str, *, seconds: float = 600) -> str:
        """Waits until a pod has Succeeded or Failed, or a Job, or an object of ours, is Complete or Failed; which.

        Raises:
            Timeout: none of it within `seconds`; the message has what went on.
        """
        if kind == "pod":
            return self.watch(kind, name, namespace, "{.status.phase}", ("Succeeded", "Failed"), seconds=seconds)
        path = '{.status.conditions[?(@.status=="True")].type}'
        return self.watch(kind, name, namespace, path, ("Complete", "Failed"), seconds=seconds)

    def watch(self, kind: str, name: str, namespace: str, path: str, wanted: Sequence[str], *, seconds: float) -> str:
        """Waits until an object is there and a word that a JSONPath of it gives is wanted; the first such word.

        Raises:
            Timeout: none within `seconds`; the message has what went on.
        """
        there = ("wait", "--for=create", f"{kind}/{name}", "--namespace", namespace, f"--timeout={seconds}s")
        self.kubectl(*there, seconds=seconds + 10)
        command = [str(self.bin / "kubectl"), "get", kind, name, "--namespace", namespace, "--watch"]
        output = ["-o", f'jsonpath={path}{{"\\n"}}']
        environment = os.environ | {"KUBECONFIG": str(self.kubeconfig)}
        last = "nothing"
        with subprocess.Popen([*command, *output], stdout=subprocess.PIPE, text=True, env=environment) as process:
            timer = threading.Timer(seconds, process.kill)
            timer.start()
            try:
                assert process.stdout is not None
                for line in process.stdout:
                    last = line.strip() or last
                    for word in wanted:
                        if word in line.split():
                            return word
            finally:
                timer.cancel()
                process.kill()
        text = f"{kind} {name} was not {' or '.join(wanted)} within {seconds} s; {path} was {last}"
        raise Timeout(f"{text}\n{self.story(namespace)}")

    def log_until(self, pod: str, namespace: str, text: str, *, seconds: float = 300) -> list[str]:
        """Follows the log of a pod that has started, from the beginning to the first line with the text.

        Raises:
            Timeout: the log ends without it, or goes on without it for `seconds`.
        """
        command = [str(self.bin / "kubectl"), "logs", "--follow", pod, "--namespace", namespace]
        environment = os.environ | {"KUBECONFIG": str(self.kubeconfig)}
        lines = []
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
            timer = threading.Timer(seconds, process.kill)
            timer.start()
            try:
                assert process.stdout is not None
                for line in process.stdout:
                    lines.append(line.rstrip("\n"))
                    if text in line:
                        return lines
            finally:
                timer.cancel()
                process.kill()
        raise Timeout(f"the log of {pod} has no {text!r}:\n" + "\n".join(lines[-25:]))

    def story(self, namespace: str) -> str:
        """What went on in a namespace: pods, events and the end of each log, for the message of a failed test."""
        parts = []
        for arguments in (("get", "pods", "-o", "wide"), ("get", "events", "--sort-by=.lastTimestamp")):
            with contextlib.suppress(RuntimeError):
                parts.append(self.kubectl(*arguments, "--namespace", namespace))
        for pod in self.list("pods", namespace):
            name = pod["metadata"]["name"]
            with contextlib.suppress(RuntimeError):
                parts.append(f"-- {name}\n" + self.kubectl("logs", name, "--namespace", namespace, "--tail=25"))
        return "\n".join(parts)
