"""Starts the operator with the smallest rendering that the fake kubelet can play."""

from __future__ import annotations

import sys
from typing import Any

import modelpress_operator.__main__ as operator_main
from modelpress.reconcile import CreateJob


def render(action: CreateJob, owner: dict[str, Any]) -> list[dict[str, Any]]:
    """One Job of one container."""
    meta = owner["metadata"]
    labels = {
        "app.kubernetes.io/managed-by": "modelpress-operator",
        f"modelpress.dev/{'job' if owner['kind'] == 'CompressionJob' else 'sweep'}": meta["name"],
        "modelpress.dev/attempt": str(action.attempt),
        "modelpress.dev/purpose": action.purpose,
    }
    reference = {"apiVersion": owner["apiVersion"], "kind": owner["kind"], "name": meta["name"], "uid": meta["uid"]}
    on_exit = [{"containerName": "runner", "operator": "In", "values": [code]} for code in (2, 143)]
    pods = [{"type": "DisruptionTarget", "status": "True"}]
    rules = [*({"onExitCodes": rule} for rule in on_exit), {"onPodConditions": pods}]
    return [
        {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {
                "name": action.name,
                "namespace": meta["namespace"],
                "labels": labels,
                "ownerReferences": [{**reference, "controller": True}],
            },
            "spec": {
                "backoffLimit": 0,
                "podFailurePolicy": {"rules": [{"action": "FailJob", **rule} for rule in rules]},
                "template": {
                    "metadata": {
                        "labels": labels,
                        "annotations": {"modelpress.dev/spec": action.request.model_dump_json(exclude_none=True)},
                    },
                    "spec": {"restartPolicy": "Never", "containers": [{"name": "runner", "image": "fake"}]},
                },
            },
        }
    ]


if __name__ == "__main__":
    operator_main._render = lambda settings: render
    sys.exit(operator_main.main())
