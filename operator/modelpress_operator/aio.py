"""The client on kubernetes.aio: authentication, TLS and connections are the library's, objects stay plain dicts."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlencode

import aiohttp
from kubernetes.aio.client import ApiClient, Configuration
from kubernetes.aio.config import load_incluster_config, load_kube_config
from kubernetes.aio.config.config_exception import ConfigException

from modelpress.deepjson import DecodeError, decode

from .client import FIELD_MANAGER, ClusterError, ServerError, TooManyRequestsError, error_of
from .metrics import Metrics
from .resources import RawObject, Resource

REQUEST_SECONDS = 30
CONNECT_SECONDS = 10
CONCURRENT = 32  # requests at one time; the API server's own fairness does the rest
THROTTLED_TRIES = 4  # a 429 was not carried out, so that any request may be sent again
MAX_THROTTLE_SECONDS = 30.0
PAGE = 500
DOCUMENT = Resource("", "", "document", "")  # for metrics
SERVICE_ACCOUNT_TOKEN = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")
DEFAULT_KUBECONFIG = os.environ.get("KUBECONFIG") or "~/.kube/config"
JSON, MERGE = "application/json", "application/merge-patch+json"


class ConnectionSettingsError(Exception):
    """There is no usable way to the API server; the text says what to do."""


async def load_configuration(kubeconfig: str | None) -> Configuration:
    """How to reach the API server: as this pod's service account, or by a kubeconfig.

    One configuration belongs to one event loop. Service-account tokens are read again every minute.

    Raises:
        ConnectionSettingsError: neither is there.
    """
    in_pod = kubeconfig is None and SERVICE_ACCOUNT_TOKEN.is_file()  # noqa: ASYNC240
    if not in_pod and (missing := _missing(kubeconfig or DEFAULT_KUBECONFIG)):
        raise ConnectionSettingsError(
            f"cannot reach a cluster: this is no pod, and there is no {missing}; name a file with --kubeconfig"
        )
    configuration = Configuration()  # without retries: the work queue tries again, on a new observation
    try:
        if in_pod:
            load_incluster_config(client_configuration=configuration)
        else:
            await load_kube_config(config_file=kubeconfig, client_configuration=configuration)
    except (ConfigException, OSError, ValueError) as error:
        raise ConnectionSettingsError(
            f"cannot reach a cluster: {error}; give a valid file with --kubeconfig"
        ) from error
    return configuration


def _missing(kubeconfig: str) -> str:
    """The files of a KUBECONFIG list, if there is none of them."""
    files = [Path(one).expanduser() for one in kubeconfig.split(os.pathsep)]
    return "" if any(file.is_file() for file in files) else ", ".join(map(str, files))


class AioClient:
    """ClusterClient over HTTPS."""

    def __init__(self, configuration: Configuration, metrics: Metrics, *, user_agent: str) -> None:
        self._api = ApiClient(configuration)
        self._api.user_agent = user_agent
        self._host = str(configuration.host).rstrip("/")
        self._metrics = metrics
        self._places = asyncio.Semaphore(CONCURRENT)

    async def get(self, resource: Resource, namespace: str, name: str) -> RawObject:
        return await self._send("get", resource, "GET", resource.path(namespace, name))

    async def list(
        self,
        resource: Resource,
        namespace: str | None,
        *,
        labels: Mapping[str, str] | None = None,
        fields: Mapping[str, str] | None = None,
    ) -> list[RawObject]:
        query = {"limit": str(PAGE)}
        for name, wanted in (("labelSelector", labels), ("fieldSelector", fields)):
            if wanted:
                query[name] = ",".join(f"{key}={value}" for key, value in sorted(wanted.items()))
        items: list[RawObject] = []
        while True:
            page = await self._send("list", resource, "GET", resource.path(namespace), query=query)
            items += page.get("items") or []
            token = (page.get("metadata") or {}).get("continue")
            if not token:
                return items
            query["continue"] = token

    async def create(self, resource: Resource, namespace: str, obj: RawObject) -> RawObject:
        query = {"fieldManager": FIELD_MANAGER, "fieldValidation": "Strict"}
        return await self._send("create", resource, "POST", resource.path(namespace), query=query, body=obj)

    async def patch(
        self, resource: Resource, namespace: str, name: str, patch: RawObject, resource_version: str
    ) -> RawObject:
        body = {**patch, "metadata": {**(patch.get("metadata") or {}), "resourceVersion": resource_version}}
        return await self._send("patch", resource, "PATCH", resource.path(namespace, name), body=body)

    async def patch_status(
        self, resource: Resource, namespace: str, name: str, patch: RawObject, resource_version: str
    ) -> RawObject:
        body: RawObject = {"metadata": {"resourceVersion": resource_version}}
        if patch:
            body["status"] = patch
        return await self._send("patch", resource, "PATCH", resource.path(namespace, name, "status"), body=body)

    async def delete(
        self, resource: Resource, namespace: str, name: str, uid: str, grace: int | None = None
    ) -> RawObject | None:
        body: RawObject = {"preconditions": {"uid": uid}, "propagationPolicy": "Foreground"}
        if grace is not None:
            body["gracePeriodSeconds"] = grace
        answer = await self._send("delete", resource, "DELETE", resource.path(namespace, name), body=body)
        return answer if answer.get("kind") == resource.kind else None

    async def read(self, path: str) -> RawObject:
        """Any document that the API server serves to everybody who is signed in, such as its public keys."""
        return await self._once("get", DOCUMENT, "GET", f"{self._host}{path}", None, accept="*/*")

    async def close(self) -> None:
        await self._api.close()

    async def _send(
        self,
        verb: str,
        resource: Resource,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: RawObject | None = None,
    ) -> RawObject:
        query = dict(query or {})
        if method == "PATCH":
            query["fieldManager"] = FIELD_MANAGER
        url = f"{self._host}{path}" + (f"?{urlencode(query)}" if query else "")
        for tried in range(1, THROTTLED_TRIES + 1):
            try:
                async with self._places:
                    return await self._once(verb, resource, method, url, body)
            except TooManyRequestsError as error:
                wait = error.retry_after if error.retry_after is not None else float(tried)
                if tried == THROTTLED_TRIES or wait > MAX_THROTTLE_SECONDS:
                    raise
                await asyncio.sleep(wait)
        raise AssertionError("the loop returns or raises")

    async def _once(
        self, verb: str, resource: Resource, method: str, url: str, body: RawObject | None, *, accept: str = JSON
    ) -> RawObject:
        kind = MERGE if method == "PATCH" else JSON
        headers = {"User-Agent": self._api.user_agent, "Accept": accept, "Content-Type": kind}
        code, began = "error", time.monotonic()
        try:
            await self._api.update_params_for_auth(headers, [], ["BearerToken"], url, method, body)
            timeout = aiohttp.ClientTimeout(total=REQUEST_SECONDS, sock_connect=CONNECT_SECONDS)
            response = await self._api.call_api(method, url, headers, body=body, _request_timeout=timeout)
            data = await response.read()
            code = str(response.status)
            answer = _decoded(data)
            if 200 <= response.status < 300:
                return answer
            raise error_of(response.status, answer, _seconds(response.getheader("Retry-After")))
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            what = str(error) or type(error).__name__
            raise ServerError(f"{method} {url.partition('?')[0]}: {what}") from error
        finally:
            self._metrics.api_requests.labels(verb, resource.plural, code).inc()
            self._metrics.api_seconds.labels(verb).observe(time.monotonic() - began)


def _decoded(data: bytes) -> RawObject:
    try:
        value = decode(data)
    except DecodeError:
        return {"message": data[:200].decode("utf-8", "replace")}
    return value if isinstance(value, dict) else {}


def _seconds(header: str | None) -> float | None:
    with contextlib.suppress(TypeError, ValueError):
        return max(0.0, float(header or ""))
    return None


__all__ = ["AioClient", "ClusterError", "ConnectionSettingsError", "load_configuration"]
