"""The folder of a pretrained model: on this machine, in an object store, or on the Hugging Face Hub."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from modelpress.api.semantic_sources import HUB
from modelpress.api.v1alpha1 import FolderSource
from modelpress_runner.errors import InvalidModelError, InvalidSpecError, StoreError, first_line
from modelpress_runner.inputs.uri_resolver import UriResolver

log = logging.getLogger("modelpress")

SOURCE = "spec.model.huggingFace.source"
# Of a repository only what is read is fetched: no pickles, no code, no other frameworks' weights.
_HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.spm", "*.jinja"]


def fetch(source: FolderSource, resolver: UriResolver, name: str = "source", path: str = SOURCE) -> Path:
    """The folder of `source` on this machine, checked to hold a configuration and safetensors.

    Args:
        source: where it is.
        resolver: fetches it.
        name: tells downloads apart.
        path: the field that the source stands in.

    Raises:
        InvalidSpecError: there is no such folder or repository, or it lacks one of the two.
        StoreError: the object store or the Hub refuses or fails.
    """
    where = f"{path}.uri"
    if source.uri.startswith(HUB):
        folder = _from_hub(source.uri.removeprefix(HUB), source.revision, path)
    else:
        folder = resolver.directory(source.uri, name, where)
    if not (folder / "config.json").is_file():
        message = f"{source.uri} has no config.json; give a folder that save_pretrained wrote"
        raise InvalidSpecError(message, where)
    if not any((folder / name).is_file() for name in ("model.safetensors", "model.safetensors.index.json")):
        pickled = next((item.name for item in sorted(folder.iterdir()) if item.suffix in (".bin", ".pt", ".pth")), None)
        found = f"holds pickled weights ({pickled}), which are never opened" if pickled else "has no model.safetensors"
        message = f"{source.uri} {found}; write it anew with model.save_pretrained(folder) of transformers 5 or later"
        raise InvalidSpecError(message, where)
    return folder


def _from_hub(name: str, revision: str | None, path: str) -> Path:
    library()
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    log.info("fetching %s from the Hugging Face Hub", name)
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=_HUB_FILES))
    except RevisionNotFoundError as error:
        message = f"{name} has no revision {revision}; give a commit, tag or branch"
        raise InvalidSpecError(message, f"{path}.revision") from error
    except (GatedRepoError, RepositoryNotFoundError) as error:
        message = f"there is no repository {name}, or it is not open to all; correct it, or set HF_TOKEN"
        raise InvalidSpecError(message, f"{path}.uri") from error
    except Exception as error:  # its errors of connections come from several libraries
        message = f"{name} cannot be fetched from the Hub ({first_line(error)}); put the folder into an object store"
        raise StoreError(message, f"{path}.uri") from error


def library() -> Any:
    """The module transformers.

    Raises:
        InvalidModelError: it is not installed.
    """
    try:
        import transformers
    except ModuleNotFoundError as error:
        message = "huggingFace needs transformers; install it with pip install 'modelpress[transformers]'"
        raise InvalidModelError(message, "spec.model.huggingFace") from error
    return transformers
