"""Progress on a real API server: its keys, its token for a real pod, and a status that it stores."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from aiohttp import web
from control_plane import ControlPlane
from operator_process import make_account, until

from modelpress_operator.aio import AioClient, load_configuration
from modelpress_operator.cache import Cache
from modelpress_operator.metrics import Metrics
from modelpress_operator.progress import CachedPods, KeySet, ProgressServer, StatusWrites, TokenVerifier
from modelpress_operator.resources import COMPRESSION_JOBS, JOBS, PODS
from modelpress_runner.process.progress import Event, silent
from modelpress_runner.process.push import ProgressPush

NAMESPACE, AUDIENCE = "progress", "modelpress-progress"
API = f"/apis/modelpress.dev/v1alpha1/namespaces/{NAMESPACE}/compressionjobs"
CORE = f"/api/v1/namespaces/{NAMESPACE}"
SPEC = {
    "model": {"entrypoint": "digits:create"},
    "stages": [{"finetune": {"epochs": 1}}],
    "store": {"uri": "s3://models/out"},
}


class Leading:
    """The only replica."""

    held = True
    leader_address = None


def started_trial(cluster: ControlPlane) -> dict[str, Any]:
    """A CompressionJob in its first attempt; the pod that the Job controller made for its Job."""
    meta = {"name": "one"}
    body = {"apiVersion": "modelpress.dev/v1alpha1", "kind": "CompressionJob", "metadata": meta, "spec": SPEC}
    job = cluster.request("POST", API, body)
    status = {"status": {"observedGeneration": 1, "phase": "Running", "started": 1}}
    cluster.request("PATCH", f"{API}/one/status", status, content_type="application/merge-patch+json")
    labels = {"modelpress.dev/job": "one", "modelpress.dev/attempt": "1", "modelpress.dev/purpose": "trial"}
    owner = {
        "apiVersion": "modelpress.dev/v1alpha1",
        "kind": "CompressionJob",
        "name": "one",
        "uid": job["metadata"]["uid"],
        "controller": True,
    }
    container = {"name": "runner", "image": "none"}
    child = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "one-1", "labels": labels, "ownerReferences": [owner]},
        "spec": {
            "template": {
                "metadata": {"labels": labels},
                "spec": {"restartPolicy": "Never", "containers": [container]},
            }
        },
    }
    cluster.request("POST", f"/apis/batch/v1/namespaces/{NAMESPACE}/jobs", child)
    pods = f"{CORE}/pods?labelSelector=modelpress.dev/job%3Done"
    until(lambda: bool(cluster.request("GET", pods)["items"]), "the Job's pod")
    pod: dict[str, Any] = cluster.request("GET", pods)["items"][0]
    return pod


def token_for(cluster: ControlPlane, pod: dict[str, Any] | None, audience: str = AUDIENCE) -> str:
    """A token as the kubelet asks for it when it projects one into a pod."""
    spec: dict[str, Any] = {"audiences": [audience], "expirationSeconds": 3600}
    if pod is not None:
        meta = pod["metadata"]
        spec["boundObjectRef"] = {"apiVersion": "v1", "kind": "Pod", "name": meta["name"], "uid": meta["uid"]}
    answer = cluster.request("POST", f"{CORE}/serviceaccounts/default/token", {"spec": spec})
    return str(answer["status"]["token"])


async def test_a_pods_report_becomes_its_jobs_status(control_plane: ControlPlane, tmp_path: Path) -> None:
    """From the runner's side to the stored status, with the operator's least rights; other tokens get nowhere."""
    control_plane.request("POST", "/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
    kubeconfig = make_account(control_plane, NAMESPACE)
    until(lambda: bool(control_plane.request("GET", f"{CORE}/serviceaccounts")["items"]), "the service accounts")
    pod = await asyncio.to_thread(started_trial, control_plane)
    client = AioClient(await load_configuration(str(kubeconfig)), Metrics(), user_agent="test")
    cache = Cache()
    for resource in (COMPRESSION_JOBS, JOBS, PODS):
        for obj in await client.list(resource, NAMESPACE):
            cache.put(resource, obj)
    writes, counted = StatusWrites(client, cache, lambda: None), []
    server = ProgressServer(
        TokenVerifier(KeySet(client.read), AUDIENCE), CachedPods(cache), Leading(), writes.accept, count=counted.append
    )
    app = web.Application()
    app.add_routes(server.routes())
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}/progress"
    writing = asyncio.create_task(writes.run())
    token = tmp_path / "token"
    try:
        for other in (token_for(control_plane, None), token_for(control_plane, pod, "https://kubernetes.default.svc")):
            token.write_text(other)
            report = ProgressPush(url, token, silent)
            report(Event("finetune", 1, 3, "chunk", 0.1))
            await asyncio.to_thread(report.close)
        assert set(counted) == {401}
        token.write_text(token_for(control_plane, pod))
        report = ProgressPush(url, token, silent)
        for step, value in ((1, 0.5), (2, 0.75)):
            report(Event("finetune", step, 3, "chunk", value))
        await asyncio.to_thread(report.close)
        assert counted[-1] == 202

        def status() -> dict[str, Any]:
            found: dict[str, Any] = control_plane.request("GET", f"{API}/one")["status"]
            return found

        await asyncio.to_thread(until, lambda: "progress" in status(), "the progress in the status")
        written = status()
        assert written["progress"].items() >= {"stage": "finetune", "total": 3}.items()
        assert written["intermediate"][0] == {"step": 1, "value": 0.5}
        assert written["phase"] == "Running"
    finally:
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)
        await runner.cleanup()
        await client.close()
