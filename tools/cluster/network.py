"""The test cluster's network: one bridge in a network namespace without a way out.

The namespace has a loopback interface and this bridge, and no route to anywhere else: what a pod sends cannot leave the
machine, and all of it, with every iptables rule, ends with the namespace.
"""

from __future__ import annotations

import ipaddress
import json
import subprocess
from pathlib import Path
from typing import Any

BRIDGE = "modelpress0"
POD_CIDR = "10.244.0.0/24"
SERVICE_CIDR = "10.96.0.0/16"
NODE_ADDRESS = str(next(ipaddress.ip_network(POD_CIDR).hosts()))  # the bridge's, and the pods' gateway
PLUGINS = Path("/usr/lib/cni")


def set_up(folder: Path) -> Path:
    """Makes the bridge; returns the folder of the CNI configuration for pods on it."""
    prefix = ipaddress.ip_network(POD_CIDR).prefixlen
    for command in (
        "ip link set lo up",
        f"ip link add {BRIDGE} type bridge",
        f"ip address add {NODE_ADDRESS}/{prefix} dev {BRIDGE}",
        f"ip link set {BRIDGE} up",
        # Should somebody give the namespace a way out, what pods send still ends here.
        f"iptables -A FORWARD -s {POD_CIDR} ! -d {POD_CIDR} -j DROP",
    ):
        subprocess.run(command.split(), check=True)
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
    configuration = folder / "cni"
    configuration.mkdir()
    (configuration / "10-bridge.conflist").write_text(json.dumps(_pods(folder / "addresses"), indent=2))
    return configuration


def _pods(addresses: Path) -> dict[str, Any]:
    bridge = {
        "type": "bridge",
        "bridge": BRIDGE,
        "isGateway": True,
        "ipMasq": False,
        "hairpinMode": True,
        "ipam": {
            "type": "host-local",
            "ranges": [[{"subnet": POD_CIDR, "gateway": NODE_ADDRESS}]],
            "routes": [{"dst": "0.0.0.0/0"}],
            "dataDir": str(addresses),
        },
    }
    ports = {"type": "portmap", "capabilities": {"portMappings": True}}
    return {"cniVersion": "1.0.0", "name": "pods", "plugins": [bridge, ports]}
