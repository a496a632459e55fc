"""A run that is killed and stopped on its way ends like one that was left alone."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import dataclass
from typing import Any

import pytest

from modelpress.result import ExitCode, RunResult

EVERY = {"MODELPRESS_CHECKPOINT_STEPS": "2"}


@dataclass
class Story:
    """One job left alone, and the same job killed in one attempt and stopped in the next."""

    alone: Any
    disturbed: Any
    stopped: tuple[int, dict[str, Any]]
    finished: tuple[int, dict[str, Any], str]
    dense_trained_again: bool


@pytest.fixture(scope="module")
def story(make_bench) -> Story:
    alone, disturbed = make_bench(), make_bench()
    code, _, log = alone.run(alone.request())
    assert code == 0, log

    def interrupt(attempt: int, epoch: int, number: signal.Signals):
        fifo = disturbed.marks / "hanging"
        fifo.unlink(missing_ok=True)
        os.mkfifo(fifo)
        process = disturbed.start(disturbed.request(attempt), TEST_HANG=str(epoch), **EVERY)
        disturbed.wait_for("hanging", process)
        process.send_signal(number)
        process.communicate(timeout=240)
        return process.returncode

    # The first attempt dies in its second epoch, which is the second training; the second is stopped in its third,
    # one of finetuning, behind the shrink: there the training function is called again.
    assert interrupt(1, 2, signal.SIGKILL) == -signal.SIGKILL
    (disturbed.marks / "dense").unlink()
    stopped = interrupt(2, 3, signal.SIGTERM), json.loads((disturbed.folder / "result.json").read_text())
    finished = disturbed.run(disturbed.request(3), **EVERY)
    return Story(alone, disturbed, stopped, finished, (disturbed.marks / "dense").exists())


@pytest.mark.parametrize("name", ["model.safetensors", "model.pt2", "shrink.json"])
def test_the_artifact_is_the_same_bit_for_bit(story, name):
    """Weights, program and cuts do not tell that the run was interrupted twice."""
    code, _, log = story.finished
    assert code == ExitCode.DONE, log
    assert story.alone.artifact()[name].read_bytes() == story.disturbed.artifact()[name].read_bytes()


def test_metrics_are_the_same_but_for_the_clock(story):
    """Baseline, result and the records of all stages agree."""

    def metrics(bench):
        value = json.loads(bench.artifact()["metrics.json"].read_text())
        for side in ("baseline", "compressed"):
            for name in ("latencyMs", "throughput", "speedup"):
                value[side].pop(name, None)
        for stage in value["stages"]:
            for name in ("seconds", "latencyMs"):
                stage.pop(name, None)
        return {key: value[key] for key in ("baseline", "compressed", "stages")}

    assert metrics(story.alone) == metrics(story.disturbed)


def test_steps_are_counted(story):
    """The result has 20 optimizer steps behind it; attempts noted no more than these, and the last wrote its own."""
    alone = json.loads(story.alone.artifact()["metrics.json"].read_text())["training"]
    disturbed = json.loads(story.disturbed.artifact()["metrics.json"].read_text())["training"]
    assert (alone["steps"], alone["executed"], alone["repeated"]) == (20, 20, 0)
    assert (disturbed["steps"], disturbed["executed"], disturbed["repeated"]) == (20, 20, 0)
    assert disturbed["checkpoints"] >= 2
    assert not any(
        "anew" in note for note in json.loads(story.disturbed.artifact()["metrics.json"].read_text())["notes"]
    )


def test_a_stopped_run_says_so(story):
    """SIGTERM ends with 143 and a result; the attempt's record lies in its folder."""
    code, message = story.stopped
    assert code == ExitCode.TERMINATED
    assert (message["phase"], message["reason"]) == ("Failed", "RunnerTerminated")
    record = story.disturbed.store / story.disturbed.root / "2-2aaaaaaa" / "result.json"
    assert json.loads(record.read_text())["reason"] == "RunnerTerminated"


def test_the_dense_model_is_trained_once(story):
    """Later attempts take it from the store."""
    assert not story.dense_trained_again


def test_nothing_but_the_result_is_left(story):
    """The checkpoint goes when the manifest is there."""
    assert not list((story.disturbed.store / story.disturbed.root / "checkpoint").rglob("*.pt"))


def test_a_finished_run_reports_its_manifest_without_torch(story):
    """A fourth attempt finds the result, reports it, exits 0 and loads no torch."""
    (story.disturbed.code / "clouds.py").write_text("raise SystemExit('must not be imported')")
    code, message, log = story.disturbed.run_alone(story.disturbed.request(4), PYTHONPROFILEIMPORTTIME="1")
    assert code == ExitCode.DONE, log
    assert "| torch\n" not in log
    before = RunResult.model_validate(story.finished[1])
    after = RunResult.model_validate(message)
    assert after.manifest_digest == before.manifest_digest
    assert (after.baseline, after.compressed) == (before.baseline, before.compressed)
    assert (after.phase, after.smaller, after.portable) == ("Succeeded", True, True)
