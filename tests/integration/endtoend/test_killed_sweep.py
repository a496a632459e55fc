"""A real sweep, killed with SIGKILL three times and started again, ends as if nothing had happened."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from modelpress.api.load import load_dict
from modelpress.api.v1alpha1 import CompressionJob, CompressionSweep
from modelpress.search import replay

pytestmark = pytest.mark.long

CODE = Path(__file__).parent / "code"
KILLS = 3
CLOCK_FREE = ("default", "macs", "parameters", "nonzeroParameters")


def sweep(algorithm: str, parallelism: int, log: Path) -> dict[str, Any]:
    return {
        "apiVersion": "modelpress.dev/v1alpha1",
        "kind": "CompressionSweep",
        "metadata": {"name": "small"},
        "spec": {
            "template": {
                "spec": {
                    "model": {"entrypoint": "small:create", "args": {"log": str(log)}},
                    "code": {"path": str(CODE)},
                    "stages": [
                        {
                            "prune": {
                                "configList": [{"opTypes": ["Conv2d"], "sparsity": 0.5}],
                                "schedule": {"type": "agp", "rounds": 2, "train": {"epochs": 1}},
                            }
                        },
                        {"finetune": {"epochs": 4}},
                    ],
                    "benchmark": {"warmup": 0, "iterations": 2},
                }
            },
            "searchSpace": [
                {
                    "name": "sparsity",
                    "paths": ["/stages/0/prune/configList/0/sparsity"],
                    "float": {"min": 0.2, "max": 0.8},
                },
                {
                    "name": "algorithm",
                    "paths": ["/stages/0/prune/algorithm"],
                    "categorical": {"values": ["l1", "l2", "random"]},
                },
            ],
            "objectives": [{"metric": "default"}, {"metric": "macs"}],
            "algorithm": {"name": algorithm, "seed": 3},
            "parallelism": parallelism,
            "maxTrials": 4,
        },
    }


class Run:
    """One store, and the command that works on it."""

    def __init__(self, folder: Path, algorithm: str, parallelism: int) -> None:
        folder.mkdir()
        self.folder = folder
        self.log = folder / "dense.log"
        # The two runs compared must have equal specs but for the place of the log.
        (folder / "sweep.yaml").write_text(yaml.safe_dump(sweep(algorithm, parallelism, self.log)))
        self.command = [sys.executable, "-m", "modelpress.cli", "run", "sweep.yaml", "--no-progress", "-o", "json"]

    def start(self) -> subprocess.Popen[str]:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            self.command, cwd=self.folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def finish(self) -> dict[str, Any]:
        out, err = self.start().communicate(timeout=500)
        assert out, err
        summary = json.loads(out)
        assert summary["exitCode"] == 0, err
        return summary

    @property
    def root(self) -> Path:
        return next((self.folder / "modelpress-runs" / "default").glob("small-*"))

    def dense_is_cached(self) -> bool:
        return bool(list((self.folder / "modelpress-runs").glob("default/small-*/dense/*/baseline.json")))

    def training(self) -> list[dict[str, int]]:
        """The counted optimizer steps of every trial, from the attempt that stands."""
        counted = []
        for manifest in sorted(self.root.glob("trials/*/manifest.json")):
            files = [entry["path"] for entry in json.loads(manifest.read_text())["files"]]
            metrics = next(path for path in files if path.endswith("metrics.json"))
            counted.append(json.loads((manifest.parent / metrics).read_text())["training"])
        return counted

    def successes(self) -> dict[str, int]:
        """How many attempts of each trial ran to a successful end."""
        ended: dict[str, int] = {}
        for path in self.root.glob("trials/*/*/result.json"):
            if json.loads(path.read_text())["phase"] == "Succeeded":
                ended[path.parts[-3]] = ended.get(path.parts[-3], 0) + 1
        return ended


def outcome(summary: dict[str, Any]) -> dict[str, Any]:
    """What must not depend on kills: parameters, state and clock-free metrics of every trial, and which is best."""
    trials = {}
    for trial in summary["trials"]:
        compressed = trial["status"]["metrics"]["compressed"]
        trials[trial["metadata"]["name"]] = {
            "parameters": json.loads(trial["metadata"]["annotations"]["modelpress.dev/parameters"]),
            "phase": trial["status"]["phase"],
            "metrics": {name: compressed[name] for name in CLOCK_FREE},
        }
    best = summary["best"]
    return {"trials": trials, "best": best["number"], "front": summary["objects"][0]["status"]["front"]}


def differences_on_replay(summary: dict[str, Any]) -> list[str]:
    """What replaying every recorded history gives beyond the recorded parameters: nothing, it should be."""
    root = load_dict(summary["objects"][0])
    assert isinstance(root, CompressionSweep)
    trials = [CompressionJob.model_validate_json(json.dumps(trial)) for trial in summary["trials"]]
    assert len(trials) == root.spec.max_trials
    return replay(root.spec, trials)


@pytest.mark.parametrize(("algorithm", "parallelism"), [("random", 2), ("tpe", 1)])
def test_three_kills_change_nothing(algorithm: str, parallelism: int, tmp_path: Path) -> None:
    """Same trials, parameters and best; nothing that was finished ran twice."""
    undisturbed = Run(tmp_path / "undisturbed", algorithm, parallelism)
    begin = time.monotonic()
    expected = undisturbed.finish()
    duration = time.monotonic() - begin
    assert undisturbed.log.read_text() == "trained\n"
    assert [one["repeated"] for one in undisturbed.training()] == [0, 0, 0, 0]

    killed = Run(tmp_path / "killed", algorithm, parallelism)
    moments = random.Random(f"{algorithm}{parallelism}")
    kills = trainings_at_risk = 0
    for _ in range(KILLS):
        process = killed.start()
        try:
            process.wait(moments.uniform(0.05, 0.3) * duration)
        except subprocess.TimeoutExpired:
            trainings_at_risk += not killed.dense_is_cached()
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.communicate()
    found = killed.finish()

    assert kills >= 2
    assert outcome(found) == outcome(expected)
    assert differences_on_replay(found) == []
    assert set(killed.successes().values()) == {1}
    assert len(killed.successes()) == 4
    assert [one["steps"] for one in killed.training()] == [one["steps"] for one in undisturbed.training()]
    assert 1 <= len(killed.log.read_text().splitlines()) <= 1 + trainings_at_risk
    assert not list(killed.root.glob("trials/*/checkpoint/*"))
