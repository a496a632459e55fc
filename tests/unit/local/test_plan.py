"""What a run settles before it starts: store, code folder, uid, and what may not change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from simulation import World, job_dict, run_once, sweep_dict

from modelpress.api.load import load_dict
from modelpress.local.cluster import store_uri
from modelpress.local.errors import UsageError
from modelpress.local.plan import RunPlan, local_uid, plan_run
from modelpress.local.sources import Document, load_documents


def plan(value: dict[str, Any], folder: Path, **options: Any) -> RunPlan:
    """The plan of a mapping, everything relative to `folder`."""
    return plan_run(Document(load_dict(value), folder), cwd=folder, **options)


@pytest.mark.parametrize(
    ("given", "override", "expected"),
    [
        (None, None, "{cwd}/modelpress-runs"),
        ("out", None, "{cwd}/out"),
        ("/abs/out/", None, "/abs/out"),
        ("file:///abs/with%20space", None, "/abs/with space"),
        ("out", "other", "{cwd}/other"),
        ("s3://bucket/x", None, "s3://bucket/x"),
        ("out", "gs://bucket/x", "gs://bucket/x"),
    ],
)
def test_the_store_becomes_an_absolute_path_or_stays_a_uri(
    tmp_path: Path, given: str | None, override: str | None, expected: str
) -> None:
    """Paths are relative to the working folder; --store goes before the spec's."""
    value = job_dict(store={"uri": given}) if given else job_dict()
    settled = plan(value, tmp_path, store=override)
    assert settled.store == store_uri(settled.obj) == expected.format(cwd=tmp_path)
    assert settled.problems == ()


def test_the_state_lies_in_the_store_or_beside_it(tmp_path: Path) -> None:
    """A file store keeps its own state; for any other it is in ./modelpress-runs."""
    assert plan(job_dict(store={"uri": "out"}), tmp_path).states == tmp_path / "out/.state/default"
    remote = plan(job_dict(store={"uri": "s3://bucket/x"}), tmp_path)
    assert remote.states == tmp_path / "modelpress-runs/.state/default"


def test_the_folder_of_a_store_goes_before_its_uri_and_a_flag_before_both(tmp_path: Path) -> None:
    """A specification for a cluster and a laptop names the store of each; the laptop needs no credentials."""
    cluster = {"uri": "s3://bucket/x", "endpoint": "http://s3.example", "secretRef": {"name": "keys"}}
    settled = plan(job_dict(store=cluster | {"path": "out"}), tmp_path)
    assert (settled.store, settled.problems) == (f"{tmp_path}/out", ())
    assert settled.states == tmp_path / "out/.state/default"
    assert plan(job_dict(store=cluster | {"path": "out"}), tmp_path, store="s3://b/y").store == "s3://b/y"


def test_the_endpoint_stays_with_a_remote_store(tmp_path: Path) -> None:
    """Another bucket by --store is on the same server."""
    value = job_dict(store={"uri": "s3://a/x", "endpoint": "http://localhost:9000", "region": "eu"})
    store = plan(value, tmp_path, store="s3://b/y").obj.spec.store
    assert (store.uri, store.endpoint, store.region) == ("s3://b/y", "http://localhost:9000", "eu")


@pytest.mark.parametrize(
    ("value", "options", "path", "words"),
    [
        (job_dict(), {"store": "memory://x"}, "--store", "every trial is a process of its own"),
        (job_dict(store={"uri": "memory://x"}), {}, "spec.store.uri", "give a folder"),
        (job_dict(), {"store": "file://host/x"}, "--store", "names no file on this machine"),
        (job_dict(), {"store": "s4://b/x"}, "--store", "'s4://' is no scheme that modelpress can read or write"),
        (job_dict(), {"store": "s3://"}, "--store", "'s3://' names no bucket"),
        (job_dict(), {"store": "a\0b"}, "--store", "holds the control character U+0000"),
        (job_dict(store={"uri": "a\0b"}), {}, "spec.store.uri", "holds the control character U+0000"),
        (job_dict(store={"uri": "file:///a%00b"}), {}, "spec.store.uri", "holds the control character U+0000"),
        (job_dict(store={"uri": "s3://b", "path": "a\0b"}), {}, "spec.store.path", "holds the control character"),
        (job_dict(code={"path": "a\0b"}), {}, "spec.code.path", "holds the control character"),
        (job_dict(), {"store": "/".join(["a" * 200] * 19)}, "--store", "too long: at most 2048 characters"),
        (job_dict(), {"store": "a" * 300}, "--store", "255 bytes a name"),
        (job_dict(store={"uri": "a" * 300}), {}, "spec.store.uri", "255 bytes a name"),
        (job_dict(store={"uri": "taken/out"}), {}, "spec.store.uri", "taken is a file"),
        (job_dict(store={"uri": "s3://b/x", "path": "taken"}), {}, "spec.store.path", "taken is a file"),
        (job_dict(code={"path": "nowhere"}), {}, "spec.code.path", "there is no folder"),
        (job_dict(code={"configMap": {"name": "code"}}), {}, "spec.code.configMap", "a local run has no ConfigMaps"),
        (job_dict(suspend=True), {}, "spec.suspend", "would do nothing"),
        (sweep_dict(suspend=True), {}, "spec.suspend", "would do nothing"),
        (
            sweep_dict(template={"spec": job_dict(code={"path": "nowhere"})["spec"]}),
            {},
            "spec.template.spec.code.path",
            "there is no folder",
        ),
    ],
)
def test_what_cannot_be_honoured_is_a_problem_of_its_field(
    tmp_path: Path, value: dict[str, Any], options: dict[str, Any], path: str, words: str
) -> None:
    """Each problem names the field or option, what is wrong and what to do."""
    (tmp_path / "taken").write_text("a file")
    found = [problem for problem in plan(value, tmp_path, **options).problems if problem.path == path]
    assert len(found) == 1
    assert words in str(found[0])
    assert found[0].fix


def test_a_folder_goes_before_other_places_of_code(tmp_path: Path) -> None:
    """Local runs use path where it is given; a commit without it is left to the runner."""
    assert plan(job_dict(code={"path": ".", "configMap": {"name": "code"}}), tmp_path).code_path == str(tmp_path)
    settled = plan(job_dict(code={"git": {"url": "https://example.com/a.git", "commit": "0" * 40}}), tmp_path)
    assert (settled.code_path, settled.problems) == (None, ())


def test_code_is_relative_to_the_file_and_lines_are_those_of_the_field(tmp_path: Path) -> None:
    """A folder beside the YAML is found from anywhere; a missing one is told with its line."""
    (tmp_path / "code").mkdir()
    text = (
        "apiVersion: modelpress.dev/v1alpha1\nkind: CompressionJob\nmetadata: {name: one}\nspec:\n"
        "  model: {entrypoint: 'a:b'}\n  code:\n    path: PLACE\n  stages:\n  - finetune: {epochs: 1}\n"
    )
    file = tmp_path / "job.yaml"
    file.write_text(text.replace("PLACE", "code"))
    assert plan_run(load_documents(file)[0], cwd=Path("/")).code_path == str(tmp_path / "code")
    file.write_text(text.replace("PLACE", "cod"))
    (problem,) = plan_run(load_documents(file)[0], cwd=Path("/")).problems
    assert str(problem).startswith(f"{file}:7: spec.code.path: there is no folder {tmp_path}/cod; ")


def test_parallel_overrides_the_sweep(tmp_path: Path) -> None:
    """--parallel is the sweep's parallelism; a job has none."""
    assert plan(sweep_dict(parallelism=2), tmp_path, parallel=5).obj.spec.parallelism == 5
    assert plan(sweep_dict(parallelism=2), tmp_path).parallelism == 2
    assert plan(job_dict(), tmp_path, parallel=5).parallelism == 1


# Identity ------------------------------------------------------------------------------------------------------------


def uid(value: dict[str, Any]) -> str:
    """The uid of a mapping."""
    return local_uid(load_dict(value))


def test_what_may_change_in_a_running_sweep_does_not_change_its_uid() -> None:
    """suspend, parallelism, maxTrials, budget and a folder as store leave the uid as it is; so do written defaults."""
    same = uid(sweep_dict())
    assert uid(sweep_dict(trials=9)) == same
    assert uid(sweep_dict(parallelism=1)) == same
    assert uid(sweep_dict(budget={"wallClockSeconds": 60})) == same
    assert uid(sweep_dict(suspend=True)) == same
    assert uid(sweep_dict(maxFailedTrials=3)) == same
    stored = job_dict(store={"uri": "somewhere"})["spec"]
    assert uid(sweep_dict(template={"spec": stored})) == same


def test_everything_else_changes_the_uid() -> None:
    """Another recipe, name, namespace, kind or remote store is another run."""
    renamed = {**job_dict(), "metadata": {"name": "two"}}
    elsewhere = {**job_dict(), "metadata": {"name": "one", "namespace": "other"}}
    remote = job_dict(store={"uri": "s3://bucket/x"})
    uids = {uid(value) for value in (job_dict(), job_dict(seed=1), renamed, elsewhere, remote, sweep_dict())}
    assert len(uids) == 6


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (sweep_dict(trials=3), sweep_dict(trials=2), "spec.maxTrials: may only be raised; this sweep has 3"),
        (
            sweep_dict(budget={"wallClockSeconds": 600}),
            sweep_dict(budget={"wallClockSeconds": 60}),
            "spec.budget.wallClockSeconds: may only be raised; this sweep has 600, the file says 60",
        ),
        (sweep_dict(), sweep_dict(budget={"wallClockSeconds": 60}), "this sweep has none"),
        (
            sweep_dict(budget={"gpuSeconds": 600}, template={"spec": job_dict(runner={"gpus": 1})["spec"]}),
            sweep_dict(budget={"gpuSeconds": 60}, template={"spec": job_dict(runner={"gpus": 1})["spec"]}),
            "spec.budget.gpuSeconds: may only be raised; this sweep has 600, the file says 60",
        ),
    ],
)
def test_lowering_what_may_only_be_raised_is_refused(
    tmp_path: Path, before: dict[str, Any], after: dict[str, Any], words: str
) -> None:
    """As on a cluster, where the API server refuses it."""
    world = World(tmp_path)
    run_once(world, before)
    with pytest.raises(UsageError, match=words):
        run_once(world, after)
