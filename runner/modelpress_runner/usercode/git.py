"""One commit of a git repository, by the machine's git."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, urlsplit

from modelpress.api.v1alpha1 import GitCode
from modelpress_runner.errors import CodeUnavailableError, InvalidSpecError

TRIES = 3
PAUSE_SECONDS = 2.0

# What a server, or git itself, says when it does not give out the commit that was asked for.
_NO_COMMIT = re.compile(r"not our ref|unadvertised object|couldn't find remote ref|no such remote ref", re.IGNORECASE)
# What does not get better by asking again at once.
_FINAL = re.compile(
    r"authentication failed|could not read (username|password)|permission denied|not found|does not exist|"
    r"host key verification failed|error: 40[134]|access denied|not allowed",
    re.IGNORECASE,
)
# No hooks, no filters of the machine's, and no transport but those that spec.code.git.url can name. A server that
# stalls for a minute is given up.
_SETTINGS = (
    ("core.hooksPath", os.devnull),
    ("protocol.allow", "never"),
    ("protocol.http.allow", "always"),
    ("protocol.https.allow", "always"),
    ("protocol.ssh.allow", "always"),
    ("http.lowSpeedLimit", "100"),
    ("http.lowSpeedTime", "60"),
    ("gc.auto", "0"),
)


def clone(code: GitCode, folder: Path, secret: Path) -> Path:
    """The commit's files, or those of its folder `code.path`, below `folder`.

    Args:
        folder: where the repository, and for the time of the transfer the credentials, are written.
        secret: the mounted Secret of code.secret_ref; where there is none (on one machine) git uses its own settings.

    Raises:
        InvalidSpecError: the repository has no such commit, or the commit no such folder.
        CodeUnavailableError: there is no git, no access, or no connection.
    """
    if shutil.which("git") is None:
        raise CodeUnavailableError(
            "the image has no git; take one that has, or give the code by configMap or source", "spec.code.git"
        )
    root = folder / "repository"
    keys = folder / "credentials"
    keys.mkdir(mode=0o700)
    try:
        access = _access(code, secret, keys)
        git = _Git(root, access)
        git.run("init", "--quiet", f"--object-format={'sha256' if len(code.commit) == 64 else 'sha1'}", str(root))
        _fetch(git, code)
        _check_commit(git, code)
        git.run("checkout", "--quiet", "--detach", code.commit)
    except _GitError as error:
        raise CodeUnavailableError(f"git failed ({error}); look whether /tmp is full", "spec.code.git") from None
    finally:
        shutil.rmtree(keys)
    shutil.rmtree(root / ".git")
    found = (root / (code.path or ".")).resolve()
    if not found.is_dir() or not found.is_relative_to(root.resolve()):
        raise InvalidSpecError(f"the commit has no folder {code.path}; correct it", "spec.code.git.path")
    return found


@dataclass(frozen=True)
class _Access:
    """What git is told on the side: settings and environment variables."""

    settings: tuple[tuple[str, str], ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


class _GitError(Exception):
    """git failed; the text is the last line of its error output."""


class _Git:
    """The command git in one repository, which asks nobody anything."""

    def __init__(self, root: Path, access: _Access) -> None:
        self._root = root
        settings = (*_SETTINGS, *access.settings)
        # Settings go by the environment: a command line can be read by others on the machine.
        self._environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("GIT_")},
            **{key: os.environ[key] for key in ("GIT_SSL_CAINFO", "GIT_SSH_COMMAND") if key in os.environ},
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_LFS_SKIP_SMUDGE": "1",
            "GIT_CONFIG_COUNT": str(len(settings)),
            **{f"GIT_CONFIG_KEY_{index}": key for index, (key, _) in enumerate(settings)},
            **{f"GIT_CONFIG_VALUE_{index}": value for index, (_, value) in enumerate(settings)},
            "LC_ALL": "C",
            **access.environment,
        }

    def run(self, *arguments: str) -> str:
        """What git prints. Raises _GitError."""
        command: Sequence[str] = ("git", *(() if arguments[0] == "init" else ("-C", str(self._root))), *arguments)
        done = subprocess.run(
            command, env=self._environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace"
        )
        if done.returncode == 0:
            return done.stdout.strip()
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        telling = [line for line in lines if line.lower().startswith(("fatal:", "error:", "remote:"))] or lines
        raise _GitError("; ".join(telling[-2:])[:400] or f"exit code {done.returncode}")


def _fetch(git: _Git, code: GitCode) -> None:
    """The commit alone; where a server gives out branches and tags only, all of those."""
    path = "spec.code.git"
    try:
        _patiently(git, "fetch", "--quiet", "--no-tags", "--depth=1", "--", code.url, code.commit)
        return
    except _GitError as error:
        if not _NO_COMMIT.search(str(error)):
            raise CodeUnavailableError(f"{code.url} cannot be fetched ({error}); {_advice(code)}", path) from None
    try:
        _patiently(git, "fetch", "--quiet", "--", code.url, "+refs/*:refs/fetched/*")
    except _GitError as error:
        raise CodeUnavailableError(f"{code.url} cannot be fetched ({error}); {_advice(code)}", path) from None


def _check_commit(git: _Git, code: GitCode) -> None:
    """git derives every hash from the content, so a commit that is there under its hash is the right one."""
    try:
        found = git.run("rev-parse", "--verify", "--quiet", f"{code.commit}^{{commit}}")
    except _GitError:
        found = ""
    if found != code.commit:  # a tag's own hash leads to another one
        message = f"no branch or tag of {code.url} leads to the commit {code.commit}; push it, or correct the hash"
        raise InvalidSpecError(message, "spec.code.git.commit")


def _patiently(git: _Git, *arguments: str) -> None:
    for left in reversed(range(TRIES)):
        try:
            git.run(*arguments)
            return
        except _GitError as error:
            if left == 0 or _NO_COMMIT.search(str(error)) or _FINAL.search(str(error)):
                raise
            time.sleep(PAUSE_SECONDS)


def _advice(code: GitCode) -> str:
    if code.secret_ref is not None:
        return f"check the URL and the Secret {code.secret_ref.name}"
    return "check the URL, and name a Secret in secretRef if the repository is not public"


def _access(code: GitCode, secret: Path, keys: Path) -> _Access:
    if code.secret_ref is None or not secret.is_dir():
        return _Access()
    name, path = code.secret_ref.name, "spec.code.git.secretRef"
    values = {file.name: file.read_text() for file in secret.iterdir() if file.is_file()}
    if not values:
        raise CodeUnavailableError(f"there is no Secret {name} in the pod's namespace, or it is empty; create it", path)
    if code.url.startswith(("https://", "http://")):
        if not values.get("password", "").strip():
            raise CodeUnavailableError(f"the Secret {name} has no key password (a token will do); add it", path)
        user, password = values.get("username", "git").strip(), values["password"].strip()
        parts = urlsplit(code.url)
        line = f"{parts.scheme}://{quote(user, safe='')}:{quote(password, safe='')}@{parts.netloc}\n"
        _write(keys / "store", line)
        # The empty value takes away helpers that the machine may have.
        helper = f"store --file={shlex.quote(str(keys / 'store'))}"
        return _Access((("credential.helper", ""), ("credential.helper", helper)))
    missing = [key for key in ("ssh-privatekey", "known_hosts") if not values.get(key, "").strip()]
    if missing:
        raise CodeUnavailableError(f"the Secret {name} has no key {' and no '.join(missing)}; add it", path)
    # ssh takes no key that others can read, nor one whose last line is not ended.
    _write(keys / "key", values["ssh-privatekey"].rstrip() + "\n")
    _write(keys / "known_hosts", values["known_hosts"])
    hosts = f"UserKnownHostsFile={keys}/known_hosts"
    command = ["ssh", "-F", "none", "-i", str(keys / "key")]
    for option in ("IdentitiesOnly=yes", "BatchMode=yes", "StrictHostKeyChecking=yes", "ConnectTimeout=30", hosts):
        command += ["-o", option]
    return _Access(environment={"GIT_SSH_COMMAND": shlex.join(command)})


def _write(path: Path, text: str) -> None:
    path.touch(mode=0o600)
    path.write_text(text)
