"""One connection to an API server: found as kubectl finds it, objects as plain dicts, errors as sentences."""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from modelpress.api.errors import near
from modelpress.api.v1alpha1.base import GROUP, VERSION
from modelpress.deepjson import DecodeError, decode

from .errors import ClusterError, ExistsError, MissingError, RequestError, UnreachableError

Raw = dict[str, Any]
MANAGER = "modelpress-cli"
SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
CONNECT_SECONDS, READ_SECONDS = 10, 60
PAGE = 500
EXTRA = "pip install 'modelpress[operator]'"
_MERGE = "application/merge-patch+json"


@dataclass(frozen=True)
class Kind:
    """A kind of object, and its words on the command line, as in cjob/digits."""

    name: str
    plural: str
    prefix: str
    words: tuple[str, ...] = ()


JOB = Kind(
    "CompressionJob",
    "compressionjobs",
    f"/apis/{GROUP}/{VERSION}",
    ("cjob", "job", "compressionjob", "compressionjobs", f"compressionjobs.{GROUP}"),
)
SWEEP = Kind(
    "CompressionSweep",
    "compressionsweeps",
    f"/apis/{GROUP}/{VERSION}",
    ("csweep", "sweep", "compressionsweep", "compressionsweeps", f"compressionsweeps.{GROUP}"),
)
PODS = Kind("Pod", "pods", "/api/v1")
NODES = Kind("Node", "nodes", "/api/v1")
KINDS = {kind.name: kind for kind in (JOB, SWEEP)}


class Cluster:
    """Requests to one API server, in one namespace unless another is named."""

    def __init__(self, api: Any, namespace: str, where: str) -> None:
        self._api = api
        self.namespace = namespace
        self.where = where

    def get(self, kind: Kind, name: str, *, namespace: str | None = None) -> Raw:
        """One object.

        Raises:
            MissingError: there is none.
            ClusterError: see _send.
        """
        return self._json("get", kind, "GET", self._path(kind, name, namespace), name=name)

    def all(self, kind: Kind, *, labels: Mapping[str, str] | None = None, everywhere: bool = False) -> list[Raw]:
        """All objects of a kind that carry these labels, in this namespace or in all."""
        query = {"limit": str(PAGE)}
        if labels:
            query["labelSelector"] = ",".join(f"{key}={value}" for key, value in labels.items())
        items: list[Raw] = []
        path = f"{kind.prefix}/{kind.plural}" if everywhere else self._path(kind)
        while True:
            page = self._json("list", kind, "GET", path, query=query)
            items += page.get("items") or []
            token = (page.get("metadata") or {}).get("continue")
            if not token:
                # Items of a list come without what the list says once for all of them.
                version = page.get("apiVersion", "")
                return [{"apiVersion": version, "kind": kind.name, **item} for item in items]
            query["continue"] = token

    def create(self, kind: Kind, body: Raw) -> Raw:
        """Create an object in the namespace that it names; the API server refuses fields that it does not know.

        Raises:
            ExistsError: there is one of that name.
            RequestError: the API server finds it invalid.
        """
        meta = body["metadata"]
        query = {"fieldManager": MANAGER, "fieldValidation": "Strict"}
        path = self._path(kind, None, meta["namespace"])
        return self._json("create", kind, "POST", path, query=query, body=body, name=meta["name"])

    def patch(self, kind: Kind, name: str, patch: Raw) -> Raw:
        """Change an object by a JSON merge patch (RFC 7386)."""
        query = {"fieldManager": MANAGER, "fieldValidation": "Strict"}
        return self._json("patch", kind, "PATCH", self._path(kind, name), query=query, body=patch, name=name)

    def log(self, pod: str, container: str, *, follow: bool, tail: int | None = None) -> Iterator[bytes]:
        """The log of a container, in pieces as they come; with `follow` until it ends."""
        query = {"container": container, **({"follow": "true"} if follow else {})}
        if tail is not None:
            query["tailLines"] = str(tail)
        path = f"{self._path(PODS, pod)}/log"
        timeout = (CONNECT_SECONDS, None if follow else READ_SECONDS)
        response = self._send("get", "pods/log", "GET", path, query=query, name=pod, timeout=timeout)
        try:
            with self._reported():
                yield from response.stream(amt=None if follow else 65_536, decode_content=True)
        finally:
            response.release_conn()

    def find(self, text: str) -> tuple[Kind, Raw]:
        """The object that a user names: `digits`, `cjob/digits` or `csweep/digits`.

        Raises:
            MissingError: there is none; near names are in the message.
            RequestError: the name is both a job's and a sweep's, or the kind is unknown.
        """
        word, slash, name = text.rpartition("/")
        kinds = [kind for kind in KINDS.values() if not slash or word.lower() in kind.words]
        if not kinds:
            raise RequestError(f"{text}: {word!r} is no kind of ours; write cjob/{name} or csweep/{name}")
        if not re.fullmatch(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?", name):
            raise RequestError(f"{text!r} is no name of an object; names are lower-case letters, digits and '-'")
        found: list[tuple[Kind, Raw]] = []
        for kind in kinds:
            with contextlib.suppress(MissingError):
                found.append((kind, self.get(kind, name)))
        if len(found) == 1:
            return found[0]
        if found:
            raise RequestError(
                f"{name} is the name of a CompressionJob and of a CompressionSweep; write cjob/{name} or csweep/{name}"
            )
        raise MissingError(self._missing(name, kinds))

    def _missing(self, name: str, kinds: list[Kind]) -> str:
        known: list[str] = []
        with contextlib.suppress(ClusterError, RequestError):  # a hint is not worth another error
            known = sorted({obj["metadata"]["name"] for kind in kinds for obj in self.all(kind)})
        what = " or ".join(kind.name for kind in kinds)
        nearest = near(name, known)
        if nearest:
            hint = f"did you mean {nearest}?"
        elif known:
            more = f" and {len(known) - 5} more" if len(known) > 5 else ""
            hint = f"there are {', '.join(known[:5])}{more}; another namespace is named with -n"
        else:
            hint = "another namespace is named with -n, another cluster with --context"
        return f"there is no {what} {name} in the namespace {self.namespace} of {self.where}; {hint}"

    # Requests --------------------------------------------------------------------------------------------------------

    def _path(self, kind: Kind, name: str | None = None, namespace: str | None = None) -> str:
        path = f"{kind.prefix}/namespaces/{quote(namespace or self.namespace, safe='')}/{kind.plural}"
        return path if name is None else f"{path}/{quote(name, safe='')}"

    def _json(self, verb: str, kind: Kind, method: str, path: str, **more: Any) -> Raw:
        response = self._send(verb, kind.plural, method, path, **more)
        with self._reported():
            data = response.read()
        value = _decoded(data)
        if value is None:
            raise UnreachableError(f"{self.where} did not answer with JSON; check that this is a Kubernetes API server")
        return value

    def _send(
        self,
        verb: str,
        resource: str,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Raw | None = None,
        name: str = "",
        timeout: tuple[float, float | None] = (CONNECT_SECONDS, READ_SECONDS),
    ) -> Any:
        """A response of status 2xx, not read yet.

        Raises:
            ClusterError: no answer, no permission, no such kind, or a failure of the server.
            RequestError: the request makes no sense to the server.
        """
        url = f"{self._api.configuration.host.rstrip('/')}{path}" + (f"?{urlencode(query)}" if query else "")
        content = _MERGE if method == "PATCH" else "application/json"
        headers = {"Accept": "application/json, */*", "Content-Type": content, "User-Agent": self._api.user_agent}
        with self._reported():
            self._api.update_params_for_auth(headers, [], ["BearerToken"], url, method, body)
            response = self._api.call_api(method, url, headers, body=body, _request_timeout=timeout).response
            if 200 <= response.status < 300:
                return response
            data = response.read()
        raise self._refusal(response.status, data, verb, resource, name)

    @contextlib.contextmanager
    def _reported(self) -> Iterator[None]:
        """Failures of the connection become sentences."""
        import urllib3
        from kubernetes.client.exceptions import ApiException
        from kubernetes.config import ConfigException

        try:
            yield
        except (urllib3.exceptions.HTTPError, ApiException, OSError) as error:
            raise UnreachableError(
                f"{self.where} cannot be reached ({_reason(error)}); check the cluster, the network and the kubeconfig"
            ) from error
        except ConfigException as error:
            raise ClusterError(f"{self.where}: no credentials ({error}); log in again") from error

    def _refusal(self, status: int, data: bytes, verb: str, resource: str, name: str) -> Exception:
        """The error for an answer that is no success."""
        answer = _decoded(data) or {}
        text = str(answer.get("message") or data[:300].decode("utf-8", "replace").strip() or f"status {status}")
        place = f"the namespace {self.namespace} of {self.where}"
        if status == 401:
            return ClusterError(f"{self.where} does not accept your credentials; log in again, or choose --context")
        if status == 403 and " cannot " in text:
            user = re.search(r'User "([^"]+)"', text)
            who = f"the user {user[1]}" if user else "you"
            return ClusterError(
                f"{who} may not {verb} {_full(resource)} in {place}; ask for a Role with this verb and resource"
            )
        if status == 404 and not (answer.get("details") or {}).get("name") and resource in _PLURALS:
            return ClusterError(
                f"{self.where} does not know {_full(resource)}; install the definitions: modelpress crd | "
                "kubectl apply --server-side -f -"
            )
        if status == 404:
            return MissingError(f"there is no {resource} {name} in {place}: {text}")
        if status == 409 and answer.get("reason") == "AlreadyExists":
            return ExistsError(text)
        if status in (400, 409, 422):
            return RequestError(f"{self.where} refuses {name or resource}: {_flat(text)}")
        if status in (429, 500, 502, 503, 504):
            return UnreachableError(f"{self.where} is not able to answer now ({status}: {_flat(text)}); try again")
        return ClusterError(f"{self.where} answers {status}: {_flat(text)}")


_PLURALS = (JOB.plural, SWEEP.plural)


def connect(*, namespace: str | None = None, context: str | None = None, kubeconfig: str | None = None) -> Cluster:
    """The cluster that kubectl would talk to: by --kubeconfig, KUBECONFIG, ~/.kube/config, or the pod that we are in.

    Raises:
        RequestError: the package kubernetes is missing, or the kubeconfig or the context is not usable.
    """
    try:
        from kubernetes import client
        from kubernetes import config as untyped
    except ModuleNotFoundError as error:
        raise RequestError(f"talking to a cluster needs the package {error.name!r}; install it with: {EXTRA}") from None
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # its retries are told once they have failed
    files = kubeconfig or os.environ.get("KUBECONFIG") or "~/.kube/config"
    there = [path for path in files.split(os.pathsep) if path and Path(path).expanduser().is_file()]
    config: Any = untyped
    configuration: Any = client.Configuration()
    configuration.retries = 1
    if not there and kubeconfig is None and context is None and (SERVICE_ACCOUNT / "token").is_file():
        try:
            config.load_incluster_config(client_configuration=configuration)
            own = (SERVICE_ACCOUNT / "namespace").read_text().strip()
        except (config.ConfigException, OSError) as error:
            raise RequestError(f"this pod's service account is not usable: {error}") from error
        return Cluster(_client(configuration), namespace or own, "this pod's cluster")
    if not there:
        raise RequestError(f"there is no kubeconfig ({files}); name one with --kubeconfig or KUBECONFIG")
    files = os.pathsep.join(str(Path(path).expanduser()) for path in there)
    try:
        contexts, active = config.list_kube_config_contexts(config_file=files)
        names = [item["name"] for item in contexts]
        if context is not None and context not in names:
            nearest = near(context, names)
            hint = f"did you mean {nearest}?" if nearest else f"it has {', '.join(names) or 'none'}"
            raise RequestError(f"--context: {files} has no context {context!r}; {hint}")
        chosen = next(item for item in contexts if item["name"] == (context or active["name"]))
        config.load_kube_config(config_file=files, context=chosen["name"], client_configuration=configuration)
    except config.ConfigException as error:
        raise RequestError(f"the kubeconfig {files} is not usable: {_flat(str(error))}; correct it") from error
    except RequestError:
        raise
    except Exception as error:  # the library reads it without checking what it finds
        raise RequestError(f"the kubeconfig {files} cannot be read ({type(error).__name__}); correct it") from error
    own = chosen["context"].get("namespace") or "default"
    return Cluster(_client(configuration), namespace or own, f"the cluster {configuration.host}")


def _client(configuration: Any) -> Any:
    from kubernetes.client import ApiClient

    return ApiClient(configuration)


def _decoded(data: bytes) -> Raw | None:
    try:
        value = decode(data)
    except DecodeError:
        return None
    return value if isinstance(value, dict) else None


def _reason(error: BaseException) -> str:
    """The innermost cause in a few words."""
    inner = getattr(error, "reason", None)
    if isinstance(inner, BaseException):
        return _reason(inner)
    text = _flat(str(inner or error) or type(error).__name__)
    return re.sub(r"^<?[\w.]*(HTTPS?Connection|HTTPS?ConnectionPool)[^:]*: ", "", text)[:200]


def _flat(text: str) -> str:
    return " ".join(text.split())


def _full(resource: str) -> str:
    return f"{resource}.{GROUP}" if resource in _PLURALS else resource
