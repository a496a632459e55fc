"""Where URIs of a recipe are resolved, and how their files come here."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from modelpress.api.v1alpha1 import Store
from modelpress.store import ArtifactStore, ObjectMissingError, open_store
from modelpress_runner.errors import InvalidSpecError

log = logging.getLogger("modelpress")


@dataclass(frozen=True)
class UriResolver:
    """Where URIs are resolved: relative ones below `base`, remote ones fetched into `folder`."""

    base: str | None
    folder: Path
    store: Store | None = None

    def file(self, uri: str, name: str, path: str) -> Path:
        """The file at `uri` on this machine; `name` tells downloads apart, `path` is the field that it stands in.

        Raises:
            InvalidSpecError: there is none.
        """
        local = self._local(uri)
        if local is not None:
            if not local.is_file():
                raise InvalidSpecError(f"there is no file {local}; correct the path", path)
            return local
        parent, _, last = uri.rpartition("/")
        if not last or parent.endswith((":", ":/")):
            raise InvalidSpecError(f"{uri} names no file; give the URI of one", path)
        target = self.folder / name / last
        log.info("fetching %s", uri)
        try:
            self._open(parent).get_file(last, target)
        except ObjectMissingError:
            raise InvalidSpecError(f"there is no object {uri}; correct the URI", path) from None
        return target

    def directory(self, uri: str, name: str, path: str) -> Path:
        """The folder at `uri` on this machine, with all that is in it; arguments as for `file`.

        Raises:
            InvalidSpecError: there is none, or it is empty.
        """
        local = self._local(uri)
        if local is not None:
            if not local.is_dir():
                raise InvalidSpecError(f"there is no folder {local}; correct the path", path)
            return local
        log.info("fetching %s", uri)
        store, target = self._open(uri.rstrip("/")), self.folder / name
        for item in store.list(""):
            store.get_file(item.path, target / item.path)
        if not target.is_dir():
            raise InvalidSpecError(f"there are no objects below {uri}; correct the URI", path)
        return target

    def _local(self, uri: str) -> Path | None:
        if uri.startswith("file://"):
            return Path(unquote(urlsplit(uri).path))
        return None if "://" in uri else Path(self.base or ".") / Path(uri).expanduser()

    def _open(self, uri: str) -> ArtifactStore:
        same = self.store if self.store is not None and uri.startswith("s3://") else None
        return open_store(uri, endpoint=same.endpoint if same else None, region=same.region if same else None)
