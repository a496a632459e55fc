"""What a stopped trial teaches, and what a sampler may not keep in secret."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from optuna.distributions import FloatDistribution
from optuna.samplers import NSGAIISampler
from optuna.study import Study
from optuna.trial import TrialState

from modelpress.api.search_space import Space
from modelpress.api.v1alpha1 import CompressionJob, CompressionSweepSpec, Parameter
from modelpress.search import strategy_for
from modelpress.search.samplers import Observation, create
from modelpress.search.samplers.history import STUDY_NAME, HistoryStorage, frozen
from modelpress.trials import History

LINE = Space([Parameter.model_validate({"name": "x", "paths": ["/x"], "float": {"min": 0.0, "max": 1.0}})])


def mean(history: list[Observation]) -> float:
    """Of the next suggestion by 30 seeds."""
    found = [create("tpe", LINE, ("maximize",), seed).sample(len(history), history) for seed in range(30)]
    return sum(float(item["x"]) for item in found if item is not None) / len(found)


def test_stopped_trials_teach_by_their_last_score() -> None:
    """Where all trials were stopped at one step, TPE goes where their scores were high, as if they had completed."""
    values = [(index * 7 % 20 + 0.5) / 20 for index in range(20)]
    stopped = [
        Observation(index, {"x": x}, "stopped", intermediate=((1, 0.5), (5, x))) for index, x in enumerate(values)
    ]
    backwards = [
        Observation(index, {"x": x}, "stopped", intermediate=((1, 0.5), (5, -x))) for index, x in enumerate(values)
    ]
    assert mean(stopped) > 0.65
    assert mean(backwards) < 0.35


def test_a_stopped_trial_without_scores_teaches_nothing() -> None:
    """The next suggestion is the same with it and without, and so it is with a failed one."""
    history = [Observation(index, {"x": (index + 0.5) / 12}, "complete", (index / 12,)) for index in range(12)]
    sampler = create("tpe", LINE, ("maximize",), 0)
    alone = sampler.sample(20, history)
    assert sampler.sample(20, [*history, Observation(12, {"x": 0.99}, "stopped")]) == alone
    assert sampler.sample(20, [*history, Observation(12, {"x": 0.99}, "failed")]) == alone


@pytest.mark.parametrize(("objectives", "differs"), [(("default",), True), (("macs",), False)])
def test_the_search_reads_a_stopped_trials_scores(
    make_sweep: Callable[..., CompressionSweepSpec],
    make_trial: Callable[..., CompressionJob],
    objectives: tuple[str, ...],
    differs: bool,
) -> None:
    """status.intermediate holds the evaluator's score: it counts where that is the one objective, else nothing does."""
    spec = make_sweep("tpe", objectives=objectives, template=None or make_sweep().template.to_dict())
    trials: dict[int, CompressionJob] = {}
    for number in range(12):
        point = {"algorithm": "l1", "sparsity": round(0.1 + 0.1 * (number % 9), 1), "epochs": 1 + number // 9}
        trials[number] = make_trial(spec, number, point, compressed={"default": 0.5 + number / 100, "macs": 9.0})

    def suggested(phase: str, values: list[float]) -> Any:
        found = []
        for last in range(12, 20):
            history = dict(trials)
            for number in range(12, last + 1):
                point = {"algorithm": "l2", "sparsity": round(0.1 * (number - 11), 1), "epochs": 3}
                job = make_trial(spec, number, point, phase=phase)
                status = job.to_dict()
                status["status"]["intermediate"] = [{"step": 1, "value": values[number - 12]}]
                history[number] = CompressionJob.model_validate(status)
            found.append(strategy_for(spec).suggest(last + 1, History(tuple(range(last + 1))), history).parameters)
        return found

    rising = [0.1 * number for number in range(8)]
    assert (suggested("Stopped", rising) != suggested("Failed", rising)) is differs


def test_a_sampler_with_a_memory_of_its_own_is_refused() -> None:
    """NSGA-II looks for generations in the trials' attributes; recorded trials have none, so it is no silent chance."""
    line = {"x": FloatDistribution(0.0, 1.0)}
    trials = [frozen(number, TrialState.COMPLETE, {"x": 0.1 * number}, line, (0.1 * number,)) for number in range(8)]
    storage = HistoryStorage(["maximize"], trials, 8)
    study = Study(STUDY_NAME, storage, NSGAIISampler(population_size=2, seed=0))
    with pytest.raises(NotImplementedError, match="NSGAII"):
        study.ask().suggest_float("x", 0.0, 1.0)
