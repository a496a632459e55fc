"""The images of the test cluster: a Debian base, the pause process, and the targets of the Dockerfile.

buildah makes them, containerd runs them. Both keep their storage in one folder, named after everything that makes the
big layers, those of the runner; another recipe of these starts a new folder and drops the old. Nothing is pushed.
"""

from __future__ import annotations

import configparser
import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
REGISTRY = "modelpress.local"  # no server: containerd has every image, and nobody is asked for one
TARGETS = ("operator", "runner", "example")
BIG = ("base", "runner")  # the stages of the Dockerfile whose layers have gigabytes
SUITE = "bookworm"
PACKAGES = ("ca-certificates", "python3", "python3-venv")
# What a container has no use for; public slim images leave most of it out, too.
UNUSED = (
    *("var/cache/apt", "var/cache/debconf", "var/lib/apt/lists", "var/log", "dev", "run", "tmp"),
    *("usr/share/doc", "usr/share/man", "usr/share/info", "usr/share/locale", "usr/share/i18n", "usr/share/lintian"),
)
SYSTEM_CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")


# A process of its own namespaces: what it starts and mounts ends with it, and it ends with us, also by SIGKILL.
CONTAINED = (
    *("setpriv", "--pdeathsig", "KILL"),
    *("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"),
)


class ImageError(Exception):
    """An image could not be made; the message has the command and its last lines."""


@dataclass(frozen=True)
class Image:
    """An image in containerd; `size` is that of its layers in bytes, not compressed."""

    name: str
    size: int


class Images:
    """Builds images below `cache`; `base` names a public image to build on instead of one made by debootstrap."""

    def __init__(self, cache: Path, *, base: str | None = None) -> None:
        self._cache = cache
        self._public_base = base
        recipe = [base or f"{SUITE} {PACKAGES} {UNUSED}", *_stages((ROOT / "Dockerfile").read_text(), *BIG)]
        recipe.append((ROOT / "requirements" / "runner.txt").read_text())
        self.folder = cache / f"images-{_hash(recipe)}"
        self.folder.mkdir(parents=True, exist_ok=True)
        self._log = self.folder / "build.log"

    @property
    def containerd_root(self) -> Path:
        """containerd's own storage: images stay there from one cluster to the next."""
        return self.folder / "containerd"

    def clean(self) -> None:
        """Removes the storage of other recipes, and what a killed build left. No containerd or buildah may run."""
        for leftover in (*self.folder.glob("tmp-*"), *(self._cache / "tmp").glob("buildah[0-9]*")):
            shutil.rmtree(leftover)
        for other in self._cache.glob("images-*"):
            if other != self.folder:
                say(f"removing {other}: the runner's image had other packages")
                shutil.rmtree(other)

    # Build -----------------------------------------------------------------------------------------------------------

    def pause(self) -> str:
        """The image whose process holds a pod's namespaces; its name."""
        built = subprocess.run([HERE / "tools.sh", "pause"], stdout=subprocess.PIPE, text=True, check=True)
        binary = Path(built.stdout.strip()) / "pause"
        name = f"{REGISTRY}/pause:{_hash([binary.read_bytes()])}"
        if not self._exists(name):
            text = 'FROM scratch\nCOPY pause /pause\nUSER 65535:65535\nENTRYPOINT ["/pause"]\n'
            with self._scratch() as folder:
                shutil.copy(binary, folder)
                (folder / "Dockerfile").write_text(text)
                self._buildah("bud", "--tag", name, str(folder))
        return name

    def base(self) -> str:
        """What the Dockerfile's BASE is: Debian with Python, made here, or the public image that was asked for."""
        if self._public_base:
            return self._public_base
        name = f"{REGISTRY}/base:{_hash([SUITE, *PACKAGES, *UNUSED])}"
        if not self._exists(name):
            archive = self._cache / f"base-{_hash([SUITE, *PACKAGES, *UNUSED])}.tar"
            with self._scratch() as folder:
                if not archive.exists():
                    say(f"making a base image of Debian {SUITE} (once; a minute or two)")
                    self._debootstrap(folder / "rootfs")
                    with tarfile.open(folder / "rootfs.tar", "w") as tar:
                        tar.add(folder / "rootfs", arcname=".")
                    os.replace(folder / "rootfs.tar", archive)
                (folder / "context").mkdir()
                os.link(archive, folder / "context" / "rootfs.tar")
                (folder / "context" / "Dockerfile").write_text('FROM scratch\nADD rootfs.tar /\nCMD ["python3"]\n')
                self._buildah("bud", "--tag", name, str(folder / "context"))
        return name

    def _debootstrap(self, root: Path) -> None:
        mirror = os.environ.get("MODELPRESS_DEBIAN_MIRROR")
        command = ["debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}", SUITE, str(root)]
        self._run([*CONTAINED, *command, *([mirror] if mirror else [])])
        for unused in UNUSED:
            for entry in (root / unused).iterdir() if (root / unused).is_dir() else ():
                if entry.is_dir() and not entry.is_symlink():
                    shutil.rmtree(entry)
                else:
                    entry.unlink()

    def build(self, target: str) -> str:
        """An image of this checkout's Dockerfile; its name's tag is a hash of all that goes into it."""
        base = self.base()
        with self._scratch() as context:
            # A copy: the name must be of exactly the files that are built, whoever edits the checkout meanwhile.
            contents: list[str | bytes] = [base, target]
            for path in _context_files():
                copy = context / path
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / path, copy)
                contents += [str(path), copy.read_bytes()]
            name = f"{REGISTRY}/{target}:{_hash(contents)}"
            if not self._exists(name):
                say(f"building the image {name} (the first time it installs packages: minutes)")
                with self._registry_access() as mounts:
                    options = ["--layers", "--pull=false", "--target", target, "--build-arg", f"BASE={base}", *mounts]
                    self._buildah("bud", *options, "--tag", name, str(context))
                self._untag_older(name)
        return name

    @contextlib.contextmanager
    def _registry_access(self) -> Iterator[list[str]]:
        """Mounts for a build's commands: the machine's pip settings and certificates. The image gets neither."""
        settings = configparser.ConfigParser()
        settings.read("/etc/pip.conf")
        if not settings.has_section("global"):
            settings.add_section("global")
        mounts = []
        if SYSTEM_CERTIFICATES.exists():
            settings["global"]["cert"] = str(SYSTEM_CERTIFICATES)
            mounts = ["--volume", f"{SYSTEM_CERTIFICATES}:{SYSTEM_CERTIFICATES}:ro"]
        for variable in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_TRUSTED_HOST"):
            if value := os.environ.get(variable):
                settings["global"][variable.removeprefix("PIP_").lower().replace("_", "-")] = value
        with tempfile.NamedTemporaryFile("w", suffix=".conf") as file:
            settings.write(file)
            file.flush()
            os.chmod(file.name, 0o644)
            yield [*mounts, "--volume", f"{file.name}:/etc/pip.conf:ro"]

    def _exists(self, name: str) -> bool:
        return self._buildah("inspect", "--type", "image", name, check=False).returncode == 0

    def _untag_older(self, name: str) -> None:
        """Drops other tags of the same image name; layers that the current one shares stay."""
        for image in json.loads(self._buildah("images", "--json").stdout or "[]"):
            for other in image.get("names") or []:
                if other != name and other.rpartition(":")[0] == name.rpartition(":")[0]:
                    self._buildah("rmi", other, check=False)

    # Into containerd -------------------------------------------------------------------------------------------------

    def load(self, name: str, socket: Path, *, alias: str | None = None) -> Image:
        """Gives an image to the containerd at `socket`, which gets only the layers that it has not got.

        It is there under its own name and, for manifests that name it so, under `alias`.
        """
        ctr = ["ctr", "--address", str(socket), "--namespace", "k8s.io"]
        if name not in self._run([*ctr, "images", "ls", "-q"]).stdout.split():
            started = time.monotonic()
            repository, _, tag = name.rpartition(":")
            with self._scratch() as layout:
                blobs = layout / "blobs" / "sha256"
                blobs.mkdir(parents=True)
                # skopeo writes no blob that the layout has already, so it may find those of containerd there.
                known = self.containerd_root / "io.containerd.content.v1.content" / "blobs" / "sha256"
                for blob in known.iterdir() if known.is_dir() else ():
                    os.link(blob, blobs / blob.name)
                with self._scratch() as run:
                    source = f"containers-storage:[overlay@{self.folder / 'buildah'}+{run}]{name}"
                    copy = ["skopeo", "copy", "--quiet", "--dest-oci-accept-uncompressed-layers"]
                    self._run([*CONTAINED, *copy, source, f"oci:{layout}:{tag}"])
                self._stream([*ctr, "images", "import", "--base-name", repository, "-"], layout)
            say(f"containerd took {name} in {time.monotonic() - started:.0f} s")
            older = [
                other
                for other in self._run([*ctr, "images", "ls", "-q"]).stdout.split()
                if other != name and other.rpartition(":")[0] == repository
            ]
            if older:
                self._run([*ctr, "images", "rm", *older])
        if alias is not None:
            self._run([*ctr, "images", "tag", "--force", name, alias])
        digest = self._run([*ctr, "images", "ls", f"name=={name}"]).stdout.splitlines()[1].split()[2]
        manifest = json.loads(self._run([*ctr, "content", "get", digest]).stdout)
        return Image(name, sum(layer["size"] for layer in manifest["layers"]))

    def _stream(self, command: list[str], layout: Path) -> None:
        """Pipes the layout as a tar into the command, less what is linked from containerd's own storage."""

        def new(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
            linked = (layout / member.name).stat().st_nlink > 1
            return None if member.isfile() and linked else member

        with (
            open(self._log, "ab") as log,
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log) as process,
        ):
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError), tarfile.open(fileobj=process.stdin, mode="w|") as tar:
                for path in sorted(layout.rglob("*")):
                    tar.add(path, arcname=str(path.relative_to(layout)), recursive=False, filter=new)
            process.stdin.close()
        if process.returncode:
            raise ImageError(f"{' '.join(command)} ended with {process.returncode}:\n{_tail(self._log)}")

    # Processes -------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _scratch(self) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(dir=self.folder, prefix="tmp-") as folder:
            yield Path(folder)

    def _buildah(self, command: str, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        temporary = self._cache / "tmp"  # keeps what pip downloaded
        temporary.mkdir(parents=True, exist_ok=True)
        environment = os.environ | {
            "BUILDAH_ISOLATION": "chroot",
            "STORAGE_DRIVER": "overlay",
            "TMPDIR": str(temporary),
        }
        with self._scratch() as run:
            # What it notes about its mounts is for this process only, as the mounts are.
            prefix = [*CONTAINED, "buildah", "--root", str(self.folder / "buildah"), "--runroot", str(run)]
            return self._run([*prefix, command, *arguments], environment=environment, check=check)

    def _run(
        self, command: list[str], *, environment: dict[str, str] | None = None, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        with open(self._log, "a+", encoding="utf-8", errors="replace") as log:
            log.write(f"$ {' '.join(command)}\n")
            log.flush()
            done: subprocess.CompletedProcess[str] = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True, env=environment
            )
        if check and done.returncode:
            raise ImageError(f"{' '.join(command)} ended with {done.returncode}:\n{_tail(self._log)}")
        return done


def say(message: str) -> None:
    """One line for whoever waits."""
    print(f"e2e: {message}", file=sys.stderr, flush=True)


def _context_files() -> list[Path]:
    """What .dockerignore lets through, relative to the checkout."""
    names = [Path(name) for name in ("Dockerfile", ".dockerignore", "LICENSE", "README.md", "pyproject.toml")]
    for folder in ("requirements", "modelpress", "operator", "runner"):
        found = (path for path in sorted((ROOT / folder).rglob("*")) if path.is_file())
        names += [path.relative_to(ROOT) for path in found if "__pycache__" not in path.parts]
    return names


def _stages(dockerfile: str, *names: str) -> list[str]:
    """The text of each of these stages."""
    texts = re.split(r"^(?=FROM )", dockerfile, flags=re.MULTILINE)
    found = {match[1]: text for text in texts if (match := re.match(r"FROM \S+ AS (\S+)", text))}
    return [found[name] for name in names]


def _hash(parts: Iterable[Any]) -> str:
    total = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else str(part).encode()
        total.update(b"%d\0" % len(data) + data)
    return total.hexdigest()[:16]


def _tail(path: Path, lines: int = 25) -> str:
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
