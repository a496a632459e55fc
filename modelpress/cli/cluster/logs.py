"""`modelpress logs`: what the newest runner of a job or a sweep writes."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from modelpress.api.podtemplate import CONTAINER
from modelpress.api.v1alpha1.base import GROUP
from modelpress.cli.exits import Exit
from modelpress.control_characters import escape_control_characters

from . import views
from .connection import JOB, PODS, Cluster, Kind, Raw
from .errors import MissingError, RequestError

POLL_SECONDS = 2.0


def logs(
    cluster: Cluster, name: str, *, follow: bool, trial: int | None, tail: int | None, write: Callable[[bytes], object]
) -> int:
    """Write the log of the newest attempt's pod; with `follow` go on with later attempts until the job has ended.

    Args:
        trial: of a sweep, the number of the trial to look at; None: the newest pod of the sweep or of any trial.
        tail: lines from the end to begin with; None: all.
        write: takes pieces of the log.

    Raises:
        LocalError: the cluster refused or failed, or there is no such object or pod.
    """
    kind, obj = cluster.find(name)
    if trial is not None:
        if kind is JOB:
            raise RequestError(f"--trial: {views.name(obj)} is a CompressionJob, which has no trials; leave it out")
        kind, obj = JOB, cluster.get(JOB, f"{views.name(obj)}-{trial:05d}")
    seen: set[str] = set()
    told = False
    while True:
        pod = _newest(cluster, kind, obj)
        if pod is not None and _started(pod) and views.meta(pod)["uid"] not in seen:
            seen.add(views.meta(pod)["uid"])
            print(f"==> {views.name(pod)} <==", file=sys.stderr)
            for piece in cluster.log(views.name(pod), CONTAINER, follow=follow, tail=tail):
                write(piece)
            if not follow:
                return Exit.DONE
        elif not follow:
            raise MissingError(_nothing(obj, pod))
        obj = cluster.get(kind, views.name(obj))
        if views.is_finished(obj):
            return Exit.DONE
        if not seen and not told:
            print(f"waiting: {escape_control_characters(_nothing(obj, pod))}", file=sys.stderr)
            told = True
        time.sleep(POLL_SECONDS)


def newest(pods: list[Raw]) -> Raw | None:
    """The youngest pod, or the first rank of its Job: the pods of a gang are not made in one moment."""

    def order(pod: Raw) -> tuple[str, int]:
        labels = views.meta(pod).get("labels") or {}
        return str(views.meta(pod).get("creationTimestamp") or ""), int(labels.get(f"{GROUP}/attempt") or 0)

    latest = max(pods, key=order, default=None)
    beside = [pod for pod in pods if _job(pod) == _job(latest)]
    return max(beside, key=lambda pod: (-_rank(pod), order(pod)), default=None)


def _job(pod: Raw | None) -> str | None:
    return None if pod is None else (views.meta(pod).get("labels") or {}).get("batch.kubernetes.io/job-name")


def _rank(pod: Raw) -> int:
    return int((views.meta(pod).get("annotations") or {}).get("batch.kubernetes.io/job-completion-index", "0"))


def _newest(cluster: Cluster, kind: Kind, obj: Raw) -> Raw | None:
    label = f"{GROUP}/{'job' if kind is JOB else 'sweep'}"
    return newest(cluster.all(PODS, labels={label: views.name(obj)}))


def _container(pod: Raw) -> Raw:
    states = views.status(pod).get("containerStatuses") or ()
    return next((item.get("state") or {} for item in states if item.get("name") == CONTAINER), {})


def _started(pod: Raw) -> bool:
    state = _container(pod)
    return "running" in state or "terminated" in state


def _nothing(obj: Raw, pod: Raw | None) -> str:
    """Why there is no log to read."""
    name = views.name(obj)
    if pod is None:
        gone = "its pods are gone" if views.is_finished(obj) else "it has no pod yet"
        return f"{name} is {views.phase(obj)}, and {gone}; see: modelpress status {name}"
    waiting = _container(pod).get("waiting") or {}
    conditions = views.status(pod).get("conditions") or ()
    held: Raw = next((item for item in conditions if item.get("status") == "False" and item.get("message")), {})
    reason = waiting.get("message") or waiting.get("reason") or held.get("message") or "it has not started"
    return f"the pod {views.name(pod)} has no log yet: {reason}"
