"""The artifact store: trials, models and checkpoints in s3://, gs://, az://, a folder, or memory.

    store = open_store("s3://models/out", endpoint="http://minio:9000")
    store.put_file("default/digits-1a2b3c4d/1-9f8e7d6c/model.pt2", Path("model.pt2"))

Importing this package loads no storage library; opening a store does.
"""

from __future__ import annotations

from .base import ArtifactStore, ObjectInfo
from .errors import (
    ObjectMissingError,
    StoreError,
    StoreRefusedError,
    StoreUnavailableError,
    StoreUriError,
    TooLargeError,
)
from .uri import DEFAULT_TIMEOUT, SCHEMES, open_store

__all__ = [
    "DEFAULT_TIMEOUT",
    "SCHEMES",
    "ArtifactStore",
    "ObjectInfo",
    "ObjectMissingError",
    "StoreError",
    "StoreRefusedError",
    "StoreUnavailableError",
    "StoreUriError",
    "TooLargeError",
    "open_store",
]
