"""One real API server for each file of tests: what one file installs or leaves behind meets no other."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT / "tools" / "cluster"), str(Path(__file__).resolve().parent)]

from control_plane import ControlPlane  # noqa: E402


@pytest.fixture(scope="module")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """etcd, kube-apiserver and kube-controller-manager, with the CRDs of crds/ established."""
    with ControlPlane(tmp_path_factory.mktemp("control-plane"), audit=True) as cluster:
        cluster.kubectl("apply", "--server-side", "-f", str(ROOT / "crds"))
        cluster.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=60s")
        cluster.kubectl("create", "namespace", "team-a")
        yield cluster
