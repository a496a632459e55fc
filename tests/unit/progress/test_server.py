"""The progress server: who may report, what is taken, and how often it is written."""

from __future__ import annotations

import asyncio
import base64
import hmac
import json
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import jwt
import pytest
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from modelpress_operator.cache import Cache
from modelpress_operator.client import ServerError
from modelpress_operator.memory import MemoryClient
from modelpress_operator.progress import (
    CachedPods,
    KeySet,
    Message,
    ProgressServer,
    StatusWrites,
    TokenVerifier,
    parse,
)
from modelpress_operator.progress import keys as key_module
from modelpress_operator.resources import COMPRESSION_JOBS, JOBS, PODS, Key, RawObject
from modelpress_runner.process import push
from modelpress_runner.process.progress import Event, silent

ISSUER, AUDIENCE = "https://kubernetes.default.svc", "modelpress-progress"
BODY = {"stage": "finetune", "step": 3, "total": 8, "points": [{"step": 1, "value": 0.5}]}


@dataclass
class ApiServer:
    """Signs tokens as an API server does, and publishes its keys."""

    keys: dict[str, rsa.RSAPrivateKey] = field(default_factory=dict)
    reads: list[str] = field(default_factory=list)
    broken: bool = False
    now: float = 1000.0

    def add_key(self, key_id: str) -> rsa.RSAPrivateKey:
        self.keys[key_id] = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        return self.keys[key_id]

    async def read(self, path: str) -> dict[str, Any]:
        self.reads.append(path)
        if self.broken:
            raise ServerError("no answer")
        if path == key_module.DISCOVERY:
            return {"issuer": ISSUER, "jwks_uri": "https://elsewhere/openid/v1/jwks"}
        items = []
        for key_id, key in self.keys.items():
            item = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(key.public_key()))
            items.append({**item, "kid": key_id, "alg": "RS256", "use": "sig"})
        return {"keys": items}

    def token(self, *, key_id: str = "one", key: Any = None, algorithm: str = "RS256", **changes: Any) -> str:
        now = int(time.time())
        claims: dict[str, Any] = {
            "aud": [AUDIENCE],
            "iss": ISSUER,
            "exp": now + 3600,
            "iat": now,
            "nbf": now,
            "sub": "system:serviceaccount:team-a:default",
            "kubernetes.io": {
                "namespace": "team-a",
                "pod": {"name": "one-1-abcde", "uid": "pod-uid"},
                "serviceaccount": {"name": "default", "uid": "x"},
            },
            **changes,
        }
        claims = {name: value for name, value in claims.items() if value is not None}
        return jwt.encode(claims, key or self.keys[key_id], algorithm=algorithm, headers={"kid": key_id})


@pytest.fixture(scope="module")
def signing() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


@pytest.fixture
def api(signing: rsa.RSAPrivateKey) -> ApiServer:
    return ApiServer({"one": signing})


class Leader:
    """Who leads."""

    def __init__(self) -> None:
        self.held = True
        self.leader_address: str | None = None


def owned(kind: str, name: str, uid: str, **more: Any) -> RawObject:
    meta = {"name": name, "namespace": "team-a", "uid": uid, "resourceVersion": "1", **more}
    return {"kind": kind, "metadata": meta}


def by(kind: str, name: str, uid: str) -> list[dict[str, Any]]:
    return [{"kind": kind, "name": name, "uid": uid, "controller": True}]


def cluster() -> Cache:
    """A CompressionJob `one` in its first attempt, with its Job and pod."""
    cache = Cache()
    job = owned("CompressionJob", "one", "job-uid") | {"status": {"phase": "Running", "started": 1}}
    labels = {"modelpress.dev/job": "one", "modelpress.dev/attempt": "1", "modelpress.dev/purpose": "trial"}
    child = owned("Job", "one-1", "child-uid", labels=labels, ownerReferences=by("CompressionJob", "one", "job-uid"))
    pod = owned("Pod", "one-1-abcde", "pod-uid", labels=labels, ownerReferences=by("Job", "one-1", "child-uid"))
    cache.put(COMPRESSION_JOBS, job)
    cache.put(JOBS, child)
    cache.put(PODS, pod | {"status": {"phase": "Running"}})
    return cache


def change(cache: Cache, resource: Any, name: str, **parts: Any) -> None:
    """A newer version of an object."""
    old = cache.get(resource, "team-a", name)
    assert old is not None
    meta = {**old["metadata"], **parts.pop("metadata", {})}
    meta["resourceVersion"] = str(int(old["metadata"]["resourceVersion"]) + 1)
    assert cache.put(resource, {**old, **parts, "metadata": meta})


@dataclass
class Served:
    """A running progress server, and what it accepted."""

    url: str
    cache: Cache
    leader: Leader
    session: aiohttp.ClientSession
    accepted: list[tuple[Key, Message]] = field(default_factory=list)
    counted: list[int] = field(default_factory=list)

    async def post(self, token: str | None, body: Any = BODY) -> tuple[int, str]:
        """Status and text of the answer."""
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        async with self.session.post(self.url, data=data, headers=headers, allow_redirects=False) as answer:
            return answer.status, (await answer.text()).strip() or answer.headers.get("Location", "")


@pytest.fixture
async def served(api: ApiServer) -> AsyncIterator[Served]:
    """The server over a cache with one running trial."""
    cache, leader = cluster(), Leader()
    async with aiohttp.ClientSession() as session:
        out = Served("", cache, leader, session)
        server = ProgressServer(
            TokenVerifier(KeySet(api.read, clock=lambda: api.now), AUDIENCE),
            CachedPods(cache),
            leader,
            lambda key, message: out.accepted.append((key, message)),
            count=out.counted.append,
        )
        app = web.Application()
        app.add_routes(server.routes())
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        out.url = f"http://127.0.0.1:{runner.addresses[0][1]}/progress"
        yield out
        await runner.cleanup()


# Tokens --------------------------------------------------------------------------------------------------------------


async def test_a_pod_of_a_running_trial_may_report(served: Served, api: ApiServer) -> None:
    """202, and the message is the job's."""
    assert await served.post(api.token()) == (202, "")
    key, message = served.accepted[0]
    assert key == Key(COMPRESSION_JOBS, "team-a", "one")
    assert (message.stage, message.step, message.total) == ("finetune", 3, 8)
    assert served.counted == [202]


HOUR = 3600


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"aud": ["https://kubernetes.default.svc"]}, "invalid audience"),
        ({"aud": None}, "missing required claim"),
        ({"iss": "https://elsewhere"}, "invalid issuer"),
        ({"exp": int(time.time()) - HOUR}, "expired signature"),
        ({"exp": None}, "missing required claim"),
        ({"nbf": int(time.time()) + HOUR}, "immature signature"),
        ({"kubernetes.io": None}, "not bound to a pod"),
        ({"kubernetes.io": {"namespace": "team-a", "serviceaccount": {"name": "x"}}}, "not bound to a pod"),
        ({"kubernetes.io": {"namespace": "team-a", "pod": {"name": "one-1-abcde"}}}, "not bound to a pod"),
        ({"kubernetes.io": [1]}, "not bound to a pod"),
        ({"key_id": "unknown", "key": "made-up"}, "not signed by this cluster"),
    ],
)
async def test_other_tokens_are_refused(served: Served, api: ApiServer, changes: dict[str, Any], said: str) -> None:
    """401 and why, without a word of the token."""
    if changes.get("key") == "made-up":
        changes = {**changes, "key": rsa.generate_private_key(public_exponent=65537, key_size=2048)}
    status, text = await served.post(api.token(**changes))
    assert status == 401
    assert said in text
    assert served.accepted == []


async def test_a_token_does_not_choose_its_algorithm(served: Served, api: ApiServer) -> None:
    """Neither none, nor the public key as a shared secret, nor another kind of key under a known id is taken."""
    public = api.keys["one"].public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    good = api.token()

    def forged(algorithm: str, signature: Callable[[bytes], bytes]) -> str:
        header = json.dumps({"alg": algorithm, "kid": "one", "typ": "JWT"}).encode()
        head = base64.urlsafe_b64encode(header).rstrip(b"=") + b"." + good.split(".")[1].encode()
        return (head + b"." + base64.urlsafe_b64encode(signature(head)).rstrip(b"=")).decode()

    shared = forged("HS256", lambda head: hmac.digest(public, head, "sha256"))
    none = forged("none", lambda head: b"")
    other = api.token(key=ec.generate_private_key(ec.SECP256R1()), algorithm="ES256")
    stolen = ".".join([*good.split(".")[:2], api.token(sub="x").split(".")[2]])
    for token in (shared, none, other, stolen, "nonsense", "a.b.c", good + "x" * 4000):
        assert (await served.post(token))[0] == 401, token[:40]
    assert (await served.post(None))[0] == 401
    assert (await served.post(good))[0] == 202


async def test_a_new_key_is_found_and_made_up_ones_cost_nothing(served: Served, api: ApiServer) -> None:
    """An unknown id makes the server look again, but not more often than every ten seconds."""
    await served.post(api.token())
    assert len(api.reads) == 2  # issuer and keys
    api.add_key("two")
    assert (await served.post(api.token(key_id="two")))[0] == 401  # it has just looked
    for _ in range(20):
        await served.post(api.token(key_id="made-up", key=api.keys["one"]))
    assert len(api.reads) == 2
    api.now += 11
    assert (await served.post(api.token(key_id="two")))[0] == 202
    assert len(api.reads) == 4


async def test_withdrawn_keys_are_forgotten_and_outages_borne(served: Served, api: ApiServer) -> None:
    """Keys are read again after an hour; while that fails the old ones serve for another one, then it is 503."""
    await served.post(api.token())
    api.broken = True
    api.now += 3601
    assert (await served.post(api.token()))[0] == 202
    api.now += 3601
    assert (await served.post(api.token()))[0] == 503
    api.broken, old = False, api.token()
    api.now += 11
    api.add_key("new")
    del api.keys["one"]
    assert (await served.post(old))[0] == 401
    assert (await served.post(api.token(key_id="new")))[0] == 202


# Pods ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("resource", "name", "parts"),
    [
        (PODS, "one-1-abcde", {"status": {"phase": "Succeeded"}}),
        (PODS, "one-1-abcde", {"metadata": {"ownerReferences": []}}),
        (PODS, "one-1-abcde", {"metadata": {"ownerReferences": by("Job", "one-1", "former-uid")}}),
        (PODS, "one-1-abcde", {"metadata": {"ownerReferences": by("ReplicaSet", "one-1", "child-uid")}}),
        (JOBS, "one-1", {"metadata": {"ownerReferences": by("CompressionJob", "one", "former-uid")}}),
        (JOBS, "one-1", {"metadata": {"labels": {"modelpress.dev/attempt": "1", "modelpress.dev/purpose": "collect"}}}),
        (COMPRESSION_JOBS, "one", {"status": {"phase": "Running", "started": 2}}),
        (COMPRESSION_JOBS, "one", {"status": {"phase": "Succeeded", "started": 1}}),
    ],
)
async def test_other_pods_are_refused(served: Served, api: ApiServer, resource: Any, name: str, parts: Any) -> None:
    """403: ended, nobody's, of a former Job, of a former attempt, of a finished trial, whatever its labels say."""
    change(served.cache, resource, name, **parts)
    assert (await served.post(api.token()))[0] == 403


@pytest.mark.parametrize(
    "pod", [{"name": "one-1-abcde", "uid": "another"}, {"name": "gone", "uid": "pod-uid"}, {"name": "x", "uid": "y"}]
)
async def test_unknown_pods_are_refused(served: Served, api: ApiServer, pod: dict[str, str]) -> None:
    """403: a pod of that name that is another one, or none."""
    claims = {"namespace": "team-a", "pod": pod}
    assert (await served.post(api.token(**{"kubernetes.io": claims})))[0] == 403
    elsewhere = {"namespace": "team-b", "pod": {"name": "one-1-abcde", "uid": "pod-uid"}}
    assert (await served.post(api.token(**{"kubernetes.io": elsewhere})))[0] == 403


# Bodies and replicas -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"{", "Invalid JSON"),
        (b"[" * 60_000, "JSON"),
        ([], "object"),
        ({**BODY, "step": -1}, "step"),
        ({**BODY, "step": "3"}, "step"),
        ({**BODY, "stage": "x" * 1025}, "stage"),
        ({**BODY, "points": [{"step": n, "value": 0.0} for n in range(65)]}, "points"),
        (b'{"stage": "x", "step": 1, "points": [{"step": 1, "value": NaN}]}', "value"),
        ({"step": 1}, "stage"),
    ],
)
async def test_bodies_that_are_no_message(served: Served, api: ApiServer, body: Any, said: str) -> None:
    """400 with the field."""
    status, text = await served.post(api.token(), body)
    assert status == 400
    assert said in text


async def test_large_bodies_are_not_read(served: Served, api: ApiServer) -> None:
    """413 above 64 KiB, whether the length is told beforehand or not; at the limit it is taken."""
    exact = json.dumps(BODY).encode()
    assert (await served.post(api.token(), exact + b" " * (64 * 1024 - len(exact))))[0] == 202
    assert (await served.post(api.token(), exact + b" " * (64 * 1024 - len(exact) + 1)))[0] == 413

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(9):
            yield b" " * 8192

    headers = {"Authorization": f"Bearer {api.token()}"}
    async with served.session.post(served.url, data=pieces(), headers=headers) as answer:
        assert answer.status == 413


async def test_a_follower_sends_on_and_nobody_leads_is_told(served: Served, api: ApiServer) -> None:
    """307 to the address in the Lease; 503 while there is none."""
    served.leader.held = False
    assert (await served.post(api.token()))[0] == 503
    served.leader.leader_address = "http://10.0.0.7:8080/"
    assert await served.post(api.token()) == (307, "http://10.0.0.7:8080/progress")
    assert served.accepted == []


async def test_a_runner_reports_through_a_follower(served: Served, api: ApiServer, tmp_path: Path) -> None:
    """The runner's own side against the server's: redirected once, accepted with its history."""
    (tmp_path / "token").write_text(api.token())

    async def follow(_: web.Request) -> web.Response:
        return web.Response(status=307, headers={"Location": served.url})

    app = web.Application()
    app.router.add_post("/progress", follow)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    report = push.ProgressPush(f"http://127.0.0.1:{runner.addresses[0][1]}/progress", tmp_path / "token", silent)
    report(Event("finetune", 5, 9, "chunk", 0.25))
    await asyncio.to_thread(report.close)
    await runner.cleanup()
    (_, message) = served.accepted[0]
    assert message.status("T") == {
        "progress": {"stage": "finetune", "step": 5, "total": 9, "time": "T"},
        "intermediate": [{"step": 5, "value": 0.25}],
    }


def test_points_are_sorted_and_of_one_step_the_last_counts() -> None:
    """A status never holds two scores of one step."""
    points = [{"step": 5, "value": 0.1}, {"step": 2, "value": 0.2}, {"step": 5, "value": 0.3}]
    made = parse(json.dumps({**BODY, "points": points, "later": "field"}).encode()).status("T")
    assert made["intermediate"] == [{"step": 2, "value": 0.2}, {"step": 5, "value": 0.3}]


# Writing -------------------------------------------------------------------------------------------------------------


class Clocked:
    """StatusWrites over a server in memory; time stands still until it is moved."""

    def __init__(self, first: float = 0.0) -> None:
        self.client, self.cache, self.now = MemoryClient(), Cache(), 0.0
        self.writes = StatusWrites(self.client, self.cache, lambda: None, first=first, clock=lambda: self.now)

    async def add(self, name: str) -> Key:
        job = {
            "apiVersion": "modelpress.dev/v1alpha1",
            "kind": "CompressionJob",
            "metadata": {"name": name},
            "spec": {},
        }
        self.cache.put(COMPRESSION_JOBS, await self.client.create(COMPRESSION_JOBS, "team-a", job))
        return Key(COMPRESSION_JOBS, "team-a", name)

    async def status(self, key: Key) -> dict[str, Any]:
        found: dict[str, Any] = (await self.client.get(*key)).get("status") or {}
        return found

    def patches(self) -> int:
        return sum(verb.startswith("patch") for verb, _, _ in self.client.requests)

    async def turn(self) -> float | None:
        """Write what is due at this moment; seconds until more is."""
        return await self.writes._write_due()


def message(step: int, *scores: float) -> Message:
    points = [{"step": n, "value": score} for n, score in enumerate(scores)]
    return Message.model_validate({"stage": "finetune", "step": step, "total": 9, "points": points})


async def test_one_write_in_thirty_seconds_and_always_the_newest() -> None:
    """The first message is written at once; of those in the next thirty seconds only the last."""
    at = Clocked()
    one, two = await at.add("one"), await at.add("two")
    at.writes.accept(one, message(1, 0.1))
    assert await at.turn() is None
    assert (await at.status(one))["progress"]["step"] == 1
    for step in range(2, 9):
        at.writes.accept(one, message(step, 0.1, step / 10))
    assert await at.turn() == 30
    at.writes.accept(two, message(4))
    at.now = 29.0
    assert await at.turn() == 1
    assert at.patches() == 2
    at.now = 30.0
    assert await at.turn() is None
    assert at.patches() == 3
    found = await at.status(one)
    assert found["progress"]["step"] == 8
    assert found["intermediate"] == [{"step": 0, "value": 0.1}, {"step": 1, "value": 0.8}]


async def test_a_first_message_waits_for_a_status_that_takes_it_along() -> None:
    """Taken, it is not written again, and the next one waits its thirty seconds; left alone, it is written."""
    at = Clocked(first=3.0)
    key, other = await at.add("one"), await at.add("other")
    at.writes.accept(key, message(1, 0.1))
    at.writes.accept(other, message(1, 0.1))
    assert await at.turn() == 3
    at.now = 1.0
    taken = at.writes.take(key)
    assert taken is not None
    assert taken.status()["intermediate"] == [{"step": 0, "value": 0.1}]
    assert at.writes.take(key) is None
    at.writes.accept(key, message(2, 0.1, 0.2))
    at.now = 3.0
    assert await at.turn() == 28
    assert (at.patches(), (await at.status(other))["progress"]["step"]) == (1, 1)


async def test_what_could_not_be_taken_along_is_given_back() -> None:
    """It waits again as it did before, unless a newer message came meanwhile."""
    at = Clocked(first=3.0)
    key = await at.add("one")
    at.writes.accept(key, message(1))
    taken = at.writes.take(key)
    assert taken is not None
    at.writes.give_back(key, taken)
    assert await at.turn() == 3
    again = at.writes.take(key)
    assert again is not None
    at.writes.accept(key, message(2))
    at.writes.give_back(key, again)
    at.now = 3.0
    await at.turn()
    assert (at.patches(), (await at.status(key))["progress"]["step"]) == (1, 2)


async def test_what_is_no_news_is_not_written() -> None:
    """The same stage, step and scores: no write, though time went on."""
    at = Clocked()
    key = await at.add("one")
    at.writes.accept(key, message(1, 0.1))
    await at.turn()
    at.now = 100.0
    at.writes.accept(key, message(1, 0.1))
    await at.turn()
    assert at.patches() == 1


async def test_jobs_that_have_ended_or_gone_are_left_alone() -> None:
    """Progress never touches a result."""
    at = Clocked()
    key = await at.add("one")
    job = await at.client.get(*key)
    version = job["metadata"]["resourceVersion"]
    at.cache.put(COMPRESSION_JOBS, await at.client.patch_status(*key, {"phase": "Succeeded"}, version))
    at.writes.accept(key, message(1))
    at.writes.accept(Key(COMPRESSION_JOBS, "team-a", "gone"), message(1))
    await at.turn()
    assert "progress" not in await at.status(key)


async def test_a_conflict_waits_for_the_cache() -> None:
    """Somebody else has written: once the watch has told of it, the message is written too."""
    at = Clocked()
    key = await at.add("one")
    job = await at.client.get(*key)
    newer = await at.client.patch_status(*key, {"phase": "Running"}, job["metadata"]["resourceVersion"])
    at.writes.accept(key, message(1))
    assert await at.turn() == 0.5
    at.cache.put(COMPRESSION_JOBS, newer)
    at.now = 0.5
    assert await at.turn() is None
    found = await at.status(key)
    assert (found["phase"], found["progress"]["step"]) == ("Running", 1)


async def test_conflicts_without_end_are_given_up() -> None:
    """After five in a row the next message has to say it."""
    at = Clocked()
    key = await at.add("one")
    job = await at.client.get(*key)
    await at.client.patch_status(*key, {"phase": "Running"}, job["metadata"]["resourceVersion"])
    at.writes.accept(key, message(1))
    waits = []
    for _ in range(5):
        waits.append(await at.turn())
        at.now += 0.5
    assert waits == [0.5, 0.5, 0.5, 0.5, None]


async def test_a_server_that_fails_is_not_pestered() -> None:
    """The message is dropped, and the next one waits its thirty seconds."""
    at = Clocked()
    key = await at.add("one")
    at.client.fault = lambda verb, resource, name: ServerError("down") if verb.startswith("patch") else None
    at.writes.accept(key, message(1))
    assert await at.turn() is None
    at.client.fault = lambda verb, resource, name: None
    at.writes.accept(key, message(2))
    assert await at.turn() == 30
    at.now = 30.0
    await at.turn()
    assert (await at.status(key))["progress"]["step"] == 2


async def test_it_runs_until_it_is_cancelled() -> None:
    """A message that comes while it sleeps wakes it."""
    at = Clocked()
    key = await at.add("one")
    written = asyncio.Event()
    at.cache.listener = lambda resource, before, after, ours: written.set()
    running = asyncio.create_task(at.writes.run())
    await asyncio.sleep(0)
    at.writes.accept(key, message(1))
    async with asyncio.timeout(10):
        await written.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
