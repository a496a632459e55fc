"""Why a child Job's runner has not started yet, as a reason of ours and a sentence with the cluster's words."""

from __future__ import annotations

import re

from modelpress.api.v1alpha1 import reasons as r

from .conditions import cut
from .model import ObservedJob

# What the kubelet, the scheduler and the Job controller say, by what it means to whoever must act:
# https://github.com/kubernetes/kubernetes, pkg/kubelet/images/types.go and pkg/scheduler.
_MEANS = {
    "Queued": r.QUEUED,
    "FailedCreate": r.PODS_REFUSED,
    "Unschedulable": r.UNSCHEDULABLE,
    "SchedulingGated": r.UNSCHEDULABLE,
    "SchedulerError": r.UNSCHEDULABLE,
    "ImagePullBackOff": r.IMAGE_UNAVAILABLE,
    "ImageInspectError": r.IMAGE_UNAVAILABLE,
    "ErrImagePull": r.IMAGE_UNAVAILABLE,
    "ErrImageNeverPull": r.IMAGE_UNAVAILABLE,
    "InvalidImageName": r.IMAGE_UNAVAILABLE,
    "RegistryUnavailable": r.IMAGE_UNAVAILABLE,
    "SignatureValidationFailed": r.IMAGE_UNAVAILABLE,
}
_MAX_DETAIL = 600
# What the scheduler says of all nodes, and of how many it says that nothing would change if their pods went:
# pkg/scheduler/framework, types.go and preemption/preemption.go.
_OF_ALL = re.compile(r"0/(\d+) nodes are available: (.+?)\.(?: |$)")
_UNHELPED = re.compile(r"preemption: 0/\d+ nodes are available: (\d+) Preemption is not helpful for scheduling")
# Reasons that last as long as the nodes are what they are; what else it says (cordoned, tainted) may pass by itself.
_LACKS = re.compile(r"\d+ Insufficient \S+")
_LASTS = re.compile(r"\d+ (?:Insufficient \S+|node\(s\) didn't (?:match Pod's node|satisfy plugin).*)")


def pending_reason(who: str, child: ObservedJob | None) -> tuple[str | None, str]:
    """The reason, None while nothing speaks against a start, and a sentence about `who`."""
    if child is None or child.state != "pending" or not child.reason:
        return None, f"{who} waits for its runner to start."
    detail = cut(child.detail.strip(), _MAX_DETAIL) if child.detail else ""
    if detail and detail[-1] not in ".!?…":
        detail += "."
    text = f"{who} waits for its runner to start ({cut(child.reason, 64)})"
    if fits_no_node(child.detail or ""):
        text = f"{who} asks for more than any node of the cluster has; ask for less, or add a larger node"
        return r.NO_NODE_FITS, f"{text}: {detail}"
    return _MEANS.get(child.reason, r.POD_NOT_STARTED), f"{text}: {detail}" if detail else f"{text}."


def fits_no_node(said: str) -> bool:
    """Whether, by what the scheduler says, no node could take the pod even if it were empty: some have too little of
    what is asked for, the others are not those that the pod selects."""
    found, unhelped = _OF_ALL.search(said), _UNHELPED.search(said)
    if found is None or unhelped is None or found[1] != unhelped[1]:
        return False
    why = found[2].split(", ")
    return all(_LASTS.fullmatch(item) for item in why) and any(_LACKS.fullmatch(item) for item in why)
