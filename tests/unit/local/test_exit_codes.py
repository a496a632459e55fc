"""How ends become exit codes, of one run and of a row of them."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
from simulation import World, job_dict, run_once, sweep_dict

from modelpress.local.session import Finished, exit_code, model_uri


def finished(folder: Path, value: dict[str, Any], interrupted: int | None = None, **options: Any) -> Finished:
    """A run to its end."""
    cluster = run_once(World(folder), value, **options)
    return Finished(cluster.root, cluster.trials, "/store/root", folder, False, interrupted, None)


@pytest.mark.parametrize(
    ("value", "exits", "code"),
    [
        (job_dict(), {}, 0),
        (job_dict(backoffLimit=0), {"one": [1]}, 1),
        (sweep_dict(trials=2), {}, 0),
        (sweep_dict(trials=1), {"many-00000": [2]}, 1),
        (sweep_dict(trials=2, constraints=[{"metric": "default", "min": 0.999}]), {}, 3),
    ],
)
def test_the_exit_code_says_how_it_ended(
    tmp_path: Path, value: dict[str, Any], exits: dict[str, list[int]], code: int
) -> None:
    """0 done, 1 failed, 3 no trial met the constraints."""
    assert finished(tmp_path, value, exits=exits).exit_code == code


def test_a_signal_counts_only_if_it_kept_something_from_its_end(tmp_path: Path) -> None:
    """A run that was finished anyway keeps its own code; a document that never ran does not pass unnoticed."""
    done = finished(tmp_path, job_dict(), interrupted=signal.SIGINT)
    assert done.exit_code == 0
    assert exit_code([done], planned=1) == 0
    assert exit_code([done], planned=2) == 130


def test_the_worst_of_a_row_counts(tmp_path: Path) -> None:
    """Failed goes before a missed constraint, that before done."""
    runs = [
        finished(tmp_path / "a", job_dict()),
        finished(tmp_path / "b", sweep_dict(trials=2, constraints=[{"metric": "default", "min": 0.999}])),
        finished(tmp_path / "c", job_dict(backoffLimit=0), exits={"one": [1]}),
    ]
    assert exit_code(runs) == 1
    assert exit_code(runs[:2]) == 3
    assert exit_code(runs[:1]) == exit_code([]) == 0


def test_the_model_of_a_sweep_is_its_published_best(tmp_path: Path) -> None:
    """A job's model is its artifact, a sweep's the copy in best/; a failed job has none."""
    job = finished(tmp_path / "a", job_dict())
    assert model_uri(job) == job.root.status.artifact.uri
    assert model_uri(finished(tmp_path / "b", sweep_dict(trials=2))) == "/store/root/best"
    assert model_uri(finished(tmp_path / "c", job_dict(backoffLimit=0), exits={"one": [1]})) is None
