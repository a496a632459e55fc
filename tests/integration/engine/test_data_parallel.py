"""Evaluators of plain PyTorch in two processes: gradients are shared, decisions are those of one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.long

SCRIPT = Path(__file__).with_name("data_parallel.py")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What two ranks and one process alone printed."""
    file = tmp_path_factory.mktemp("group") / "store"
    runs = [(0, 2), (1, 2), (0, 1)]
    processes = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(rank), str(world), str(file)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for rank, world in runs
    ]
    try:
        outputs = [process.communicate(timeout=240)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0, 0]
    return [json.loads(output.splitlines()[-1]) for output in outputs]


def close(one: Any, two: Any) -> bool:
    """Nested lists and dicts of numbers, equal to float32's accuracy."""
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(close(one[key], two[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(two) and all(map(close, one, two))
    return one == pytest.approx(two, rel=1e-4, abs=1e-6)


def test_a_recipe_decides_like_one_process(results):
    """The same channels by Taylor scores, round by round, and the same weights on both ranks, after a shrink too."""
    first, second, alone = (result["recipe"] for result in results)
    assert first["kept"] == second["kept"] == alone["kept"]
    assert len(first["kept"][0]) == 4
    assert first["weights"] == second["weights"]
    assert close(first["weights"], alone["weights"])
    assert first["score"] == second["score"]


def test_training_gets_the_wrapped_model_and_evaluation_the_model_itself(results):
    """Attributes of the model are there through the wrapper."""
    first, _, alone = (result["recipe"] for result in results)
    assert first["trained"] == ["('ParallelModel', 'net')", "Net"]
    assert alone["trained"] == ["('Net', 'net')", "Net"]


def test_hooks_sit_inside_and_nothing_is_left_after_unbinding(results):
    """A forward hook sees this rank's share; afterwards one rank goes backward without the other."""
    first, second, alone = (result["alone"] for result in results)
    assert first["hooked"] == second["hooked"] == [[4, 8]] * 2
    assert alone["hooked"] == [[8, 8]] * 2
    assert (first["gradient"], second["gradient"]) == (True, False)


def test_gradients_of_a_frozen_model_are_those_of_all_ranks(results):
    """The mean over ranks is the gradient of the whole batch; the weights keep every bit."""
    first, second, alone = (result["frozen"] for result in results)
    assert first["gradients"] == second["gradients"]
    assert close(first["gradients"], alone["gradients"])
    assert [first["same"], second["same"], alone["same"]] == [True] * 3


def test_wrapping_can_be_left_to_the_training(results):
    """parallel=False hands the model over as it is; a dict goes to DistributedDataParallel."""
    assert results[0]["options"]["seen"] == [["Net", "net"], ["ParallelModel", "net"]]
    assert results[2]["options"]["seen"] == [["Net", "net"]] * 2


def test_compression_modules_train_together_too(results):
    """The trainer gets the wrapped model, and both ranks end with the weights of one process."""
    first, second, alone = (result["module"] for result in results)
    assert first["kinds"] == ["ParallelModel"]
    assert alone["kinds"] == ["Net"]
    assert first["weights"] == second["weights"]
    assert close(first["weights"], alone["weights"])
