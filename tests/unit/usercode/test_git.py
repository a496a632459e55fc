"""Code from a commit, by a real git from a real server."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest

from modelpress.api.v1alpha1 import GitCode
from modelpress_runner.errors import CodeUnavailableError, InvalidSpecError
from modelpress_runner.usercode import git as gitclone
from modelpress_runner.usercode.git import clone


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pauses between tries."""
    monkeypatch.setattr(gitclone, "PAUSE_SECONDS", 0.0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the code goes."""
    path = tmp_path / "fetched"
    path.mkdir()
    return path


def code(url: str, commit: str, **more: Any) -> GitCode:
    return GitCode.model_validate({"url": url, "commit": commit, **more})


def secret(tmp_path: Path, **values: str) -> Path:
    """A mounted Secret; `_` in a key stands for '-', but in known_hosts."""
    path = tmp_path / "secret"
    path.mkdir()
    for key, value in values.items():
        (path / (key if key == "known_hosts" else key.replace("_", "-"))).write_text(value)
    return path


def test_the_commit_is_fetched_not_the_branch(git_server: Any, folder: Path, tmp_path: Path) -> None:
    """An older commit's files are there, alone, without the repository's history."""
    repository = git_server.repository("digits")
    commit = git_server.commit(repository, digits_py="one = 1\n", pkg__model_py="")
    git_server.commit(repository, digits_py="two = 2\n")
    found = clone(code(f"{git_server.url}/digits", commit), folder, tmp_path / "none")
    assert (found / "digits.py").read_text() == "one = 1\n"
    assert (found / "pkg" / "model.py").exists()
    assert not (found / ".git").exists()
    assert [path.name for path in folder.iterdir()] == ["repository"]


def test_a_server_that_gives_out_branches_only(git_server: Any, folder: Path, tmp_path: Path) -> None:
    """Then all branches are fetched, and the commit must be on one of them."""
    repository = git_server.repository("old", any_commit=False)
    commit = git_server.commit(repository, digits_py="one = 1\n")
    git_server.commit(repository, digits_py="two = 2\n")
    found = clone(code(f"{git_server.url}/old", commit), folder, tmp_path / "none")
    assert (found / "digits.py").read_text() == "one = 1\n"


def test_a_folder_of_the_repository(git_server: Any, folder: Path, tmp_path: Path) -> None:
    """`path` is the code folder; a link that leads out of the repository is none."""
    repository = git_server.repository("mono")
    (repository / "out").symlink_to("/")
    commit = git_server.commit(repository, src__a__digits_py="")
    found = clone(code(f"{git_server.url}/mono", commit, path="src/a"), folder, tmp_path / "none")
    assert [path.name for path in found.iterdir()] == ["digits.py"]
    for index, path in enumerate(("src/b", "out", "src/a/digits.py")):
        target = folder / str(index)
        target.mkdir()
        with pytest.raises(InvalidSpecError, match=rf"spec\.code\.git\.path: the commit has no folder {path}"):
            clone(code(f"{git_server.url}/mono", commit, path=path), target, tmp_path / "none")


@pytest.mark.parametrize("any_commit", [True, False])
def test_a_commit_that_is_nowhere(git_server: Any, folder: Path, tmp_path: Path, any_commit: bool) -> None:
    """Never tried again: the hash is wrong, or it was not pushed."""
    git_server.commit(git_server.repository("digits", any_commit=any_commit))
    with pytest.raises(
        InvalidSpecError, match=r"spec\.code\.git\.commit: no branch or tag .* leads to the commit 0{40}"
    ):
        clone(code(f"{git_server.url}/digits", "0" * 40), folder, tmp_path / "none")


def test_a_tree_is_no_commit(git_server: Any, folder: Path, tmp_path: Path) -> None:
    """The hash of anything else than a commit is refused, whatever the server gives out."""
    repository = git_server.repository("digits")
    tree = git_server.commit(repository, digits_py="", tree=True)
    with pytest.raises(InvalidSpecError, match=r"spec\.code\.git\.commit: "):
        clone(code(f"{git_server.url}/digits", tree), folder, tmp_path / "none")


def test_a_repository_that_is_not_there(git_server: Any, folder: Path, tmp_path: Path) -> None:
    """It may be private, or come to be: another attempt is worth it, asking again at once is not."""
    with pytest.raises(CodeUnavailableError, match=r"spec\.code\.git: .*/none cannot be fetched .*not found"):
        clone(code(f"{git_server.url}/none", "0" * 40), folder, tmp_path / "none")
    assert len(git_server.seen) == 1


def test_a_server_that_stumbles_is_asked_again(git_server: Any, folder: Path, tmp_path: Path) -> None:
    """Two failures are survived, three are told."""
    commit = git_server.commit(git_server.repository("digits"), digits_py="")
    git_server.broken = 2
    assert clone(code(f"{git_server.url}/digits", commit), folder, tmp_path / "none").is_dir()
    git_server.broken = 3
    again = folder / "again"
    again.mkdir()
    with pytest.raises(CodeUnavailableError, match="500"):
        clone(code(f"{git_server.url}/digits", commit), again, tmp_path / "none")


def test_a_password_opens_a_private_repository(git_server: Any, folder: Path, tmp_path: Path) -> None:
    """It is read from the Secret, odd characters included, and none of it is left on disk or in the environment."""
    commit = git_server.commit(git_server.repository("digits"), digits_py="")
    git_server.credentials = ("me", "p@ss:w/rd %20")
    wanted = code(f"{git_server.url}/digits", commit, secretRef={"name": "git"}, allowHttp=True)
    found = clone(wanted, folder, secret(tmp_path, username="me", password="p@ss:w/rd %20\n"))
    assert (found / "digits.py").exists()
    assert not any("p@ss" in value for value in os.environ.values())
    assert [path.name for path in folder.iterdir()] == ["repository"]


def test_a_wrong_password_is_told_without_it(git_server: Any, folder: Path, tmp_path: Path) -> None:
    """The message names the Secret, and says nothing of what is in it."""
    commit = git_server.commit(git_server.repository("digits"), digits_py="")
    git_server.credentials = ("me", "right")
    wanted = code(f"{git_server.url}/digits", commit, secretRef={"name": "git"}, allowHttp=True)
    with pytest.raises(CodeUnavailableError, match="check the URL and the Secret git") as caught:
        clone(wanted, folder, secret(tmp_path, username="me", password="wrong"))
    assert "wrong" not in str(caught.value)


def test_a_private_repository_without_a_secret(git_server: Any, folder: Path, tmp_path: Path) -> None:
    """Nobody is asked for a password, and the message says where to give one."""
    commit = git_server.commit(git_server.repository("digits"), digits_py="")
    git_server.credentials = ("me", "right")
    with pytest.raises(CodeUnavailableError, match="name a Secret in secretRef"):
        clone(code(f"{git_server.url}/digits", commit), folder, tmp_path / "none")


@pytest.mark.parametrize(
    ("url", "values", "message"),
    [
        ("https://example.com/a.git", {}, "there is no Secret git in the pod's namespace, or it is empty"),
        ("https://example.com/a.git", {"username": "me"}, "has no key password"),
        ("git@example.com:a.git", {"password": "x"}, "has no key ssh-privatekey and no known_hosts"),
        ("ssh://git@example.com/a.git", {"ssh_privatekey": "x"}, "has no key known_hosts"),
    ],
)
def test_what_a_secret_lacks_is_named(folder: Path, tmp_path: Path, url: str, values: Any, message: str) -> None:
    """A Secret that is missing or incomplete is told before anybody is asked."""
    wanted = code(url, "0" * 40, secretRef={"name": "git"}, allowHttp=True)
    with pytest.raises(CodeUnavailableError, match=rf"spec\.code\.git\.secretRef: .*{message}"):
        clone(wanted, folder, secret(tmp_path, **values))
    assert not (folder / "credentials").exists()


def test_ssh_knows_one_key_and_one_file_of_hosts(
    git_server: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The key is private to the process, its last line is ended, and unknown hosts are refused.

    In place of a connection, a program called ssh notes how it was called and serves the repository itself.
    """
    repository = git_server.repository("digits")
    commit = git_server.commit(repository, digits_py="")
    programs, notes = tmp_path / "bin", tmp_path / "notes"
    programs.mkdir()
    (programs / "ssh").write_text(
        f'#!/bin/sh\nprintf \'%s\\n\' "$@" > {notes}\nkey=$(sed -n 4p {notes})\ncp -p "$key" {tmp_path}/key\n'
        f"exec git-upload-pack {repository}/.git\n"
    )
    (programs / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("GIT_SSH_COMMAND", "false")  # of whoever runs this; the Secret goes before it
    wanted = code("git@git.example.com:team/digits.git", commit, secretRef={"name": "git"})
    mounted = secret(
        tmp_path, ssh_privatekey="-----BEGIN KEY-----\nabc", known_hosts="git.example.com ssh-ed25519 AAAA"
    )
    assert (clone(wanted, folder, mounted) / "digits.py").exists()
    told = notes.read_text().splitlines()
    assert {"IdentitiesOnly=yes", "StrictHostKeyChecking=yes", "BatchMode=yes"} <= set(told)
    assert f"UserKnownHostsFile={folder}/credentials/known_hosts" in told
    assert "git@git.example.com" in told
    assert (tmp_path / "key").read_text() == "-----BEGIN KEY-----\nabc\n"
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600
    assert not (folder / "credentials").exists()


def test_an_image_without_git(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message says what else there is."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CodeUnavailableError, match="the image has no git; take one that has, or give the code by"):
        clone(code("https://example.com/a.git", "0" * 40), folder, tmp_path / "none")
