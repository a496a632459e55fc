"""Publishing a sweep: the table of its trials and a copy of the best one."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelpress.api.v1alpha1 import CompressionJobSpec, reasons
from modelpress.request import PublishRequest, RunRequest, trial_prefix
from modelpress.result import RunRecord, RunResult
from modelpress.results.errors import InvalidRequestError, ResultsError
from modelpress.results.publish import publish
from modelpress.store import ArtifactStore, ObjectInfo, manifest, open_store
from modelpress.store.manifest import FileEntry, Manifest, RunMetrics

ROOT = "default/sweep-01234567"


@pytest.fixture(params=["memory", "folder"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ArtifactStore:
    return open_store(f"memory://{tmp_path.name}" if request.param == "memory" else str(tmp_path / "store"))


def to_publish(best: int | None, front: list[int] | None = None) -> RunRequest:
    """A request to publish with this best trial."""
    spec = {"model": {"entrypoint": "a:b"}, "stages": [{"finetune": {"epochs": 1}}], "store": {"uri": "memory://x"}}
    request = {"objectives": [{"metric": "default"}], "best": best, "front": front or []}
    return RunRequest(
        purpose="publish",
        namespace="default",
        name="sweep",
        uid="01234567-89ab",
        root=ROOT,
        prefix=ROOT,
        spec=CompressionJobSpec.model_validate(spec),
        publish=PublishRequest.model_validate(request),
    )


def record(
    store: ArtifactStore, number: int, folder: str, result: RunResult, parameters: dict[str, Any] | None = None
) -> None:
    """What the runner leaves beside the artifacts."""
    text = RunRecord.of(result, f"sweep-{number}", number, parameters or {"sparsity": number / 10}).model_dump_json()
    store.put_bytes(f"{trial_prefix(ROOT, number)}/{folder}/result.json", text.encode())


def succeeded(
    store: ArtifactStore,
    number: int,
    *,
    folder: str = "1-aaaaaaaa",
    score: float = 0.9,
    parameters: dict[str, Any] | None = None,
    with_record: bool = True,
    files: dict[str, bytes] | None = None,
) -> str:
    """A committed trial; the digest of its manifest."""
    prefix = trial_prefix(ROOT, number)
    contents = files or {"model.pt2": f"program {number} {folder}".encode(), "shrink.json": b"[]"}
    entries = []
    for name, content in contents.items():
        store.put_bytes(f"{prefix}/{folder}/{name}", content)
        digest = hashlib.sha256(content).hexdigest()
        entries.append(FileEntry(path=f"{folder}/{name}", sha256=digest, bytes=len(content)))
    baseline, compressed = {"default": 0.97, "macs": 1000.0}, {"default": score, "macs": 123.0}
    metrics = RunMetrics(baseline=baseline, compressed=compressed)
    written = Manifest(attempt=int(folder[0]), files=entries, metrics=metrics, spec_digest="d")
    digest = manifest.commit(store, prefix, written)[1]
    if with_record:
        result = RunResult(
            phase="Succeeded",
            reason=reasons.SUCCEEDED,
            manifest_digest=digest,
            baseline=baseline,
            compressed=compressed,
        )
        record(store, number, folder, result, parameters)
    return digest


def failed(store: ArtifactStore, number: int, folder: str = "1-aaaaaaaa", reason: str = reasons.RUNNER_FAILED) -> None:
    """A trial's attempt that failed or was stopped."""
    result = RunResult(phase="Failed", reason=reason, message="x", baseline={"default": 0.97})
    record(store, number, folder, result)


def table(store: ArtifactStore) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(store.get_bytes(f"{ROOT}/trials.csv").decode())))


def everything(store: ArtifactStore) -> dict[str, bytes]:
    return {info.path: store.get_bytes(info.path) for info in store.list("")}


def best_of(store: ArtifactStore, to: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    """best.json, and the verified files of best/ by name."""
    found = manifest.read(store, f"{ROOT}/best")
    assert found is not None
    files = manifest.fetch(store, f"{ROOT}/best", found[0], to)
    record = json.loads(store.get_bytes(f"{ROOT}/best.json"))
    return record, {name: path.read_bytes() for name, path in files.items()}


def test_the_table_of_trials(store: ArtifactStore) -> None:
    """Every trial has its row, failed and stopped ones too, with its parameters and metrics in columns."""
    succeeded(store, 0, score=0.95, parameters={"sparsity": 0.5, "algorithm": "l1", "twice": True, "rounds": 3})
    failed(store, 1)
    failed(store, 2, reason=reasons.RUNNER_TERMINATED)
    succeeded(store, 10, with_record=False)
    store.put_bytes(f"{trial_prefix(ROOT, 11)}/checkpoint/state", b"x")
    store.put_bytes(f"{trial_prefix(ROOT, 12)}/manifest.json", b"{}")
    store.put_bytes(f"{ROOT}/trials/notes.txt", b"no trial")
    store.put_bytes(f"{ROOT}/trials/x/manifest.json", b"no trial")
    publish(to_publish(0), store)
    uri = f"{store.uri}/{ROOT}/trials"
    assert store.get_bytes(f"{ROOT}/trials.csv").decode() == (
        "number,name,state,param.algorithm,param.rounds,param.sparsity,param.twice,"
        "baseline.default,baseline.macs,compressed.default,compressed.macs,attained,comparable,uri\n"
        f"0,sweep-0,Succeeded,l1,3,0.5,true,0.97,1000,0.95,123,1,yes,{uri}/00000\n"
        f"1,sweep-1,Failed,,,0.1,,0.97,,,,,,{uri}/00001\n"
        f"2,sweep-2,Stopped,,,0.2,,0.97,,,,,,{uri}/00002\n"
        f"10,,Succeeded,,,,,0.97,1000,0.9,123,1,yes,{uri}/00010\n"
        f"11,,Unknown,,,,,,,,,,,{uri}/00011\n"
        f"12,,Damaged,,,,,,,,,,,{uri}/00012\n"
    )


def test_the_newest_attempt_counts_unless_one_is_committed(store: ArtifactStore) -> None:
    """Attempts are ordered as numbers; a committed attempt wins over later ones that were stopped."""
    for number in (2, 9, 10):
        failed(store, 0, folder=f"{number}-aaaaaaaa", reason=reasons.RUNNER_TERMINATED if number == 10 else "Other")
    succeeded(store, 1, folder="2-bbbbbbbb", score=0.5, parameters={"sparsity": 0.25})
    failed(store, 1, folder="3-cccccccc")
    publish(to_publish(1), store)
    rows = table(store)
    assert [row["state"] for row in rows] == ["Stopped", "Succeeded"]
    assert rows[1]["param.sparsity"] == "0.25"
    assert rows[1]["compressed.default"] == "0.5"


def test_a_record_from_a_later_attempt_names_the_trial(store: ArtifactStore) -> None:
    """Where the committed attempt died before its record, that of another attempt still tells name and parameters."""
    succeeded(store, 3, folder="1-aaaaaaaa", with_record=False)
    failed(store, 3, folder="2-bbbbbbbb")
    publish(to_publish(3), store)
    (row,) = table(store)
    assert (row["name"], row["state"], row["param.sparsity"]) == ("sweep-3", "Succeeded", "0.3")
    assert row["compressed.default"] == "0.9"


def test_texts_that_csv_must_quote(store: ArtifactStore) -> None:
    """Commas, quotes and line breaks in a parameter survive."""
    succeeded(store, 0, parameters={"text": 'a,"b"\nc'})
    publish(to_publish(0), store)
    assert table(store)[0]["param.text"] == 'a,"b"\nc'


def test_the_best_trial_is_copied(store: ArtifactStore, tmp_path: Path) -> None:
    """best/ is an artifact of its own with the best trial's files, and best.json says whose they are."""
    succeeded(store, 0)
    contents = {"model.pt2": b"best", "extra/a.txt": b"", "README.md": b"#"}
    succeeded(store, 1, folder="2-bbbbbbbb", score=0.96, files=contents)
    result = publish(to_publish(1, front=[0, 1]), store)
    found = manifest.read(store, f"{ROOT}/best")
    assert found is not None
    assert (result.phase, result.reason, result.manifest_digest) == ("Succeeded", reasons.PUBLISHED, found[1])
    assert result.compressed == {"default": 0.96, "macs": 123.0}
    assert [entry.path for entry in found[0].files] == [
        "00001-2-bbbbbbbb/model.pt2",
        "00001-2-bbbbbbbb/extra/a.txt",
        "00001-2-bbbbbbbb/README.md",
    ]
    record, files = best_of(store, tmp_path / "to")
    assert files == contents
    assert record == {
        "trial": 1,
        "name": "sweep-1",
        "parameters": {"sparsity": 0.1},
        "uri": f"{store.uri}/{ROOT}/trials/00001",
        "metrics": {
            "baseline": {"default": 0.97, "macs": 1000.0},
            "compressed": {"default": 0.96, "macs": 123.0},
        },
    }


class Watched:
    """Passes everything on and keeps the writes in their order; after `limit` of them it fails."""

    def __init__(self, store: ArtifactStore, limit: int | None = None) -> None:
        self._store, self._limit = store, limit
        self.writes: list[str] = []

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)
        if name not in ("put_bytes", "put_file", "put_if_absent", "copy", "delete", "delete_prefix"):
            return method

        def write(*args: Any) -> Any:
            if self._limit is not None and len(self.writes) >= self._limit:
                raise ConnectionError("cut")
            self.writes.append(f"{name} {str(args[1] if name == 'copy' else args[0]).removeprefix(ROOT + '/')}")
            return method(*args)

        return write


def test_publishing_again_changes_nothing(store: ArtifactStore) -> None:
    """A second publication of the same best writes nothing at all."""
    succeeded(store, 0)
    succeeded(store, 1)
    first = publish(to_publish(1), store)
    before = everything(store)
    watched = Watched(store)
    assert publish(to_publish(1), watched) == first
    assert watched.writes == []
    assert everything(store) == before


def test_states_that_trials_shared_go(store: ArtifactStore) -> None:
    """Nobody starts from them any more; what the trials wrote stays."""
    succeeded(store, 0)
    before = everything(store)
    store.put_bytes(f"{ROOT}/stages/0123/state.json", b"{}")
    publish(to_publish(0), store)
    assert not store.list(f"{ROOT}/stages")
    assert before.items() <= everything(store).items()


def test_another_best_replaces_the_one_before(store: ArtifactStore, tmp_path: Path) -> None:
    """New files come first, then the manifest, then the record; what is no longer named goes last."""
    succeeded(store, 0)
    publish(to_publish(0), store)
    succeeded(store, 5, score=0.99)
    watched = Watched(store)
    publish(to_publish(5), watched)
    assert watched.writes == [
        "copy best/00005-1-aaaaaaaa/model.pt2",
        "copy best/00005-1-aaaaaaaa/shrink.json",
        "put_bytes best/manifest.json",
        "put_bytes best.json",
        "delete_prefix best/00000-1-aaaaaaaa",
        "put_bytes trials.csv",
        "put_bytes report.html",
    ]
    record, files = best_of(store, tmp_path / "to")
    assert record["trial"] == 5
    assert files["model.pt2"] == b"program 5 1-aaaaaaaa"
    assert [info.path for info in store.list(f"{ROOT}/best")] == [
        f"{ROOT}/best/00005-1-aaaaaaaa/model.pt2",
        f"{ROOT}/best/00005-1-aaaaaaaa/shrink.json",
        f"{ROOT}/best/manifest.json",
    ]


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_publication_that_breaks_off_leaves_a_whole_best(tmp_path_factory: pytest.TempPathFactory, data: Any) -> None:
    """At whichever write a series of publications breaks off, best/ opens and verifies, and the next one mends it."""
    folder = tmp_path_factory.mktemp("publish")
    store = open_store(f"memory://{folder.name}")
    for number in range(3):
        succeeded(store, number)
    publish(to_publish(0), store)
    for turn, (best, limit) in enumerate(
        data.draw(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 8)), min_size=1, max_size=4))
    ):
        watched = Watched(store, limit)
        try:
            publish(to_publish(best), watched)
        except ConnectionError:
            assert len(watched.writes) == limit
        _, files = best_of(store, folder / f"to-{turn}")
        assert sorted(files) == ["model.pt2", "shrink.json"]
    publish(to_publish(best), store)
    assert len(store.list(f"{ROOT}/best")) == 3
    record, files = best_of(store, folder / "last")
    assert record["trial"] == best
    assert files["model.pt2"] == f"program {best} 1-aaaaaaaa".encode()


def test_no_feasible_trial(store: ArtifactStore) -> None:
    """Without a best trial there is a table and no best/; that of a former publication is withdrawn."""
    succeeded(store, 0)
    publish(to_publish(0), store)
    result = publish(to_publish(None), store)
    assert (result.phase, result.manifest_digest) == ("Succeeded", None)
    assert len(table(store)) == 1
    assert [info.path for info in store.list(ROOT) if "/best" in info.path] == []
    assert publish(to_publish(None), store) == result


def test_no_trials_at_all(store: ArtifactStore) -> None:
    """A sweep whose trials left nothing has a table of no rows, and a report that says so."""
    publish(to_publish(None), store)
    report, table = store.list("")
    assert report.path == f"{ROOT}/report.html"
    assert b"no trials" in store.get_bytes(report.path)
    assert table == ObjectInfo(f"{ROOT}/trials.csv", len("number,name,state,attained,comparable,uri\n"))


def test_a_best_trial_that_cannot_be_published(store: ArtifactStore) -> None:
    """A best trial without a manifest, with a foreign one, or with a file missing or of another size is an error."""
    succeeded(store, 0)
    publish(to_publish(0), store)
    before = everything(store)
    with pytest.raises(ResultsError, match=r"trial, 4, cannot be published: there is no .*/00004/manifest\.json"):
        publish(to_publish(4), store)
    failed(store, 1)
    with pytest.raises(ResultsError, match="the best trial, 1, cannot be published"):
        publish(to_publish(1), store)
    store.put_bytes(f"{trial_prefix(ROOT, 2)}/manifest.json", b"{}")
    with pytest.raises(ResultsError, match=r"the best trial, 2, .*no apiVersion"):
        publish(to_publish(2), store)
    succeeded(store, 3)
    store.put_bytes(f"{trial_prefix(ROOT, 3)}/1-aaaaaaaa/shrink.json", b"[1]")
    with pytest.raises(ResultsError, match=r"shrink\.json: it has 3 bytes, where the manifest has 2; restore"):
        publish(to_publish(3), store)
    store.delete(f"{trial_prefix(ROOT, 3)}/1-aaaaaaaa/shrink.json")
    with pytest.raises(ResultsError, match=r"shrink\.json: it is missing"):
        publish(to_publish(3), store)
    after = everything(store)
    assert {path: data for path, data in after.items() if path in before} == before
    publish(to_publish(0), store)
    assert json.loads(store.get_bytes(f"{ROOT}/best.json"))["trial"] == 0


def test_a_request_that_says_not_what(store: ArtifactStore) -> None:
    """A request without its publish part is refused."""
    with pytest.raises(InvalidRequestError, match="needs to know what"):
        publish(to_publish(None).model_copy(update={"publish": None}), store)


@pytest.mark.parametrize(("keep", "whole"), [("all", {0, 1, 2, 3}), ("pareto", {1, 2}), ("best", {2})])
def test_models_of_other_trials_are_removed(store: ArtifactStore, keep: str, whole: set[int]) -> None:
    """The kept ones open as before; of the others metrics, record and manifest stay, and the table has all of them."""
    files = {"model.pt2": b"program", "metrics.json": b"{}", "README.md": b"#", "job.yaml": b"{}"}
    for number in range(4):
        succeeded(store, number, files=files)
    store.put_bytes(f"{trial_prefix(ROOT, 3)}/checkpoint/state", b"1")
    request = to_publish(2, [1, 2])
    assert request.publish is not None
    request = request.model_copy(update={"publish": request.publish.model_copy(update={"keep": keep})})
    removed = {"all": "is the best", "pareto": "the models of 2 others are removed"}
    assert publish(request, store).message.endswith(removed.get(keep, "the models of 3 others are removed"))
    for number in range(4):
        left = {info.path.rpartition("/")[2] for info in store.list(trial_prefix(ROOT, number))}
        light = {"manifest.json", "metrics.json", "README.md", "job.yaml", "result.json"}
        heavy = {"model.pt2"} | ({"state"} if number == 3 else set())
        assert left == light | (heavy if number in whole else set())
    publish(request, store)  # again, and nothing is missed
    rows = list(csv.DictReader(io.StringIO(store.get_bytes(f"{ROOT}/trials.csv").decode())))
    assert [row["state"] for row in rows] == ["Succeeded"] * 4


def test_without_a_feasible_trial_all_models_are_kept(store: ArtifactStore) -> None:
    """Whoever wants to see what went wrong finds everything."""
    succeeded(store, 0)
    request = to_publish(None)
    assert request.publish is not None
    publish(request.model_copy(update={"publish": request.publish.model_copy(update={"keep": "best"})}), store)
    assert any(info.path.endswith("model.pt2") for info in store.list(trial_prefix(ROOT, 0)))
