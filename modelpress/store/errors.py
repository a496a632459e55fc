"""Errors of the artifact store, and how a failure of the storage library becomes one of them.

The library's own texts carry signatures, and with Azure's SAS tokens credentials: only a status, an error code and a
cleaned sentence of them reach a message, and they are not chained.
"""

from __future__ import annotations

import errno
import html
import os
import re

from modelpress.control_characters import escape_control_characters


class StoreError(Exception):
    """The store did not do what it was asked for; the message is a sentence that names the URI and what to do."""


class StoreUriError(StoreError):
    """A store URI that cannot be opened as it is written."""


class ObjectMissingError(StoreError):
    """There is no object at this path."""


class TooLargeError(StoreError):
    """An object is larger than whoever reads it takes, or of another size than is known of it."""


class StoreRefusedError(StoreError):
    """Credentials, permissions, or a bucket or folder that is not there: trying again does not help."""


class StoreUnavailableError(StoreError):
    """The server gave no usable answer, after retries: trying later may help."""


CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and AWS_SESSION_TOKEN where they are temporary)",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "az": "AZURE_STORAGE_ACCOUNT_NAME with AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_TOKEN",
}
_CONTAINER = {"s3": "bucket", "gs": "bucket", "az": "container"}
_NO_BUCKET = {"NoSuchBucket", "ContainerNotFound", "NoSuchContainer", "FilesystemNotFound"}
_NO_OBJECT = {"", "NoSuchKey", "BlobNotFound", "NoSuchObject", "PathNotFound", "ResourceNotFound"}
_FULL = {"QuotaExceeded", "XMinioStorageFull", "InsufficientStorage"}
PATH_TAKEN = {"ObjectParentIsFile", "ExistingObjectIsDirectory", "XMinioParentIsObject"}
_SECRETS = (
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AZURE_STORAGE_ACCOUNT_KEY",
    "AZURE_STORAGE_SAS_TOKEN",
    "AZURE_CLIENT_SECRET",
    "GOOGLE_SERVICE_ACCOUNT_KEY",
)


def explain(
    error: BaseException, *, scheme: str, store: str, path: str, endpoint: str | None, timeout: float
) -> StoreError:
    """What a failure of the storage library means to a user; raise it `from None`.

    Args:
        error: what the library raised.
        scheme: s3, gs, az, file or memory.
        store: the store's URI.
        path: the object or folder it was about, relative to the URI; may be empty.
        endpoint: the server asked, where it is known.
        timeout: seconds after which the store gives up.
    """
    raw = str(error)
    where = f"{store.rstrip('/')}/{path}" if path else store
    if scheme in ("file", "memory"):
        return _explain_local(error, raw, where)

    code = server_code(raw)
    status = int(_group(r"status code: (\d{3})", raw) or 0)
    detail = _detail(code, raw, status)
    noun, keys, name = _CONTAINER[scheme], CREDENTIALS[scheme], store.split("://", 1)[1].split("/")[0]
    if re.search(r"//(169\.254\.169\.254|169\.254\.170\.2|metadata\.google)", raw):
        return StoreRefusedError(
            f"{where}: no credentials were found; set {keys} in the environment (profiles of other tools are not read)"
        )
    if code in _NO_BUCKET:
        return StoreRefusedError(f"{where}: there is no {noun} {name!r}; create it, or correct the store's URI")
    if status == 404 or isinstance(error, FileNotFoundError):
        if code in _NO_OBJECT:
            return missing(where)
        return StoreRefusedError(f"{where}: the server refused the request ({detail}); check {keys} and the endpoint")
    if (
        code in ("AuthorizationHeaderMalformed", "PermanentRedirect")
        or status in (301, 307)
        or "Received redirect" in raw
    ):
        return StoreRefusedError(
            f"{where}: the {noun} lives in another region ({detail}); set the store's region, or AWS_REGION"
        )
    if code == "RequestTimeTooSkewed":
        return StoreRefusedError(f"{where}: this machine's clock differs from the server's ({detail}); set the clock")
    if status in (401, 403) or type(error).__name__ in ("PermissionDeniedError", "UnauthenticatedError"):
        return StoreRefusedError(
            f"{where}: the server refused the request ({detail}); check {keys}, and that they may use this {noun}"
        )
    if code in _FULL or status == 507:
        return StoreError(f"{where}: the store is full ({detail}); free some space or raise the quota")
    if code in PATH_TAKEN:
        return path_taken(where)
    if status == 429 or status >= 500:
        return StoreUnavailableError(f"{where}: the server failed ({detail}), also after retries; try again later")
    if status:
        return StoreError(f"{where}: the server refused the request ({detail}); check the store's URI and endpoint")
    if re.search(r"peer certificate|UnknownIssuer|certificate verify", raw):
        return StoreRefusedError(
            f"{where}: the certificate of {endpoint or 'the server'} is not trusted; name its CA file in AWS_CA_BUNDLE"
        )
    if re.search(r"HTTP error|HttpError|error sending request|Connect|TimedOut|timed out", raw):
        return StoreUnavailableError(
            f"{where}: no answer from {endpoint or 'the server'} (tried for up to {timeout:g} s); check that it runs, "
            "that this machine reaches it, and that the endpoint is right"
        )
    return StoreError(f"{where}: the store failed ({detail or type(error).__name__}); check its URI and settings")


def missing(where: str) -> ObjectMissingError:
    """The error for an object that is not there."""
    return ObjectMissingError(f"{where} does not exist; check the path, and that the run that writes it has finished")


def path_taken(where: str) -> StoreError:
    """The error for a path that goes through an object, or that is a folder."""
    return StoreError(f"{where}: a file stands where a folder is needed, or a folder where a file is; use another path")


def _explain_local(error: BaseException, raw: str, where: str) -> StoreError:
    number = error.errno if isinstance(error, OSError) and error.errno else int(_group(r"\(os error (\d+)\)", raw) or 0)
    reason = os.strerror(number) if number else scrub(raw.splitlines()[0] if raw else type(error).__name__)
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return StoreRefusedError(
            f"{where}: the folder may not be used ({reason}); check its owner and mode, or give another store"
        )
    if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return StoreError(f"{where}: the disk is full ({reason}); free some space, or give another store")
    if number in (errno.ENOTDIR, errno.EISDIR, errno.EEXIST):
        return path_taken(where)
    if number in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EXDEV, errno.EMLINK):
        return StoreError(
            f"{where}: the file system cannot do this ({reason}); a store needs hard links: give a local folder or s3://"
        )
    if number in (errno.EIO, errno.ESTALE, errno.ETIMEDOUT):
        return StoreUnavailableError(f"{where}: the file system failed ({reason}); check the disk or mount")
    if isinstance(error, FileNotFoundError) or number == errno.ENOENT:
        return missing(where)
    return StoreError(f"{where}: the store failed ({reason}); check the folder, or give another store")


def server_code(text: str) -> str:
    """The error code in a server's answer (NoSuchBucket); "" if there is none."""
    return _group(r"<Code>([^<]{1,64})</Code>", text) or _group(r'"(?:reason|code)":\s*"([A-Za-z]{1,64})"', text) or ""


def _detail(code: str, raw: str, status: int) -> str:
    message = _group(r"<Message>([^<]{1,200})</Message>", raw)
    parts = [str(status) if status else "", code, scrub(html.unescape(message)) if message else ""]
    return ": ".join(part for part in parts if part)


def scrub(text: str) -> str:
    """The text without query strings, user names in URLs, the values of the known secrets of the environment, and
    characters that act on a terminal."""
    for name in _SECRETS:
        secret = os.environ.get(name)
        if secret:
            text = text.replace(secret, "***")
    text = re.sub(r"://[^/\s@]*@", "://***@", text)
    return escape_control_characters(re.sub(r"\?[^\s\"'<>]+", "?***", text)[:300])


def _group(pattern: str, text: str) -> str | None:
    found = re.search(pattern, text)
    return found.group(1) if found else None
