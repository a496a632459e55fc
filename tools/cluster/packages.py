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
}


class MissingError(Exception):
    """Something is missing that this cannot install; the message says what to do."""


def install() -> None:
    """Installs the packages that are missing.

    Raises:
        MissingError: not root, not on Debian, or apt-get failed.
    """
    if os.geteuid() != 0:
        raise MissingError("a node needs root: namespaces, mounts and cgroups; run this as root on a machine for tests")
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


def _there(name: str) -> bool:
    if name.startswith("/"):
        return Path(name).exists()
    return shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin") is not None
