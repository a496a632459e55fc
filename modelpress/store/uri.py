"""From a URI to an open store."""

from __future__ import annotations

import difflib
import os
import re
import threading
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit, urlunsplit

from .base import ArtifactStore, path_problem
from .errors import CREDENTIALS, StoreError, StoreRefusedError, StoreUriError, scrub

if TYPE_CHECKING:
    from obstore.store import ClientConfig, MemoryStore, RetryConfig

SCHEMES = ("s3", "gs", "az", "file", "memory")
DEFAULT_TIMEOUT = 30.0  # seconds after which a server that does not answer is an error
EXAMPLES = "s3://bucket/prefix, gs://bucket/prefix, az://container/prefix, file:///path, memory://name, or a folder"
# Schemes of other tools, and what they are called here.
_OTHER_NAMES = {
    "s3a": "s3",
    "s3n": "s3",
    "gcs": "gs",
    "gc": "gs",
    "azure": "az",
    "adl": "az",
    "abfs": "az",
    "abfss": "az",
    "wasb": "az",
    "mem": "memory",
    "local": "file",
    "minio": "s3",
    "http": "s3",
    "https": "s3",
}

_memory: dict[str, MemoryStore] = {}
_memory_lock = threading.Lock()


@dataclass(frozen=True)
class StoreUri:
    """A store URI in its parts: s3://bucket/prefix; of a folder, `prefix` is its absolute path."""

    scheme: str
    bucket: str
    prefix: str
    text: str


def open_store(
    uri: str, *, endpoint: str | None = None, region: str | None = None, timeout: float = DEFAULT_TIMEOUT
) -> ArtifactStore:
    """Open the store at a URI; nothing is read, written or made before the first call of one of its methods.

    A plain path and file:// are a folder, made at the first write. memory://name is shared by all who open it in this
    process. Credentials of s3, gs and az come from the environment (AWS_*, GOOGLE_*, AZURE_*), web identities included.

    Args:
        uri: s3://bucket/prefix, gs://bucket/prefix, az://container/prefix, file:///path, memory://name, or a path.
        endpoint: of an S3-compatible server, as http://minio:9000; default: AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL, else
            AWS. Buckets are addressed by path, unless the endpoint's host begins with the bucket's name, or
            AWS_VIRTUAL_HOSTED_STYLE_REQUEST is true.
        region: of an S3 bucket; default: AWS_REGION, AWS_DEFAULT_REGION, else us-east-1.
        timeout: seconds; a server that cannot be reached or does not answer is an error after at most so long. Where a
            whole part of a file travels in one request, up to four times as long is given for that request.

    Raises:
        StoreUriError: the URI, the endpoint or the region cannot be what is meant.
        StoreRefusedError: the settings in the environment are not enough to talk to the store.
    """
    from .objects import FolderStore, ObjectStorage

    if not timeout > 0:
        raise ValueError(f"timeout must be above 0 seconds, not {timeout!r}")
    parsed = parse_uri(uri)
    if parsed.scheme != "s3" and (endpoint is not None or region is not None):
        given = " and ".join(name for name, value in (("endpoint", endpoint), ("region", region)) if value is not None)
        raise StoreUriError(f"{parsed.text}: {given} is for s3:// stores only; remove it, or give an s3:// URI")
    if parsed.scheme == "file":
        return FolderStore(parsed.text, Path(parsed.prefix))
    if parsed.scheme == "memory":
        client: Any = _memory_store(parsed.bucket)
        return ObjectStorage(parsed.text, parsed.scheme, parsed.prefix, client=client, patient=client)
    if parsed.scheme == "s3":
        endpoint = _endpoint(endpoint)
    build = {"s3": _s3, "gs": _gcs, "az": _azure}[parsed.scheme]
    quick = {"read_timeout": _seconds(0.43 * timeout)}, _retries(timeout, 0.45)
    # A part of a file is one request, and its read timeout runs while it is sent: a slow uplink needs more than a dead
    # server should get. Both a part and the abort of a broken-off upload are tried again, hence the smaller share.
    slow = {"read_timeout": _seconds(4 * timeout)}, _retries(timeout, 0.3)
    try:
        client, patient = (
            build(parsed, endpoint, region, _client_options(parsed, endpoint, timeout, reading), retries)
            for reading, retries in (quick, slow)
        )
    except StoreError:
        raise
    except Exception as error:  # the library has no common type for what it refuses at construction
        reason = scrub(str(error).splitlines()[0])
        raise StoreRefusedError(
            f"{parsed.text}: the store cannot be opened ({reason}); check {CREDENTIALS[parsed.scheme]}"
        ) from None
    return ObjectStorage(
        parsed.text, parsed.scheme, parsed.prefix, client=client, patient=patient, endpoint=endpoint, timeout=timeout
    )


def parse_uri(uri: str) -> StoreUri:
    """A store URI in its parts.

    Raises:
        StoreUriError: it is none; the message proposes what may have been meant, and repeats no credentials.
    """
    if not uri.strip():
        raise StoreUriError(f"the store's URI is empty; give {EXAMPLES}")
    scheme, separator, rest = uri.partition("://")
    if not separator:
        early = uri.partition(":")[0].lower()
        if ":" in uri and early in (*SCHEMES, *_OTHER_NAMES):
            raise StoreUriError(f"{scrub(uri)!r} is no store URI: // is missing after {early}:; give {EXAMPLES}")
        folder = Path(_folder(os.path.expanduser(uri)))
        return StoreUri("file", "", str(folder), str(folder))
    scheme = scheme.lower()
    if scheme not in SCHEMES:
        near = _OTHER_NAMES.get(scheme) or next(iter(difflib.get_close_matches(scheme, SCHEMES, 1, 0.5)), None)
        if scheme in ("http", "https"):
            hint = "give s3://bucket/prefix, and this address as the store's endpoint"
        else:
            hint = f"did you mean {near}://? Known: {', '.join(SCHEMES)}" if near else f"give {EXAMPLES}"
        raise StoreUriError(f"the store's URI has the unknown scheme {scheme!r}; {hint}")
    if scheme == "file":
        return _file_uri(rest)
    bucket, _, prefix = rest.partition("/")
    if "@" in bucket:
        raise StoreUriError(
            f"a {scheme}:// URI holds no credentials; remove what stands before @, and set {_keys(scheme)}"
        )
    if "?" in rest or "#" in rest:
        raise StoreUriError(f"{scheme}://{bucket.partition('?')[0]}: a store's URI has no ? or #; give {EXAMPLES}")
    if scheme != "memory" and not re.fullmatch(r"[A-Za-z0-9$][A-Za-z0-9._-]*", bucket):
        problem = f"the bucket name {bucket!r} is not valid" if bucket else "no bucket is named"
        raise StoreUriError(f"{scheme}://{rest}: {problem}; give {scheme}://bucket/prefix")
    prefix = prefix.strip("/")
    problem_text = path_problem(prefix) if prefix else None
    if problem_text:
        raise StoreUriError(f"{scheme}://{rest}: the prefix {problem_text}; give {scheme}://bucket/prefix")
    return StoreUri(
        scheme, bucket, prefix, f"{scheme}://{bucket}/{prefix}".rstrip("/") if prefix else f"{scheme}://{bucket}"
    )


def _file_uri(rest: str) -> StoreUri:
    host, slash, path = rest.partition("/")
    if host not in ("", "localhost") or not slash:
        raise StoreUriError(
            f"file://{rest}: the path must be absolute; give file:///path (three slashes), or the plain path {rest!r}"
        )
    if "?" in path or "#" in path:
        raise StoreUriError(f"file:///{path}: write ? as %3F and # as %23, or give the plain path")
    folder = _folder("/" + unquote(path))
    return StoreUri("file", "", folder, Path(folder).as_uri())


def _folder(path: str) -> str:
    if "\0" in path:
        raise StoreUriError(f"the folder {path!r} has a zero byte in its name, which no file system takes; correct it")
    return os.path.abspath(path)


def _keys(scheme: str) -> str:
    return CREDENTIALS.get(scheme, "them in the environment")


def _endpoint(endpoint: str | None) -> str | None:
    names = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
    source, value = "the store's endpoint", endpoint
    if value is None:
        source, value = next(((name, os.environ[name]) for name in names if os.environ.get(name)), (source, None))
    if value is None:
        return None
    try:
        parts = urlsplit(value)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        raise StoreUriError(f"{source} is no address; give http://host:port or https://host") from None
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise StoreUriError(f"{source} holds credentials, ? or #; give http://host:port or https://host alone")
    if not usable:
        raise StoreUriError(f"{source} {value!r} is no address; give http://host:port or https://host")
    return value.rstrip("/")


def _client_options(uri: StoreUri, endpoint: str | None, timeout: float, reading: dict[str, Any]) -> ClientConfig:
    options: ClientConfig = {
        "connect_timeout": _seconds(min(5.0, timeout / 3)),
        "timeout": timedelta(days=1),  # a large file takes its time; a stalled one runs into read_timeout
        "allow_http": bool(endpoint and endpoint.startswith("http://")),
        **reading,  # type: ignore[typeddict-item]
    }
    bundle = os.environ.get("AWS_CA_BUNDLE")
    if bundle and uri.scheme == "s3" and not options["allow_http"]:
        try:
            options["root_certificate"] = Path(bundle).read_text()
        except OSError as error:
            raise StoreError(f"AWS_CA_BUNDLE names {bundle}, which cannot be read: {error.strerror}") from None
    return options


def _retries(timeout: float, share: float) -> RetryConfig:
    longest = timeout / 15
    return {
        "max_retries": 100,  # the time below ends them
        "retry_timeout": _seconds(share * timeout),
        "backoff": {"init_backoff": _seconds(min(0.1, longest)), "max_backoff": _seconds(longest), "base": 2},
    }


def _seconds(value: float) -> timedelta:
    return timedelta(milliseconds=max(1, round(value * 1000)))


def _s3(uri: StoreUri, endpoint: str | None, region: str | None, options: ClientConfig, retries: RetryConfig) -> Any:
    from obstore.store import S3Store

    config: dict[str, Any] = {}
    if endpoint is not None:
        host = urlsplit(endpoint).hostname or ""
        named = host.startswith(f"{uri.bucket.lower()}.")
        if not named and os.environ.get("AWS_VIRTUAL_HOSTED_STYLE_REQUEST", "").lower() in ("true", "1"):
            parts = urlsplit(endpoint)
            endpoint = urlunsplit(parts._replace(netloc=f"{uri.bucket}.{parts.netloc}"))
            named = True
        config = {"endpoint": endpoint, "virtual_hosted_style_request": named}
    region = region or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if region:
        config["region"] = region
    return S3Store(uri.bucket, config=config, client_options=options, retry_config=retries)  # type: ignore[arg-type]


def _gcs(uri: StoreUri, endpoint: str | None, region: str | None, options: ClientConfig, retries: RetryConfig) -> Any:
    from obstore.store import GCSStore

    return GCSStore(uri.bucket, client_options=options, retry_config=retries)


def _azure(uri: StoreUri, endpoint: str | None, region: str | None, options: ClientConfig, retries: RetryConfig) -> Any:
    from obstore.store import AzureStore

    return AzureStore(uri.bucket, client_options=options, retry_config=retries)


def _memory_store(name: str) -> MemoryStore:
    from obstore.store import MemoryStore

    with _memory_lock:
        if name not in _memory:
            _memory[name] = MemoryStore()
        return _memory[name]
