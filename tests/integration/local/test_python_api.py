"""mp.run: the same runs from Python, also inside a notebook's event loop."""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import modelpress as mp
from modelpress.api.errors import SpecError
from modelpress.local.session import exit_code_of


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh working folder whose child processes find the fake runner."""
    package = tmp_path / "fake" / "modelpress_runner"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    shutil.copy(Path(__file__).with_name("fake_runner.py"), package / "main.py")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "fake"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def job(**spec: Any) -> dict[str, Any]:
    """A CompressionJob in Python spelling."""
    return {
        "api_version": "modelpress.dev/v1alpha1",
        "kind": "CompressionJob",
        "metadata": {"name": "one"},
        "spec": {
            "model": {"entrypoint": "digits:create"},
            "stages": [{"prune": {"config_list": [{"op_types": ["Conv2d"], "sparsity": 0.25}]}}],
            **spec,
        },
    }


def sweep() -> dict[str, Any]:
    """A CompressionSweep of two grid points."""
    where = "/stages/0/prune/configList/0/sparsity"
    return {
        "apiVersion": "modelpress.dev/v1alpha1",
        "kind": "CompressionSweep",
        "metadata": {"name": "many"},
        "spec": {
            "template": {"spec": job()["spec"]},
            "search_space": [{"name": "sparsity", "paths": [where], "categorical": {"values": [0.5, 0.25]}}],
            "objectives": [{"metric": "macs"}],
            "algorithm": {"name": "grid"},
            "max_trials": 9,
        },
    }


def test_a_mapping_runs_and_tells_where_the_model_is(here: Path) -> None:
    """Python spelling is fine; the result holds the final object and its URI."""
    result = mp.run(job())
    assert result.exit_code == 0
    (done,) = result.objects
    assert done.status.metrics.compressed["macs"] == 750.0
    assert result.uri == f"{here}/modelpress-runs/default/one-{done.metadata.uid[:8]}"
    assert (result.best, result.trials) == (None, ())


def test_a_sweep_gives_its_best_trial(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A grid ends when it is exhausted; progress goes to standard error."""
    result = mp.run(sweep(), store="elsewhere", parallel=2, progress=True)
    assert result.exit_code == 0
    assert len(result.trials) == 2
    assert result.best.parameters == {"sparsity": 0.5}
    assert result.best.metrics["macs"] == 500.0
    assert result.uri.startswith(f"{here}/elsewhere/default/many-")
    assert (Path(result.uri) / "manifest.json").exists()
    told = capsys.readouterr()
    assert told.out == ""
    assert "many: Succeeded" in told.err


def test_a_runner_one_release_ahead_is_understood(here: Path) -> None:
    """Its results have unknown keys and 20 further metrics; objectives default and speedup both decide."""
    package, tests = here / "fake" / "modelpress_runner", Path(__file__).parent
    shutil.copy(tests / "fake_runner.py", package / "fake_runner.py")
    shutil.copy(tests / "newer_runner.py", package / "main.py")
    document = sweep()
    document["spec"]["objectives"] = [{"metric": "default"}, {"metric": "speedup"}]
    document["spec"]["template"]["spec"]["constraints"] = [{"metric": "latencyMs", "max_ratio": 0.9}]
    values = {"values": [0.5, 0.25, 0.05]}  # the last one misses the constraint
    document["spec"]["search_space"][0]["categorical"] = values
    result = mp.run(document)
    assert result.exit_code == 0
    status = result.objects[0].status
    assert status.best.parameters == {"sparsity": 0.25}
    assert (status.best.metrics["default"], status.best.metrics["speedup"]) == (0.975, 1.333333)
    assert status.front == [0, 1]
    assert {"default", "speedup", "latencyMs"} <= set(result.trials[0].status.metrics.compressed)


async def test_it_runs_inside_a_running_event_loop(here: Path) -> None:
    """As in a notebook's cell."""
    assert mp.run(job()).exit_code == 0


def test_an_invalid_mapping_is_a_spec_error(here: Path) -> None:
    """The error lists what is wrong; nothing was started."""
    with pytest.raises(SpecError, match=r"spec\.code\.path: there is no folder"):
        mp.run(job(code={"path": "nowhere"}))
    assert not (here / "modelpress-runs").exists()


def test_a_failure_is_a_result_not_an_exception(here: Path) -> None:
    """Whoever calls it sees the object's conditions."""
    failing = job(backoff_limit=0)
    failing["spec"]["model"]["args"] = {"exits": {"trial": [1]}}
    result = mp.run(failing)
    assert result.exit_code == exit_code_of(result.objects[0]) == 1
    assert result.uri is None


def said(ledger: int) -> bytes:
    """What runs have written into the ledger since it was last read."""
    ready, _, _ = select.select([ledger], [], [], 60)
    assert ready, "no run said anything"
    return os.read(ledger, 4096)


@pytest.mark.parametrize("inside_a_loop", [False, True])
def test_ctrl_c_stops_cleanly_and_raises(here: Path, inside_a_loop: bool) -> None:
    """KeyboardInterrupt comes after the children's end; the same call goes on."""
    for name in ("ledger", "gate"):
        os.mkfifo(here / name)
    waiting = job()
    waiting["spec"]["model"]["args"] = {"ledger": str(here / "ledger"), "gate": str(here / "gate")}
    call = f"mp.run({waiting!r})"
    if inside_a_loop:
        call = f"asyncio.run(later(lambda: {call}))"
    script = (
        "import asyncio, modelpress as mp\n"
        "async def later(work):\n    return work()\n"
        f"try:\n    {call}\nexcept KeyboardInterrupt:\n    print('stopped')\n"
    )
    process = subprocess.Popen((sys.executable, "-c", script), stdout=subprocess.PIPE, text=True)
    ledger = os.open(here / "ledger", os.O_RDWR)
    assert b'"start"' in said(ledger)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60)[0] == "stopped\n"
    assert b'"exit": 143' in said(ledger)
    os.close(ledger)
