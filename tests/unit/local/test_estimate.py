"""What a trial will take, from short runs whose figures are given."""

from __future__ import annotations

from typing import Any

import pytest

from modelpress.local.estimate import estimate


def found(*seconds: float, epochs: int = 10, finetune: tuple[float, ...] = (3.0, 5.0)) -> dict[str, Any]:
    """Runs of a pruning and a finetuning; the first one builds the dense model for 4 s."""
    runs = [
        {
            "seconds": whole,
            "stages": [{"name": "0-prune", "seconds": 1.0}, {"name": "1-finetune", "seconds": finetune[place]}],
            "baseline": {"macs": 100.0},
            "compressed": {"macs": 40.0},
        }
        for place, whole in enumerate(seconds)
    ]
    probe = [[0, place + 1] for place in range(len(seconds))]
    return {
        "runs": runs,
        "lengths": {"probe": probe, "recipe": [0, epochs]},
        "memoryBytes": 2**30,
        "processors": 2,
    }


def test_two_runs_tell_what_grows_with_training_and_what_does_not() -> None:
    """An epoch takes 5 - 3 = 2 s, so ten take 1 + 20; beside it pruning 1, measuring 2, start 6, the dense model 4."""
    told = estimate(found(10.0, 8.0), 24.0)
    assert dict(told.stages) == {"0-prune": 1.0, "1-finetune": 21.0}
    assert told.dense_seconds == 4.0
    assert told.seconds == pytest.approx(6 + 4 + 1 + 21 + 2)
    assert (told.memory, told.gpu_memory, told.compressed) == (2**30, None, {"macs": 40.0})
    assert "1-finetune trained for 1 and 2 of 10; the rest is taken to go on at that pace" in told.basis


def test_one_run_takes_all_of_a_stage_as_training() -> None:
    """Ten epochs of 3 s; what is left of the run happens once."""
    told = estimate(found(10.0), 16.0)
    assert dict(told.stages) == {"0-prune": 1.0, "1-finetune": 30.0}
    assert told.seconds == pytest.approx(6 + 10 + 27)


def test_a_recipe_no_longer_than_its_probe_is_as_it_was() -> None:
    """Nothing is added, and nothing is said of the rest."""
    told = estimate(found(10.0, epochs=1), 16.0)
    assert told.seconds == pytest.approx(16.0)
    assert not any("go on" in sentence for sentence in told.basis)


def test_noise_gives_no_negative_pace() -> None:
    """If two epochs were faster than one, an epoch is at least a quarter of what they took."""
    told = estimate(found(10.0, 8.0, finetune=(5.0, 4.0)), 24.0)
    assert dict(told.stages)["1-finetune"] == pytest.approx(4 + 8 * 0.5)
