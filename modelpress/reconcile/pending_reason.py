"""Why a child Job's runner has not started yet, as a reason of ours and a sentence with the cluster's words."""

from __future__ import annotations

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


def pending_reason(who: str, child: ObservedJob | None) -> tuple[str | None, str]:
    """The reason, None while nothing speaks against a start, and a sentence about `who`."""
    if child is None or child.state != "pending" or not child.reason:
        return None, f"{who} waits for its runner to start."
    detail = cut(child.detail.strip(), _MAX_DETAIL) if child.detail else ""
    if detail and detail[-1] not in ".!?…":
        detail += "."
    text = f"{who} waits for its runner to start ({cut(child.reason, 64)})"
    return _MEANS.get(child.reason, r.POD_NOT_STARTED), f"{text}: {detail}" if detail else f"{text}."
