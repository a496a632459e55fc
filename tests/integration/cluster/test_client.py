"""The client on kubernetes.aio against a real API server: its contract, its errors, its authentication."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from control_plane import ControlPlane

from modelpress_operator.aio import AioClient, ConnectionSettingsError, load_configuration
from modelpress_operator.client import ForbiddenError, InvalidError, ServerError, TooManyRequestsError
from modelpress_operator.metrics import Metrics
from modelpress_operator.resources import COMPRESSION_JOBS, LEASES
from modelpress_operator.testing import ClusterClientContract, compression_job, lease

NAMESPACE = "team-a"


@pytest.fixture
def metrics() -> Metrics:
    """A registry of its own."""
    return Metrics()


@pytest.fixture
async def client(control_plane: ControlPlane, metrics: Metrics) -> AsyncIterator[AioClient]:
    """As cluster admin."""
    client = AioClient(await load_configuration(str(control_plane.kubeconfig)), metrics, user_agent="test")
    yield client
    await client.close()


class TestAioClient(ClusterClientContract):
    """See the contract."""

    @pytest.fixture
    def namespace(self) -> str:
        """One that the control plane has."""
        return NAMESPACE


async def test_lists_go_on_page_by_page(client: AioClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """A listing that takes several pages is complete."""
    monkeypatch.setattr("modelpress_operator.aio.PAGE", 2)
    body = lease("paged")
    body["metadata"]["labels"] = {"test": "paged"}
    names = [f"paged-{number}" for number in range(5)]
    for name in names:
        await client.create(LEASES, NAMESPACE, {**body, "metadata": {**body["metadata"], "name": name}})
    found = await client.list(LEASES, NAMESPACE, labels={"test": "paged"})
    assert [one["metadata"]["name"] for one in found] == names


async def test_an_unknown_field_is_refused(client: AioClient) -> None:
    """Creation is strict: nothing is pruned in silence."""
    body = compression_job("strict")
    body["spec"]["stagez"] = []
    with pytest.raises(InvalidError, match="stagez"):
        await client.create(COMPRESSION_JOBS, NAMESPACE, body)


async def test_reads_the_public_keys(client: AioClient) -> None:
    """Those that service-account tokens are signed with, whatever type the server gives them."""
    assert (await client.read("/.well-known/openid-configuration"))["issuer"] == "https://kubernetes.default.svc"
    assert [key["kty"] for key in (await client.read("/openid/v1/jwks"))["keys"]] == ["RSA"]


async def test_without_rights(control_plane: ControlPlane, metrics: Metrics) -> None:
    """A service account's token signs in; what it may not do is ForbiddenError, a bad token too; both are counted."""
    path = f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/default/token"
    token = control_plane.request("POST", path, {"spec": {"expirationSeconds": 600}})["status"]["token"]
    for name, text in (("nobody", token), ("wrong", "wrong")):
        kubeconfig = control_plane.write_kubeconfig(name, token=text)
        client = AioClient(await load_configuration(str(kubeconfig)), metrics, user_agent="test")
        with pytest.raises(ForbiddenError) as caught:
            await client.get(LEASES, NAMESPACE, "any")
        await client.close()
        assert caught.value.status == (403 if name == "nobody" else 401)
    assert metrics.api_requests.labels("get", "leases", "403")._value.get() == 1


async def test_nobody_answers(control_plane: ControlPlane, metrics: Metrics, tmp_path: Path) -> None:
    """A server that is not there is ServerError, with the address in its text."""
    config = json.loads(control_plane.kubeconfig.read_text())
    config["clusters"][0]["cluster"]["server"] = "https://127.0.0.1:1"
    path = tmp_path / "kubeconfig"
    path.write_text(json.dumps(config))
    client = AioClient(await load_configuration(str(path)), metrics, user_agent="test")
    with pytest.raises(ServerError, match=r"127\.0\.0\.1:1"):
        await client.get(LEASES, NAMESPACE, "any")
    await client.close()


async def test_no_cluster_is_named(tmp_path: Path) -> None:
    """Neither a pod's token nor a kubeconfig: one sentence that says what to do."""
    with pytest.raises(ConnectionSettingsError, match="--kubeconfig"):
        await load_configuration(str(tmp_path / "nothing"))


async def test_a_server_that_asks_to_wait(control_plane: ControlPlane, metrics: Metrics, tmp_path: Path) -> None:
    """429 is tried again after what Retry-After says; a server that always says it gets four tries."""
    pair, asked, patience = control_plane.server_pair, [0], [2]
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(pair.certificate, pair.key)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while (await reader.readuntil(b"\r\n\r\n")) and asked[0] < 100:
            asked[0] += 1
            body = b'{"kind": "Lease", "metadata": {}}'
            if asked[0] <= patience[0]:
                body = b'{"kind": "Status", "message": "slow down"}'
                writer.write(b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 0\r\n")
            else:
                writer.write(b"HTTP/1.1 200 OK\r\n")
            writer.write(b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
            await writer.drain()

    def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.append(asyncio.ensure_future(answer(reader, writer)))
        writers.append(writer)

    tasks: list[asyncio.Future[None]] = []
    writers: list[asyncio.StreamWriter] = []
    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    config = json.loads(control_plane.kubeconfig.read_text())
    config["clusters"][0]["cluster"]["server"] = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    path = tmp_path / "kubeconfig"
    path.write_text(json.dumps(config))
    client = AioClient(await load_configuration(str(path)), metrics, user_agent="test")
    try:
        assert await client.get(LEASES, NAMESPACE, "any") == {"kind": "Lease", "metadata": {}}
        assert asked[0] == 3
        patience[0] = 50
        with pytest.raises(TooManyRequestsError, match="slow down"):
            await client.get(LEASES, NAMESPACE, "any")
        assert asked[0] == 7
    finally:
        await client.close()
        for writer in writers:
            writer.close()
        await asyncio.gather(*tasks, return_exceptions=True)
        server.close()
        await server.wait_closed()
