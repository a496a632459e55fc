"""What a failure of the storage library becomes: its kind, what the message names, and what it must not repeat."""

from __future__ import annotations

import pytest
from obstore.exceptions import GenericError, PermissionDeniedError, UnauthenticatedError

from modelpress.store import ObjectMissingError, StoreError, StoreRefusedError, StoreUnavailableError
from modelpress.store.errors import explain, scrub


def answer(status: int, code: str, message: str = "Something.", scheme: str = "S3") -> str:
    """The library's text for an answer of a server."""
    return (
        f"Generic {scheme} error: Error performing GET http://minio:9000/bucket/a?X-Amz-Signature=abc123 in 1ms - "
        f"Server returned non-2xx status code: {status} Whatever: <?xml version='1.0'?><Error><Code>{code}</Code>"
        f"<Message>{message}</Message><AWSAccessKeyId>AKIAKEY</AWSAccessKeyId>"
        f"<SignatureProvided>abc123</SignatureProvided></Error>\n\nDebug source:\nGeneric {{ ... }}"
    )


def local(number: int, text: str) -> str:
    return f"Generic LocalFileSystem error: Unable to open file /a#1: {text} (os error {number})\n\nDebug source: x"


@pytest.mark.parametrize(
    ("error", "scheme", "kind", "says"),
    [
        (GenericError(answer(403, "AccessDenied")), "s3", StoreRefusedError, "403: AccessDenied"),
        (PermissionDeniedError(answer(403, "SignatureDoesNotMatch")), "s3", StoreRefusedError, "AWS_SECRET_ACCESS_KEY"),
        (UnauthenticatedError(answer(401, "Unauthorized")), "gs", StoreRefusedError, "GOOGLE_APPLICATION_CREDENTIALS"),
        (GenericError(answer(403, "AuthenticationFailed")), "az", StoreRefusedError, "AZURE_STORAGE_ACCOUNT_KEY"),
        (
            FileNotFoundError(answer(404, "NoSuchBucket")),
            "s3",
            StoreRefusedError,
            "no bucket 'bucket'; create",
        ),
        (
            FileNotFoundError(answer(404, "ContainerNotFound")),
            "az",
            StoreRefusedError,
            "no container 'bucket'",
        ),
        (FileNotFoundError(answer(404, "NoSuchKey")), "s3", ObjectMissingError, "s3://bucket/p/a does not exist"),
        (FileNotFoundError(answer(404, "BlobNotFound")), "az", ObjectMissingError, "does not exist"),
        (FileNotFoundError(answer(404, "InvalidAccessKeyId")), "s3", StoreRefusedError, "404: InvalidAccessKeyId"),
        (GenericError(answer(301, "PermanentRedirect")), "s3", StoreRefusedError, "AWS_REGION"),
        (GenericError(answer(400, "AuthorizationHeaderMalformed")), "s3", StoreRefusedError, "set the store's region"),
        (GenericError(answer(403, "RequestTimeTooSkewed")), "s3", StoreRefusedError, "set the clock"),
        (GenericError(answer(400, "InvalidArgument")), "s3", StoreError, "400: InvalidArgument: Something."),
        (GenericError(answer(507, "XMinioStorageFull")), "s3", StoreError, "the store is full"),
        (GenericError(answer(409, "ObjectParentIsFile")), "s3", StoreError, "a file stands where a folder is needed"),
        (GenericError(answer(503, "SlowDown")), "s3", StoreUnavailableError, "503: SlowDown"),
        (GenericError(answer(429, "TooManyRequests")), "gs", StoreUnavailableError, "429"),
        (
            GenericError(
                "Generic S3 error: Error performing PUT http://minio:9000/b/a in 9s - HTTP error: error sending"
            ),
            "s3",
            StoreUnavailableError,
            "no answer from http://minio:9000 (tried for up to 30 s)",
        ),
        (
            GenericError("HTTP error: error sending request\n invalid peer certificate: UnknownIssuer"),
            "s3",
            StoreRefusedError,
            "the certificate of http://minio:9000 is not trusted; name its CA file in AWS_CA_BUNDLE",
        ),
        (
            GenericError("Error performing PUT http://169.254.169.254/latest/api/token in 2s - HTTP error"),
            "s3",
            StoreRefusedError,
            "no credentials were found; set AWS_ACCESS_KEY_ID",
        ),
        (
            GenericError("Error performing GET http://metadata.google.internal/computeMetadata in 2s - HTTP error"),
            "gs",
            StoreRefusedError,
            "no credentials were found; set GOOGLE_APPLICATION_CREDENTIALS",
        ),
        (GenericError(local(13, "Permission denied")), "file", StoreRefusedError, "check its owner and mode"),
        (GenericError(local(30, "Read-only file system")), "file", StoreRefusedError, "Read-only file system"),
        (PermissionError(13, "Permission denied"), "file", StoreRefusedError, "check its owner and mode"),
        (GenericError(local(28, "No space left on device")), "file", StoreError, "the disk is full"),
        (GenericError(local(122, "Disk quota exceeded")), "file", StoreError, "the disk is full"),
        (GenericError(local(20, "Not a directory")), "file", StoreError, "a file stands where a folder is needed"),
        (GenericError(local(95, "Operation not supported")), "file", StoreError, "a store needs hard links"),
        (GenericError(local(5, "Input/output error")), "file", StoreUnavailableError, "check the disk or mount"),
        (FileNotFoundError("Object at location /data/a not found"), "file", ObjectMissingError, "does not exist"),
        (GenericError("Object at location a exploded"), "memory", StoreError, "exploded"),
    ],
)
def test_kinds_of_failure(error: Exception, scheme: str, kind: type[StoreError], says: str) -> None:
    """Each failure gets the type that tells whether to try again, names the object, and repeats no signature."""
    store = f"{scheme}://bucket/p"
    found = explain(error, scheme=scheme, store=store, path="a", endpoint="http://minio:9000", timeout=30)
    assert type(found) is kind
    assert str(found).startswith(f"{store}/a")
    assert says in str(found)
    assert "abc123" not in str(found)
    assert "AKIAKEY" not in str(found)
    assert "\n" not in str(found)


def test_an_object_name_that_looks_like_a_failure() -> None:
    """Words in an object's name, which the library repeats, are not taken for the failure."""
    text = answer(404, "NoSuchKey").replace("bucket/a", "bucket/redirect-certificate-169.254.169.254")
    found = explain(FileNotFoundError(text), scheme="s3", store="s3://bucket", path="a", endpoint=None, timeout=30)
    assert type(found) is ObjectMissingError


def test_scrubbing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Query strings, user names in URLs and the environment's secrets are taken out of a text; the rest stays."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cr3t/+")
    assert (
        scrub("PUT https://u:p@host/b/a?sig=xyz&x=1 failed for s3cr3t/+, really? yes")
        == "PUT https://***@host/b/a?*** failed for ***, really? yes"
    )
