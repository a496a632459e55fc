"""Objects that nobody should have written, against the operator's process on a real API server.

After each batch an honest job still completes, the process is the same one, and it is ready.
"""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Iterator
from typing import Any

import pytest
from fake_kubelet import Fate
from hostile import OPEN, OWNER, Poster, objects
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from operator_cluster import Cluster, condition, job, sweep
from operator_process import OperatorProcess, until

BATCHES, OF_A_BATCH = 5, 8
_count = itertools.count()


@pytest.fixture(scope="module")
def among(shared_cluster: Cluster) -> Iterator[tuple[Cluster, OperatorProcess]]:
    """A namespace with an operator."""
    with shared_cluster.operator() as operator:
        operator.wait_ready()
        yield shared_cluster, operator


@pytest.fixture(scope="module")
def post(shared_cluster: Cluster) -> Iterator[Poster]:
    """Raw bodies to the API server."""
    poster = Poster(shared_cluster.plane)
    with contextlib.closing(poster):
        yield poster


def honest(cluster: Cluster, operator: OperatorProcess) -> None:
    """A job completes, by the same process, which is ready."""
    pid, name = operator.pid, f"honest-{next(_count)}"
    cluster.create(job(name))
    cluster.wait_for("CompressionJob", name, "Succeeded")
    assert (operator.running, operator.pid) == (True, pid)
    assert operator.get("/readyz")[0] == 200


def with_args(name: str, raw: str) -> str:
    """A CompressionJob whose model takes these arguments, as text."""
    body = job(name, model={"entrypoint": "digits:create", "args": {"a": OPEN}})
    return json.dumps(body).replace(f'"{OPEN}"', raw)


def test_deep_and_large_objects(among: tuple[Cluster, OperatorProcess], post: Poster) -> None:
    """Stalled with the reason, while the operator lives and after it has started again over them."""
    cluster, operator = among
    wanted = {}
    for depth in (100, 400, 1200, 9000):
        wanted[f"deep-{depth}"] = "InvalidSpec"
        assert (
            post(cluster.namespace, "CompressionJob", with_args(f"deep-{depth}", "[" * depth + "]" * depth))[0] == 201
        )
    for name, part in (("maps", '{"k":{}}'), ("lists", "[[],[]]"), ("text", '"' + "😀" * 20 + '"')):
        wanted[name] = "SpecTooLarge"
        raw = "[" + ",".join([part] * (700_000 // len(part.encode()))) + "]"
        assert post(cluster.namespace, "CompressionJob", with_args(name, raw))[0] == 201

    def stalled() -> bool:
        reason = '{.status.conditions[?(@.type=="Stalled")].reason}'
        path = '{range .items[*]}{.metadata.name}{" "}' + reason + '{"\\n"}{end}'
        get = ("--namespace", cluster.namespace, "get", "compressionjobs", "--output", f"jsonpath={path}")
        found = dict(line.partition(" ")[::2] for line in cluster.plane.kubectl(*get).splitlines())
        return {name: found.get(name) for name in wanted} == wanted

    until(stalled, "all of them to be Stalled", context=operator.tail)
    honest(cluster, operator)
    operator.kill()
    operator.start()
    operator.wait_ready()
    honest(cluster, operator)
    assert stalled()
    assert not [line for line in operator.lines() if "error" in line]


def test_a_forged_trial_on_a_real_api_server(among: tuple[Cluster, OperatorProcess], post: Poster) -> None:
    """A job that says that it is trial 5 and has the best of scores: the search has its own six, and that one waits."""
    cluster, operator = among
    cluster.kubelet.script = lambda run: Fate(run=0.3)
    uid = cluster.create(sweep("search", 6, 2))["metadata"]["uid"]
    body = job("search-00011")
    body["metadata"] |= {
        "ownerReferences": [OWNER | {"name": "search", "uid": uid}],
        "labels": {"modelpress.dev/trial": "5", "modelpress.dev/sweep": "search"},
        "annotations": {
            "modelpress.dev/parameters": '{"sparsity": 0.9}',
            "modelpress.dev/history": "finished=;running=",
        },
    }
    assert post(cluster.namespace, "CompressionJob", json.dumps(body))[0] == 201
    until(lambda: cluster.get("CompressionSweep", "search").get("status", {}).get("created"), "the first trials")
    note = {
        "metadata": {"annotations": {"modelpress.dev/parameters": "9" * 5000}, "labels": {"modelpress.dev/trial": "x"}}
    }
    cluster.patch("CompressionJob", "search-00000", note)
    done = cluster.wait_for("CompressionSweep", "search", "Succeeded", "Failed")["status"]
    assert (done["phase"], done["trials"]["succeeded"]) == ("Succeeded", 6)
    assert done["best"]["number"] in range(6)
    cluster.wait_condition("CompressionJob", "search-00011", "Stalled", status="True", reason="ForgedTrial")
    assert [run for run in cluster.kubelet.of(cluster.namespace) if run.request["name"] == "search-00011"] == []
    honest(cluster, operator)


def test_whatever_is_written(among: tuple[Cluster, OperatorProcess], post: Poster) -> None:
    """Generated objects, batch by batch."""
    cluster, operator = among
    uid = cluster.create(sweep("victim", 3, 1))["metadata"]["uid"]
    taken: dict[int, int] = {}

    @settings(
        max_examples=BATCHES,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(batch=st.lists(objects("victim", uid), min_size=OF_A_BATCH, max_size=OF_A_BATCH))
    def written(batch: list[tuple[str, str]]) -> None:
        for kind, text in batch:
            status, _ = post(cluster.namespace, kind, text)
            assert status < 500
            taken[status] = taken.get(status, 0) + 1
        honest(cluster, operator)

    written()
    assert taken.get(201, 0) >= BATCHES * OF_A_BATCH // 3, taken
    done: dict[str, Any] = cluster.wait_for("CompressionSweep", "victim", "Succeeded", "Failed", "Pending")["status"]
    assert done["trials"]["succeeded"] == 3 or condition({"status": done}, "Stalled")["reason"] == "NameConflict"
