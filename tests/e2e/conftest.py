"""A running cluster of one real node, and a namespace in it for each test."""

from __future__ import annotations

import base64
import secrets
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools" / "cluster"))

from running import IDLE, NotInCluster, Running  # noqa: E402


@pytest.fixture(scope="session")
def cluster() -> Running:
    """The cluster that `make e2e` started, with the chart installed; its operator serves an empty namespace."""
    try:
        running = Running.find()
    except NotInCluster as error:
        pytest.exit(str(error), returncode=2)
    running.install("replicas=1", f"watchNamespaces={{{IDLE}}}")
    running.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=60s")
    return running


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
