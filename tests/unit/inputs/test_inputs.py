"""The files that a recipe names, from wherever they are, and the digest that dense models and checkpoints carry."""

from __future__ import annotations

import hashlib

import pytest

from modelpress.api.v1alpha1 import CompressionJobSpec
from modelpress.store import open_store
from modelpress_runner.artifact.identity import dense_digest
from modelpress_runner.errors import InvalidSpecError
from modelpress_runner.inputs.gather import digest_of, gathered
from modelpress_runner.inputs.uri_resolver import UriResolver

PRUNE = {"prune": {"configList": [{"opTypes": ["Linear"], "sparsity": 0.5}]}}


def spec(**data):
    given = {"model": {"entrypoint": "a:b"}, "stages": [PRUNE]}
    return CompressionJobSpec.model_validate({**given, **({"data": data} if data else {})})


def test_nothing_named_is_nothing_fetched(tmp_path):
    """No data, no digest."""
    with gathered(spec(), str(tmp_path)) as inputs:
        assert inputs.data == {}
        assert inputs.digest == ""


def test_paths_and_uris_give_the_same_rows(tmp_path):
    """A relative path, an absolute one, file:// and an object store; equal content has equal digests."""
    content = "text\nred\n"
    (tmp_path / "a.csv").write_text(content)
    open_store("memory://inputs").put_bytes("deep/a.csv", content.encode())
    digests = set()
    for uri in ("a.csv", str(tmp_path / "a.csv"), f"file://{tmp_path}/a.csv", "memory://inputs/deep/a.csv"):
        with gathered(spec(train={"uri": uri}), str(tmp_path)) as inputs:
            assert list(inputs.data["train"]) == [{"text": "red"}]
            digests.add(inputs.digest)
    assert len(digests) == 1


def test_a_folder_comes_whole_from_a_store(tmp_path):
    """All objects below the URI, at their places; nothing is left behind."""
    store = open_store("memory://inputs")
    store.put_bytes("model/config.json", b"{}")
    store.put_bytes("model/sub/x.txt", b"x")
    store.put_bytes("models/other.txt", b"y")
    found = UriResolver(None, tmp_path).directory("memory://inputs/model/", "source", "spec.x")
    assert sorted(path.relative_to(found).as_posix() for path in found.rglob("*") if path.is_file()) == [
        "config.json",
        "sub/x.txt",
    ]
    local = tmp_path / "local"
    (local / "sub").mkdir(parents=True)
    (local / "config.json").write_bytes(b"{}")
    (local / "sub" / "x.txt").write_bytes(b"x")
    (local / ".cache").write_bytes(b"hidden")
    assert digest_of(found) == digest_of(local)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("none.csv", "there is no file"),
        (".", "there is no file"),
        ("memory://inputs/none.csv", "there is no object memory://inputs/none.csv"),
        ("memory:///", "names no file"),
    ],
)
def test_what_is_not_there_is_named(uri, message, tmp_path):
    """The field and the place that was looked at."""
    with (
        pytest.raises(InvalidSpecError, match=rf"^spec\.data\.train\.uri: .*{message}"),
        gathered(spec(train={"uri": uri, "format": "csv"}), str(tmp_path)),
    ):
        pass


def test_folders_that_are_not_there(tmp_path):
    """Nor is a prefix that no object has."""
    for uri, message in (
        (str(tmp_path / "none"), "there is no folder"),
        ("memory://inputs/none", "there are no objects"),
    ):
        with (
            pytest.raises(InvalidSpecError, match=rf"^spec\.data\.train\.uri: {message}"),
            gathered(spec(train={"uri": uri}), None),
        ):
            pass


def test_a_wrong_sha256_is_refused(tmp_path):
    """The digest that is given is that of the file."""
    (tmp_path / "a.csv").write_text("text\nred\n")
    right = hashlib.sha256((tmp_path / "a.csv").read_bytes()).hexdigest()
    with gathered(spec(train={"uri": "a.csv", "sha256": right}), str(tmp_path)):
        pass
    with (
        pytest.raises(InvalidSpecError, match=rf"^spec\.data\.train\.sha256: a\.csv has sha256 {right}"),
        gathered(spec(train={"uri": "a.csv", "sha256": "0" * 64}), str(tmp_path)),
    ):
        pass


def test_calibration_is_cut_to_its_samples(tmp_path):
    """So many rows from the beginning."""
    (tmp_path / "a.csv").write_text("text\nred\nblue\ncat\n")
    with gathered(spec(calibration={"uri": "a.csv", "samples": 2}), str(tmp_path)) as inputs:
        assert [row["text"] for row in inputs.data["calibration"]] == ["red", "blue"]
        assert inputs.data["calibration"].name == "calibration"


def test_other_content_is_another_dense_model(tmp_path):
    """The same recipe over another file's content has another digest, and so another place in the cache."""
    given, digests = spec(train={"uri": "a.csv"}), []
    for content in ("text\nred\n", "text\nblue\n"):
        (tmp_path / "a.csv").write_text(content)
        with gathered(given, str(tmp_path)) as inputs:
            digests.append(dense_digest(given, "code", inputs.digest))
    assert digests[0] != digests[1]
