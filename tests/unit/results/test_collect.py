"""Collecting a result whose own report was lost."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from modelpress.api.v1alpha1 import CompressionJobSpec, reasons
from modelpress.request import RunRequest, TrialIdentity
from modelpress.result import RunRecord, RunResult
from modelpress.results.collect import collect
from modelpress.store import ArtifactStore, StoreError, manifest, open_store
from modelpress.store.manifest import FileEntry, Manifest, ManifestError, RunMetrics

ROOT = "default/sweep-01234567"
PREFIX = f"{ROOT}/trials/00007"
BASELINE = {"default": 0.97, "macs": 1000.0, "parameters": 100.0}
COMPRESSED = {"default": 0.95, "macs": 400.0, "parameters": 60.0}


@pytest.fixture(params=["memory", "folder"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ArtifactStore:
    return open_store(f"memory://{tmp_path.name}" if request.param == "memory" else str(tmp_path / "store"))


def request_for(constraints: list[dict[str, Any]] | None = None) -> RunRequest:
    """A request to collect trial 7."""
    spec: dict[str, Any] = {
        "model": {"entrypoint": "digits:create"},
        "stages": [{"finetune": {"epochs": 1}}],
        "store": {"uri": "memory://collect"},
    }
    if constraints is not None:
        spec["constraints"] = constraints
    return RunRequest(
        purpose="collect",
        namespace="default",
        name="sweep-7",
        uid="01234567-89ab",
        attempt=3,
        run_uid="cccccccc",
        root=ROOT,
        prefix=PREFIX,
        spec=CompressionJobSpec.model_validate(spec),
        trial=TrialIdentity(number=7, parameters={"sparsity": 0.5}),
    )


def committed(
    store: ArtifactStore, *, compressed: dict[str, float] | None = None, files: dict[str, bytes] | None = None
) -> str:
    """The manifest of attempt 2; its digest."""
    entries = []
    for name, content in ({"model.pt2": b"program"} if files is None else files).items():
        store.put_bytes(f"{PREFIX}/2-bbbbbbbb/{name}", content)
        digest = hashlib.sha256(content).hexdigest()
        entries.append(FileEntry(path=f"2-bbbbbbbb/{name}", sha256=digest, bytes=len(content)))
    metrics = RunMetrics(baseline=BASELINE, compressed=COMPRESSED if compressed is None else compressed)
    written = Manifest(attempt=2, files=entries, metrics=metrics, spec_digest="d", code_digest="code")
    return manifest.commit(store, PREFIX, written)[1]


def put_record(store: ArtifactStore, digest: str | None, **fields: Any) -> RunResult:
    """The record of attempt 2, and the result that it holds."""
    known: dict[str, Any] = {
        "phase": "Succeeded",
        "reason": reasons.SUCCEEDED,
        "message": "from the record",
        "manifest_digest": digest,
        "baseline": BASELINE,
        "compressed": COMPRESSED,
        "constraints_met": False,
        "unmet": ["a sentence"],
        "smaller": True,
        "portable": True,
    }
    result = RunResult(**(known | fields))
    record = RunRecord.of(result, "sweep-7", 7, {"sparsity": 0.5})
    store.put_bytes(f"{PREFIX}/2-bbbbbbbb/result.json", record.model_dump_json(exclude_none=True).encode())
    return result


def test_nothing_was_committed(store: ArtifactStore) -> None:
    """Without a manifest the answer is NotFound, even where an attempt left files and a record."""
    put_record(store, "0" * 64)
    store.put_bytes(f"{PREFIX}/2-bbbbbbbb/model.pt2", b"x")
    found = collect(request_for(), store)
    assert (found.phase, found.reason) == ("NotFound", reasons.NOT_FOUND)
    assert f"{store.uri}/{PREFIX}/manifest.json" in found.message
    assert found.manifest_digest is None


def test_the_record_of_the_committed_attempt_is_taken(store: ArtifactStore) -> None:
    """A record that belongs to the manifest is the result, as it was reported."""
    digest = committed(store)
    said = put_record(store, digest)
    assert collect(request_for(), store) == said


@pytest.mark.parametrize("case", ["none", "of another manifest", "without a manifest", "failed", "damaged"])
def test_other_records_are_not_taken(store: ArtifactStore, case: str) -> None:
    """A record that does not belong to the manifest is judged anew from the manifest, and replaced."""
    digest = committed(store)
    match case:
        case "of another manifest":
            put_record(store, "0" * 64, compressed={"default": 1.0})
        case "without a manifest":
            put_record(store, None, compressed={"default": 1.0})
        case "failed":
            put_record(store, None, phase="Failed", reason=reasons.RUNNER_TERMINATED)
        case "damaged":
            store.put_bytes(f"{PREFIX}/2-bbbbbbbb/result.json", b'{"phase": "Succe')
    constraints = [{"metric": "default", "maxRelativeLoss": 0.01}, {"metric": "macs", "maxRatio": 0.5}]
    found = collect(request_for(constraints), store)
    assert (found.phase, found.reason, found.manifest_digest) == ("Succeeded", reasons.SUCCEEDED, digest)
    assert (found.baseline, found.compressed, found.code_digest) == (BASELINE, COMPRESSED, "code")
    # 0.02 of 0.97 is 2.06 %; 400 of 1000 MACs is within one half.
    assert found.constraints_met is False
    assert found.unmet == ["default lost 2.06 % against 0.97; at most 1 % is allowed"]
    assert found.smaller is True
    assert found.portable is True
    record = RunRecord.model_validate_json(store.get_bytes(f"{PREFIX}/2-bbbbbbbb/result.json"))
    assert (record.name, record.manifest_digest) == ("sweep-7", digest)
    assert record.trial is not None
    assert (record.trial.number, record.trial.parameters) == (7, {"sparsity": 0.5})
    assert collect(request_for(constraints), store) == found


def test_a_spread_is_judged_from_the_manifests_files(store: ArtifactStore) -> None:
    """The artifact's metrics.json has it; a constraint that it leaves open is neither met nor missed."""
    spread = {"latencyMs": [0.8, 1.5], "ratio": [0.4, 0.6], "calls": 500}
    timed = {"latencyMs": 2.0}, {"latencyMs": 1.0}
    content = json.dumps({"timing": {"spread": spread}}).encode()
    store.put_bytes(f"{PREFIX}/2-bbbbbbbb/metrics.json", content)
    digest = hashlib.sha256(content).hexdigest()
    entry = FileEntry(path="2-bbbbbbbb/metrics.json", sha256=digest, bytes=len(content))
    metrics = RunMetrics(baseline=timed[0], compressed=timed[1])
    manifest.commit(store, PREFIX, Manifest(attempt=2, files=[entry], metrics=metrics, spec_digest="d"))
    found = collect(request_for([{"metric": "latencyMs", "maxRatio": 0.5}]), store)
    assert (found.constraints_met, found.unmet) == (False, [])
    assert found.uncertain == [
        "latencyMs lies between 0.8 and 1.2 after 500 calls of each model, which leaves maxRatio 0.5 open"
    ]


def test_constraints_that_hold_and_that_are_not_there(store: ArtifactStore) -> None:
    """Constraints that hold are met; without constraints nothing is judged."""
    committed(store)
    assert collect(request_for([{"metric": "default", "min": 0.9}]), store).constraints_met is True
    store.delete(f"{PREFIX}/2-bbbbbbbb/result.json")
    found = collect(request_for(), store)
    assert found.constraints_met is None
    assert found.unmet == []


def test_a_constraint_on_a_metric_that_was_not_measured(store: ArtifactStore) -> None:
    """A constraint that cannot be judged is not met, and says why."""
    committed(store)
    found = collect(request_for([{"metric": "f1", "min": 0.5}]), store)
    assert found.constraints_met is False
    assert len(found.unmet) == 1
    assert "f1" in found.unmet[0]


@pytest.mark.parametrize(
    ("compressed", "smaller"),
    [
        ({"macs": 1000.0, "parameters": 99.0}, True),
        ({"macs": 1000.0, "parameters": 100.0}, False),
        ({"macs": 1200.0, "parameters": 100.0, "sizeBytes": 1.0}, False),
        ({}, False),
    ],
)
def test_whether_it_became_smaller(store: ArtifactStore, compressed: dict[str, float], smaller: bool) -> None:
    """Counts decide; one without a counterpart in the baseline does not."""
    committed(store, compressed=compressed)
    assert collect(request_for(), store).smaller is smaller


def test_why_it_is_not_portable(store: ArtifactStore) -> None:
    """An artifact without a program tells the reason that metrics.json holds."""
    committed(store, files={"model.safetensors": b"w", "metrics.json": b'{"portableReason": "data-dependent loop"}'})
    found = collect(request_for(), store)
    assert found.portable is False
    assert found.portable_reason == "data-dependent loop"


def test_a_damaged_file_is_not_read(store: ArtifactStore) -> None:
    """metrics.json is verified before it is believed."""
    committed(store, files={"metrics.json": b'{"portableReason": "x"}'})
    store.put_bytes(f"{PREFIX}/2-bbbbbbbb/metrics.json", b'{"portableReason": "y"}')
    with pytest.raises(ManifestError, match=r"metrics\.json: damaged or replaced"):
        collect(request_for(), store)


def test_a_foreign_manifest_is_an_error(store: ArtifactStore) -> None:
    """What is no manifest of ours is told, not taken for NotFound."""
    store.put_bytes(f"{PREFIX}/manifest.json", b'{"name": "something else"}')
    with pytest.raises(ManifestError, match="no apiVersion"):
        collect(request_for(), store)


class ReadOnly:
    """A store that refuses every write."""

    def __init__(self, store: ArtifactStore) -> None:
        self._store = store

    def put_bytes(self, path: str, data: bytes) -> None:
        raise StoreError(f"{path} is read-only")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


def test_collecting_needs_no_right_to_write(store: ArtifactStore, caplog: pytest.LogCaptureFixture) -> None:
    """A record that cannot be written is a warning; the result stands."""
    digest = committed(store)
    assert collect(request_for(), ReadOnly(store)).manifest_digest == digest
    assert "could not be written" in caplog.text


def test_collecting_and_publishing_load_no_torch() -> None:
    """Both run in short Jobs without a GPU, so they start fast."""
    code = "import sys, modelpress.results.collect, modelpress.results.publish; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


@pytest.mark.parametrize("content", [b"[" * 100_000, b"1" * 5000, b"{", b"\xff"])
def test_metrics_that_are_no_json(store: ArtifactStore, content: bytes) -> None:
    """Depth, long numbers and other bytes name the file."""
    committed(store, files={"model.pt2": b"program", "metrics.json": content})
    with pytest.raises(ManifestError, match=r"metrics\.json: it is no JSON \(.*\); run the job again"):
        collect(request_for(), store)
