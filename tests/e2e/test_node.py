"""The cluster itself: where its traffic can go, names and addresses."""

from __future__ import annotations

import json
import subprocess

from running import Running


def test_nothing_leads_out_of_the_clusters_network(cluster: Running) -> None:
    """The network namespace has a loopback, one bridge and its pods' ends; the only route is to the pods."""
    routes = json.loads(subprocess.run(["ip", "-json", "route"], check=True, capture_output=True).stdout)
    assert [route["dst"] for route in routes] == ["10.244.0.0/24"]
    links = json.loads(subprocess.run(["ip", "-json", "link"], check=True, capture_output=True).stdout)
    assert {link["ifname"].rstrip("0123456789abcdef") for link in links} <= {"lo", "modelpress", "veth"}


def test_a_pod_finds_services_by_name(cluster: Running, namespace: str) -> None:
    """A pod resolves a Service in the cluster's DNS and reaches what is behind it: the API server and the S3 server."""
    program = (
        "import socket, urllib.request as u, urllib.error as e\n"
        "print(socket.gethostbyname('kubernetes.default.svc'))\n"
        "socket.create_connection(('kubernetes.default.svc', 443), 10).close()\n"
        "try: u.urlopen('http://s3.storage.svc:9000/', timeout=10)\n"
        "except e.HTTPError as error: print(error.code)\n"
    )
    printed = cluster.output(namespace, cluster.images["operator"], ["python", "-c", program]).split()
    assert printed == ["10.96.0.1", "403"]  # no credentials
