"""One real API server for each file of tests: what one file installs or leaves behind meets no other."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]

from control_plane import ControlPlane  # noqa: E402
from fake_kubelet import FakeKubelet, Fate  # noqa: E402
from operator_cluster import Cluster  # noqa: E402
from operator_process import OperatorProcess  # noqa: E402
from warm_processes import WarmProcesses  # noqa: E402

_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """etcd, kube-apiserver and kube-controller-manager, with the CRDs of crds/ established."""
    with ControlPlane(tmp_path_factory.mktemp("control-plane"), audit=True) as cluster:
        cluster.kubectl("apply", "--server-side", "-f", str(ROOT / "crds"))
        cluster.wait_established()
        cluster.kubectl("create", "namespace", "team-a")
        yield cluster


@pytest.fixture(scope="module")
def kubelet(control_plane: ControlPlane) -> Iterator[FakeKubelet]:
    """One fake kubelet for all tests of this file."""
    with FakeKubelet(control_plane) as kubelet:
        yield kubelet


@pytest.fixture
def cluster(
    control_plane: ControlPlane, kubelet: FakeKubelet, operators: WarmProcesses, tmp_path: Path
) -> Iterator[Cluster]:
    """A namespace of its own; pods start at once, run 0.1 s and succeed, unless a test says otherwise."""
    number = next(_numbers)
    kubelet.script = lambda run: Fate()
    yield Cluster(control_plane, kubelet, f"op-{number}", tmp_path, operators)
    kubelet.script = lambda run: Fate()


@pytest.fixture(scope="module")
def shared_cluster(
    control_plane: ControlPlane,
    kubelet: FakeKubelet,
    operators: WarmProcesses,
    tmp_path_factory: pytest.TempPathFactory,
) -> Cluster:
    """One namespace for the tests that need no restart of the operator."""
    return Cluster(control_plane, kubelet, "op-shared", tmp_path_factory.mktemp("shared"), operators)


@pytest.fixture(scope="module")
def shared_operator(shared_cluster: Cluster) -> Iterator[OperatorProcess]:
    """Its operator; it never logs a traceback."""
    with shared_cluster.operator() as operator:
        operator.wait_ready()
        yield operator
        assert operator.running
    assert not [line for line in operator.lines() if "error" in line]


@pytest.fixture
def shared(shared_cluster: Cluster, shared_operator: OperatorProcess) -> Iterator[Cluster]:
    """The shared namespace and its operator; pods succeed at once unless a test says otherwise."""
    shared_cluster.kubelet.script = lambda run: Fate()
    yield shared_cluster
    shared_cluster.kubelet.script = lambda run: Fate()
