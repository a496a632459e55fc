"""Where the Python of an entrypoint is: a folder, a ConfigMap, a commit, or an archive in an object store."""

import re
from typing import Annotated, ClassVar, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from .base import ApiModel, Cel, Uri
from .meta import ObjectName

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", max_length=64)]
# Every part begins with a letter, a digit or '_': no part is '..', none is hidden, and none is empty.
RelativePath = Annotated[
    str,
    Field(min_length=1, max_length=512, pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*$"),
]
FileKey = Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[A-Za-z0-9._-]+$")]


# A user, or a user and a password, of http(s); of ssh a user is no secret, a password is.
_CREDENTIALS = r"^(https?://[^/@]*@|ssh://[^/@:]*:[^/@]*@)"


class SecretReference(ApiModel):
    """A Secret in the same namespace."""

    name: ObjectName = Field(description="Its name.")


class KeyPath(ApiModel):
    """One key of a ConfigMap, and the file it becomes."""

    key: FileKey = Field(description="Key in the ConfigMap.")
    path: RelativePath = Field(description="File below the code's folder: pkg/model.py.")


class ConfigMapCode(ApiModel):
    """The keys of a ConfigMap in the same namespace as files of one folder."""

    name: ObjectName = Field(description="Its name.")
    items: Annotated[list[KeyPath], Field(min_length=1, max_length=256)] | None = Field(
        default=None, description="These keys only, at these paths; none: every key as a file of its name."
    )


class GitCode(ApiModel):
    """One commit of a git repository, without its submodules. The image, or the machine, needs the command git."""

    url: Annotated[
        str,
        Field(max_length=2048, pattern=r"^((https?|ssh)://|[A-Za-z0-9_.-]+@[A-Za-z0-9.-]+:)[!-~]+$"),
    ] = Field(description="https://, http://, ssh:// or git@host:path.")
    commit: Annotated[str, Field(max_length=64, pattern=r"^[0-9a-f]{40}([0-9a-f]{24})?$")] = Field(
        description="The full hash of the commit; branches and tags move."
    )
    path: RelativePath | None = Field(default=None, description="Folder of the repository; none: its root.")
    secret_ref: SecretReference | None = Field(
        default=None,
        description="Secret with username and password (of https://), or with ssh-privatekey and known_hosts (of ssh). "
        "Local runs use the machine's own git settings.",
    )
    allow_http: bool = Field(
        default=False,
        description="Send the Secret's password over http:// all the same, where everybody on the way can read it.",
    )

    cel_rules: ClassVar[tuple[Cel, ...]] = (
        Cel(
            f"!self.url.matches('{_CREDENTIALS}')",
            "url holds credentials, which everybody who can read this object would see",
        ),
        Cel(
            "!has(self.secretRef) || !self.url.startsWith('http://') || (has(self.allowHttp) && self.allowHttp)",
            "url would send the password of secretRef in the clear",
        ),
    )

    @model_validator(mode="after")
    def _secrets(self) -> Self:
        if re.search(_CREDENTIALS, self.url):
            raise PydanticCustomError(
                "url_with_credentials",
                "url holds credentials, which everybody who can read this object would see; "
                "remove what stands before '@', and name a Secret in secretRef",
                {},
            )
        if self.secret_ref is not None and self.url.startswith("http://") and not self.allow_http:
            raise PydanticCustomError(
                "password_over_http",
                "url would send the password of secretRef in the clear; write https://, or set allowHttp: true",
                {},
            )
        return self


class ArchiveCode(ApiModel):
    """A .tar.gz or .tar of plain files and folders, in an object store."""

    uri: Uri = Field(
        description="s3://, gs://, az://, file:// or, on one machine, a path; an s3:// one is read from "
        "the endpoint and region of spec.store."
    )
    sha256: Sha256 = Field(description="Of the archive; checked before it is unpacked.")


class Code(ApiModel):
    """Where the Python of the entrypoint is; of configMap, git and source at most one."""

    path: Uri | None = Field(
        default=None, description="A folder, relative to the YAML file. Local runs use it, whatever stands beside it."
    )
    config_map: ConfigMapCode | None = Field(default=None, description="Up to 1 MiB of files; on a cluster.")
    git: GitCode | None = Field(
        default=None, description="One commit of a repository; the image needs the command git."
    )
    source: ArchiveCode | None = Field(default=None, description="An archive in an object store.")

    cel_rules: ClassVar[tuple[Cel, ...]] = (
        Cel(
            "has(self.path) || has(self.configMap) || has(self.git) || has(self.source)",
            "one of path, configMap, git, source is needed",
        ),
        Cel(
            "(has(self.configMap) ? 1 : 0) + (has(self.git) ? 1 : 0) + (has(self.source) ? 1 : 0) <= 1",
            "at most one of configMap, git, source is possible",
        ),
    )

    @model_validator(mode="after")
    def _places(self) -> Self:
        if self.path is None and self.remote is None:
            raise PydanticCustomError(
                "no_code", "one of path, configMap, git, source is needed; add one, or leave code out", {}
            )
        places = {"configMap": self.config_map, "git": self.git, "source": self.source}
        given = [name for name, place in places.items() if place is not None]
        if len(given) > 1:
            raise PydanticCustomError(
                "two_codes",
                "at most one of configMap, git, source is possible, found {found}; keep one of them",
                {"found": " and ".join(given)},
            )
        return self

    @property
    def remote(self) -> ConfigMapCode | GitCode | ArchiveCode | None:
        """What a pod gets its code from; None: a local run's folder is all there is."""
        return self.config_map or self.git or self.source
