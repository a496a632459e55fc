"""The contract between runner and controller: what a result never leaves out, and what another version makes of it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from modelpress.api.v1alpha1 import CompressionJobSpec, CompressionSweepSpec
from modelpress.api.v1alpha1.metrics import MAX_KEPT_BYTES, kept_bytes
from modelpress.request import PublishRequest, RunRequest, TrialIdentity
from modelpress.result import MAX_MESSAGE_BYTES, RunRecord, RunResult

SPEC: dict[str, Any] = {
    "model": {"entrypoint": "digits:create"},
    "stages": [{"prune": {"algorithm": "l1", "configList": [{"opTypes": ["Conv2d"], "sparsity": 0.5}]}}],
    "store": {"uri": "memory://store"},
}


def numbers(names: list[str], start: float = 0.0) -> dict[str, float]:
    """A value of full length for each name."""
    return {name: start + (index + 1) / 7 for index, name in enumerate(names)}


def succeeded(names: list[str], **fields: Any) -> RunResult:
    """A success with these metrics on either side."""
    given = {"manifest_digest": "ab" * 32, "code_digest": "cd" * 32, "baseline": numbers(names), **fields}
    return RunResult(phase="Succeeded", reason="Committed", compressed=numbers(names, 0.5), **given)


def request(**fields: Any) -> RunRequest:
    """A request of a trial."""
    given = {"purpose": "trial", "namespace": "team", "name": "search-00007", "uid": "u", "root": "r", "prefix": "p"}
    return RunRequest(**{**given, "spec": CompressionJobSpec.model_validate(SPEC), **fields})


@pytest.mark.parametrize("length", [8, 30, 63])
def test_objectives_and_constraints_outlast_twenty_further_metrics(length: int) -> None:
    """Texts of full length and 20 metrics beside them: within 1 KiB the named ones are there, exactly."""
    further = [f"m{index:02d}".ljust(length, "x") for index in range(20)]
    keep = ["default", "speedup", "worst_group_accuracy"[:length]]
    result = succeeded([*further, *keep], message="m" * 900, unmet=["u" * 400] * 5, portable_reason="p" * 400)
    text = result.to_message(keep)
    assert len(text.encode()) <= MAX_MESSAGE_BYTES
    read = RunResult.from_message(text)
    assert read is not None
    assert {name: (read.baseline[name], read.compressed[name]) for name in keep} == {
        name: (result.baseline[name], result.compressed[name]) for name in keep
    }
    assert (read.manifest_digest, read.code_digest) == ("ab" * 32, "cd" * 32)


def test_texts_are_shortened_before_a_metric_goes() -> None:
    """Six metrics and long texts do not fit together: all six are there, and of each text its beginning."""
    names = [f"accuracy_{index}" for index in range(6)]
    result = succeeded(names, message="m" * 900, unmet=["u" * 400] * 5, portable_reason="p" * 400)
    read = RunResult.from_message(result.to_message())
    assert read is not None
    assert (read.baseline, read.compressed) == (result.baseline, result.compressed)
    assert read.message == "m" * (len(read.message) - 1) + "…"
    assert 79 < len(read.message) < 300
    assert read.unmet[0].startswith("u" * 59)
    assert (read.portable_reason or "").startswith("p" * 59)


def test_a_short_result_is_said_in_full() -> None:
    """Nothing is shortened where all of it fits."""
    result = succeeded(["default", "macs"], message="m" * 200, unmet=["u" * 100])
    assert RunResult.from_message(result.to_message()) == result


def test_more_than_a_kibibyte_of_named_metrics_is_said_in_more() -> None:
    """16 objectives and constraints with the longest names: beyond 1 KiB, and nothing but them takes room."""
    keep = [f"{index:x}".rjust(63, "x") for index in range(16)]
    result = succeeded([*keep, "further"], message="m" * 200)
    text = result.to_message(keep)
    assert MAX_MESSAGE_BYTES < len(text.encode()) <= kept_bytes(keep) <= MAX_KEPT_BYTES
    read = RunResult.from_message(text)
    assert read is not None
    assert set(read.compressed) == set(read.baseline) == set(keep)
    assert read.message == ""


def test_what_no_kubelet_keeps_is_refused() -> None:
    """30 longest names: neither a message, nor a valid sweep."""
    keep = [f"{index:02d}".rjust(63, "x") for index in range(30)]
    with pytest.raises(ValueError, match="4096"):
        succeeded(keep).to_message(keep)
    assert kept_bytes(keep) > MAX_KEPT_BYTES


def test_the_bound_of_a_result_holds() -> None:
    """As many named metrics as validation lets pass, each number as long as it gets, make a message."""
    for length in (2, 10, 63):
        keep: list[str] = []
        while kept_bytes([*keep, "x" * length]) <= MAX_KEPT_BYTES and len(keep) < 72:
            keep.append(f"{chr(97 + len(keep) // 10)}{len(keep) % 10}".rjust(length, "x"))
        values = dict.fromkeys(keep, -1.2345678901234567e-300)
        result = succeeded([], constraints_met=False, smaller=False, portable=False)
        result = result.model_copy(update={"baseline": values, "compressed": values, "reason": "R" * 64})
        assert RunResult.from_message(result.to_message(keep)) is not None


def test_a_result_of_a_newer_runner_is_read() -> None:
    """Keys that this version does not know are ignored, wherever they stand; all others count."""
    result = succeeded(["default", "speedup"], message="done")
    newer = json.loads(result.to_message()) | {"peakMemory": {"bytes": [1, 2]}, "doubtful": ["speedup"]}
    assert RunResult.from_message(json.dumps(newer)) == result
    record = json.loads(RunRecord.of(result, "search-7", 7, {"x": 1}).model_dump_json(exclude_none=True))
    record |= {"extra": 1, "trial": record["trial"] | {"parent": 3}}
    read = RunRecord.model_validate_json(json.dumps(record))
    assert read.trial is not None
    assert (read.trial.number, read.trial.parameters, read.compressed) == (7, {"x": 1}, result.compressed)


@pytest.mark.parametrize("text", [None, "", "{", "[]", "null", '{"v": 2, "phase": "Succeeded", "reason": "x"}'])
def test_what_is_no_result_is_none(text: str | None) -> None:
    """Rubbish, and a version of the contract that is another one."""
    assert RunResult.from_message(text) is None


def test_a_request_of_a_newer_shell_is_read() -> None:
    """Keys that this version does not know are ignored beside the specification."""
    given = request(
        keep_metrics=["default"],
        trial=TrialIdentity(number=7, parameters={"x": 1}),
        publish=PublishRequest(objectives=[]),
    )
    newer = json.loads(given.to_json())
    newer |= {"deadline": 5, "trial": newer["trial"] | {"parent": 3}, "publish": newer["publish"] | {"page": True}}
    assert RunRequest.model_validate_json(json.dumps(newer)) == given


def test_a_request_of_an_older_shell_is_read() -> None:
    """Without the metrics to keep it is a request as well."""
    older = json.loads(request(keep_metrics=["default"]).to_json())
    del older["keepMetrics"]
    assert RunRequest.model_validate_json(json.dumps(older)) == request()


def test_a_request_names_no_field_of_the_specification_that_is_a_default() -> None:
    """So a runner that does not know a new optional field meets it only where a user set it; what is read is equal."""
    spec = CompressionJobSpec.model_validate(SPEC | {"seed": 3, "backoffLimit": 2})
    text = request(spec=spec).to_json()
    stages = [{"prune": {"configList": [{"opTypes": ["Conv2d"], "sparsity": 0.5}]}}]  # l1 is the default
    assert json.loads(text)["spec"] == SPEC | {"seed": 3, "stages": stages}
    assert RunRequest.model_validate_json(text).spec == spec


def test_a_sweep_that_names_too_much_is_refused() -> None:
    """8 objectives with the longest names, and 16 constraints: the path, and what to do."""
    from modelpress.api.semantic import sweep_problems

    names = [f"{index:02d}".rjust(63, "x") for index in range(24)]
    document = {
        "template": {"spec": SPEC},
        "searchSpace": [{"name": "seed", "paths": ["/seed"], "int": {"min": 0, "max": 3}}],
        "objectives": [{"metric": name, "goal": "maximize"} for name in names[:8]],
        "constraints": [{"metric": name, "min": 0.5} for name in names[8:]],
        "maxTrials": 4,
    }
    template = {**SPEC, "seed": 0}
    problems = sweep_problems(CompressionSweepSpec.model_validate({**document, "template": {"spec": template}}))
    assert [problem.path for problem in problems] == ["spec.objectives"]
    assert "shorter names" in str(problems[0])
