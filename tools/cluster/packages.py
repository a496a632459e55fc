"""The system packages that a node needs, installed from Debian's where they are missing."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from images import say

# What must be there -> the Debian package that has it.
NEEDED = {
    "containerd": "containerd",
    "ctr": "containerd",
    "runc": "runc",
    "/usr/lib/cni/bridge": "containernetworking-plugins",
    "iptables": "iptables",
    "conntrack": "conntrack",
    "ip": "iproute2",
    "buildah": "buildah",
    "skopeo": "skopeo",
    "debootstrap": "debootstrap",
    "unshare": "util-linux",
    "nsenter": "util-linux",
    "pkill": "procps",
}


CGROUPS = Path("/sys/fs/cgroup")
COLD_BYTES = 26_000_000_000  # the images twice, buildah's and containerd's, and what pip unpacks meanwhile
WARM_BYTES = 4_000_000_000


class MissingError(Exception):
    """Something is missing that this cannot install; the message says what to do."""


def install() -> None:
    """Installs the packages that are missing.

    Raises:
        MissingError: not on Debian, or apt-get failed.
    """
    missing = sorted({package for name, package in NEEDED.items() if not _there(name)})
    if not missing:
        return
    if shutil.which("apt-get") is None:
        raise MissingError(f"these are missing, and there is no apt-get to install them with: {', '.join(missing)}")
    say(f"installing {', '.join(missing)}")
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for arguments in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", *missing]):
        done = subprocess.run(["apt-get", *arguments], env=environment, capture_output=True, text=True)
        if done.returncode:
            raise MissingError(f"apt-get {' '.join(arguments)} failed:\n{(done.stdout + done.stderr)[-2000:]}")


def check(folder: Path) -> None:
    """Whether this machine can be a node, and keep images below `folder`.

    Raises:
        MissingError: it cannot; the message says what it lacks.
    """
    where = "run this as root on a machine or in a virtual machine for tests, or in a privileged container"
    if os.geteuid() != 0:
        raise MissingError(f"a node needs root, for namespaces, mounts and cgroups; {where}")
    unshare = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "true"]
    tried = subprocess.run(unshare, capture_output=True, text=True)
    if tried.returncode:
        raise MissingError(f"the kernel refuses new namespaces ({tried.stderr.strip()}); {where}")
    hierarchies = [path.parent for path in (*CGROUPS.glob("cgroup.procs"), *CGROUPS.glob("*/cgroup.procs"))]
    if not hierarchies:
        raise MissingError(f"no cgroups are mounted below {CGROUPS}; {where}")
    for hierarchy in hierarchies[:1]:
        probe = hierarchy / f"modelpress-probe-{os.getpid()}"
        try:
            probe.mkdir()
            probe.rmdir()
        except OSError as error:
            raise MissingError(f"no cgroup can be made in {hierarchy} ({error.strerror}); {where}") from None
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    needed = WARM_BYTES if any(folder.glob("images-*/containerd")) else COLD_BYTES
    if free < needed:
        raise MissingError(
            f"{folder} has {free / 1e9:.0f} GB free and {needed / 1e9:.0f} GB are needed; "
            "free some, or set MODELPRESS_CACHE to a folder on a larger disk"
        )


def _there(name: str) -> bool:
    if name.startswith("/"):
        return Path(name).exists()
    return shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin") is not None
