"""A running cluster of one real node, and a namespace in it for each test."""

from __future__ import annotations

import base64
import fcntl
import secrets
from collections.abc import Iterator

import pytest
from running import NotInCluster, Running


@pytest.fixture(scope="session")
def cluster() -> Running:
    """The cluster that `make e2e` started."""
    try:
        return Running.find()
    except NotInCluster as error:
        pytest.exit(str(error), returncode=2)


@pytest.fixture(scope="session")
def operator(cluster: Running) -> Running:
    """The chart installed: two replicas of the operator, ready, that serve all namespaces."""
    with open(cluster.folder / "install.lock", "a+") as lock:  # by the first of several workers
        fcntl.flock(lock, fcntl.LOCK_EX)
        if lock.tell() == 0:
            cluster.install("replicas=2")
            lock.write("installed\n")
    return cluster


@pytest.fixture
def namespace(cluster: Running) -> Iterator[str]:
    """An empty namespace under PodSecurity `restricted`, with the S3 server's credentials in the Secret models-s3."""
    name = f"e2e-{secrets.token_hex(4)}"
    encoded = {key: base64.b64encode(value.encode()).decode() for key, value in cluster.s3.credentials.items()}
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    cluster.create(
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}},
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "models-s3", "namespace": name}, "data": encoded},
    )
    yield name
    cluster.kubectl("delete", "namespace", name, "--wait=false")
