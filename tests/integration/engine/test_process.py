"""The runner's process: exit codes, results and records for what goes wrong, preparation, and the parent's death."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest

from modelpress.result import ExitCode, RunRecord, RunResult

TUNE = [{"finetune": {"epochs": 1}}]


def test_a_prepared_dense_model_is_used_by_trials(bench):
    """prepare trains it and writes the baseline; a trial loads it, trains it no more, and judges its constraints."""
    code, message, log = bench.run(bench.request(purpose="prepare"))
    assert code == ExitCode.DONE, log
    prepared = RunResult.model_validate(message)
    assert prepared.phase == "Succeeded"
    assert prepared.baseline["parameters"] == 114
    assert "latencyMs" not in prepared.baseline
    assert len(list(bench.dense.glob("*/baseline.json"))) == 1
    (bench.marks / "dense").unlink()
    constraints = [{"metric": "parameters", "maxRatio": 0.5}, {"metric": "default", "min": 0.0}]
    trial = {
        "prefix": f"{bench.root}/trials/00003",
        "trial": {"number": 3, "parameters": {"epochs": 1}},
        "spec": {"stages": TUNE, "constraints": constraints},
    }
    code, message, log = bench.run(bench.request(**trial))
    assert code == ExitCode.DONE, log
    result = RunResult.model_validate(message)
    assert not (bench.marks / "dense").exists()
    assert result.baseline["default"] == prepared.baseline["default"]
    assert result.constraints_met is False
    assert len(result.unmet) == 1
    assert "parameters" in result.unmet[0]
    assert result.smaller is False or result.compressed["latencyMs"] < result.baseline["latencyMs"]
    record = RunRecord.model_validate_json(
        (bench.store / bench.root / "trials/00003/1-1aaaaaaa/result.json").read_text()
    )
    assert record.trial is not None
    assert (record.name, record.trial.number, record.trial.parameters) == ("clouds", 3, {"epochs": 1})
    assert record.manifest_digest == result.manifest_digest


def test_an_exception_in_training_is_exit_code_1(bench):
    """The message names the user's file and line, the log holds the user's traceback, the record lies in the store."""
    path = bench.code / "clouds.py"
    path.write_text(path.read_text().replace('calls["epoch"] += 1', "raise ValueError('no more data')"))
    code, message, log = bench.run(bench.request(spec={"stages": TUNE, "model": untrained()}))
    assert code == ExitCode.FAILED
    line = next(n for n, text in enumerate(path.read_text().splitlines(), 1) if "no more data" in text)
    assert message["reason"] == "RunnerFailed"
    assert message["message"] == f"training_func raised ValueError: no more data ({path.name}:{line})"
    assert "Traceback" in log
    assert "ValueError: no more data" in log
    record = bench.store / bench.root / "1-1aaaaaaa" / "result.json"
    assert json.loads(record.read_text())["message"] == message["message"]


def untrained() -> dict:
    """An entrypoint without the keyword train, so that nothing is trained before the stages."""
    return {"entrypoint": "plain:create"}


@pytest.fixture(autouse=True)
def plain(bench):
    """A module beside the user's that gives the model untrained."""
    text = "import clouds\n\n\ndef create(width=8):\n    return clouds.create(width, train=False)\n"
    (bench.code / "plain.py").write_text(text)


@pytest.mark.parametrize(
    ("spec", "reason", "message"),
    [
        ({"model": {"entrypoint": "cloud:create"}}, "InvalidModel", "no module 'cloud'.*did you mean clouds"),
        (
            {"model": untrained(), "stages": TUNE, "constraints": [{"metric": "defualt", "min": 0}]},
            "InvalidSpec",
            r"spec\.constraints\[0\]\.metric: the evaluator returns no metric 'defualt'; did you mean default",
        ),
        ({"store": None}, "InvalidSpec", "the request has no store"),
        ({"stages": []}, "InvalidSpec", r"is no RunRequest: spec\.stages"),
    ],
)
def test_what_can_never_work_is_exit_code_2(bench, spec, reason, message):
    """Never tried again: the module, a metric that nobody returns, a request that is none. No traceback."""
    import re

    code, result, log = bench.run(bench.request(spec=spec))
    assert code == ExitCode.INVALID, log
    assert (result["phase"], result["reason"]) == ("Failed", reason)
    assert re.search(message, result["message"])
    assert "Traceback" not in log


def test_a_run_dies_with_its_parent(bench):
    """With --parent-pid a run does not outlive the process that started it."""
    fifo = bench.marks / "hanging"
    os.mkfifo(fifo)
    (bench.folder / "request.json").write_text(json.dumps(bench.request(spec={"stages": TUNE, "model": untrained()})))
    parent_code = (
        "import os, subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-m', 'modelpress_runner.main', *sys.argv[1:],\n"
        "                          '--parent-pid', str(os.getpid())])\n"
        "print(child.pid, flush=True)\n"
        "child.wait()\n"
    )
    arguments = ["--request", str(bench.folder / "request.json"), "--result", str(bench.folder / "result.json")]
    environment = {**os.environ, "TEST_MARKS": str(bench.marks), "TEST_HANG": "1"}
    parent = subprocess.Popen(
        [sys.executable, "-c", parent_code, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    watch = os.pidfd_open(child)
    bench.wait_for("hanging", parent)
    parent.send_signal(signal.SIGKILL)
    parent.communicate(timeout=60)
    import select

    assert select.select([watch], [], [], 60)[0]
    os.close(watch)


def test_a_run_whose_parent_is_gone_already_ends_at_once(bench):
    """It does nothing if its parent's id is not the one it was told."""
    process = bench.start(bench.request(), "--parent-pid", "1" if os.getpid() != 1 else "2")
    _, log = process.communicate(timeout=120)
    assert process.returncode == ExitCode.TERMINATED
    assert "has ended" in log
    assert not bench.store.exists()
