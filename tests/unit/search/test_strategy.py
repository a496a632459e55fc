"""A sweep's strategy: resolved suggestions, pure in seed, number and history; ranking; replay."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from modelpress.api.v1alpha1 import CompressionJob, CompressionSweepSpec
from modelpress.search import SpaceError, replay, strategy_for
from modelpress.search.resolve import RefusedError, resolve
from modelpress.trials import HISTORY_ANNOTATION, PARAMETERS_ANNOTATION, TRIAL_LABEL, History, Strategy, Suggestion

MakeSweep = Callable[..., CompressionSweepSpec]
MakeTrial = Callable[..., CompressionJob]


def results(parameters: Any) -> dict[str, float]:
    """Made-up metrics: the score falls and the cost falls with sparsity."""
    sparsity = parameters["sparsity"]
    score = 1.0 - sparsity**2 / 20 - (0.01 if parameters["algorithm"] == "random" else 0.0)
    return {"default": score, "macs": 1000.0 * (1 - sparsity), "latencyMs": 2.0 - sparsity}


def run(
    spec: CompressionSweepSpec, make_trial: MakeTrial, count: int, parallelism: int = 1, failing: int = 0
) -> dict[int, CompressionJob]:
    """A sweep of `count` trials, `parallelism` of them undecided at any time; every `failing`-th fails."""
    strategy = strategy_for(spec)
    trials: dict[int, CompressionJob] = {}
    for number in range(count):
        done = max(0, number - parallelism + 1)
        history = History(finished=tuple(range(done)), running=tuple(range(done, number)))
        suggestion = strategy.suggest(number, history, trials)
        if suggestion.exhausted:
            break
        assert suggestion.problem is None
        phase = "Failed" if failing and number % failing == 0 else "Succeeded"
        compressed = results(suggestion.parameters)
        trials[number] = make_trial(
            spec, number, dict(suggestion.parameters), compressed=compressed, phase=phase, history=history
        )
    return trials


def test_parameters_are_put_in_and_constraints_appended(make_sweep: MakeSweep) -> None:
    """Every path gets its value, the template's other values stand, and the sweep's constraints come last."""
    spec = resolve(make_sweep(), {"algorithm": "l2", "sparsity": 0.3, "epochs": 4})
    assert spec.stages[0].prune is not None
    assert spec.stages[0].prune.algorithm == "l2"
    assert spec.stages[0].prune.config_list[0].sparsity == 0.3
    assert spec.stages[0].prune.config_list[0].op_types == ["Conv2d"]
    assert spec.stages[1].finetune is not None
    assert spec.stages[1].finetune.epochs == 4
    assert [item.to_dict() for item in spec.constraints or []] == [
        {"metric": "macs", "maxRatio": 0.95},
        {"metric": "default", "maxRelativeLoss": 0.02},
    ]


def test_an_inactive_parameter_leaves_the_template(make_sweep: MakeSweep) -> None:
    """Without epochs the template's 2 stand; a constraint that the template has is not doubled."""
    sweep = make_sweep(constraints=[{"metric": "macs", "maxRatio": 0.95}])
    spec = resolve(sweep, {"algorithm": "random", "sparsity": 0.3})
    assert spec.stages[1].finetune is not None
    assert spec.stages[1].finetune.epochs == 2
    assert len(spec.constraints or []) == 1


@pytest.mark.parametrize(
    ("parameter", "message"),
    [
        (
            {"paths": ["/stages/0/prune/sparsity"], "categorical": {"values": [1.5]}},
            r"^spec\.template\.spec\.stages\[0\]\.prune\.sparsity: .*; .*\(with x=1\.5\)$",
        ),
        (
            {"paths": ["/stages/0/prune/schedule/rounds"], "categorical": {"values": [3]}},
            r"^spec\.template\.spec\.stages\[0\]\.prune\.schedule: one_shot has one round; .*\(with x=3\)$",
        ),
        (
            {"paths": ["/stages/0/prune/configList/0/opNamesRe"], "categorical": {"values": ["("]}},
            r"^spec\.template\.spec\.stages\[0\]\.prune\.configList\[0\]\.opNamesRe",
        ),
        (
            {"paths": ["/seed", "/stages/7/name"], "categorical": {"values": [0]}},
            r"^spec\.searchSpace\[0\]\.paths\[1\]: /stages has 2 entries, from 0, and no 7; known there: 0, 1$",
        ),
    ],
)
def test_what_gives_no_valid_recipe_is_refused(make_sweep: MakeSweep, parameter: dict[str, Any], message: str) -> None:
    """Schema, rules and pointers are checked before a trial exists; the problem names field, values and what to do."""
    spec = make_sweep(searchSpace=[{"name": "x", **parameter}])
    value = parameter["categorical"]["values"][0]
    with pytest.raises(RefusedError, match=message):
        resolve(spec, {"x": value})
    suggestion = strategy_for(spec).suggest(0, History(), {})
    assert suggestion.parameters == {"x": value}
    assert suggestion.spec is None
    assert not suggestion.exhausted
    assert suggestion.problem is not None


def test_semantic_problems_are_refused_too(make_sweep: MakeSweep) -> None:
    """A recipe that the schema accepts and the semantic checks do not: pruning without a sparsity."""
    template = make_sweep().template.spec.to_dict()
    del template["stages"][0]["prune"]["configList"][0]["sparsity"]
    broken = make_sweep(
        template={"spec": template},
        searchSpace=[{"name": "x", "paths": ["/seed"], "int": {"min": 1, "max": 1}}],
    )
    suggestion = strategy_for(broken).suggest(0, History(), {})
    assert suggestion.problem is not None
    assert suggestion.problem.startswith("spec.template.spec.stages[0].prune.configList[0]")


def test_a_grid_is_exhausted(make_sweep: MakeSweep) -> None:
    """9 sparsities x (2 algorithms x 4 epochs + random) = 81 trials, then exhausted for good."""
    strategy = strategy_for(make_sweep("grid"))
    seen = {json.dumps(strategy.suggest(number, History(), {}).parameters) for number in range(81)}
    assert len(seen) == 81
    assert strategy.suggest(81, History(), {}) == Suggestion(exhausted=True)
    assert strategy.suggest(5000, History(), {}).exhausted


def test_a_grid_needs_steps(make_sweep: MakeSweep) -> None:
    """A continuous range is refused when the strategy is made."""
    space = [{"name": "x", "paths": ["/stages/0/prune/sparsity"], "float": {"min": 0.1, "max": 0.9}}]
    with pytest.raises(SpaceError, match=r"^spec\.searchSpace\[0\]\.float: grid needs a step, for 'x' has endlessly"):
        strategy_for(make_sweep("grid", searchSpace=space))


@pytest.mark.parametrize("algorithm", ["random", "grid", "qmc"])
def test_random_and_grid_are_equal_at_any_parallelism(
    make_sweep: MakeSweep, make_trial: MakeTrial, algorithm: str
) -> None:
    """One at a time, eight at a time with failures: trial n has the same parameters."""
    spec = make_sweep(algorithm)
    serial, parallel = run(spec, make_trial, 30), run(spec, make_trial, 30, parallelism=8, failing=3)
    for number in range(30):
        one, other = (trials[number].metadata.annotations or {} for trials in (serial, parallel))
        assert one[PARAMETERS_ANNOTATION] == other[PARAMETERS_ANNOTATION]


@pytest.mark.parametrize(
    ("algorithm", "objectives"),
    [
        (algorithm, objectives)
        for algorithm in ("random", "grid", "qmc", "tpe", "nsga2", "cmaes")
        for objectives in (("default",), ("default", "macs"))
        if algorithm != "cmaes" or len(objectives) == 1
    ],
)
def test_every_trial_replays(
    make_sweep: MakeSweep, make_trial: MakeTrial, algorithm: str, objectives: tuple[str, ...]
) -> None:
    """After a parallel sweep with failures, each trial's parameters follow from its recorded history."""
    spec = make_sweep(algorithm, objectives=objectives)
    trials = run(spec, make_trial, 30, parallelism=4, failing=5)
    assert replay(spec, list(trials.values())) == []
    assert replay(spec, list(reversed(trials.values()))) == []


def test_replay_names_every_difference(make_sweep: MakeSweep, make_trial: MakeTrial) -> None:
    """A changed parameter, a lost history and a vanished trial are found and told apart."""
    spec = make_sweep("tpe")
    trials = run(spec, make_trial, 25)

    def annotate(number: int, **changes: str) -> CompressionJob:
        document = trials[number].to_dict()
        names = {"parameters": PARAMETERS_ANNOTATION, "history": HISTORY_ANNOTATION}
        document["metadata"]["annotations"] |= {names[name]: text for name, text in changes.items()}
        return CompressionJob.model_validate(document)

    moved = annotate(24, parameters='{"algorithm": "l1", "epochs": 9, "sparsity": 0.1}')
    assert replay(spec, [*list(trials.values())[:24], moved]) == [
        'trial 24 has the parameters {"algorithm": "l1", "epochs": 9, "sparsity": 0.1}, but replaying gives '
        + (trials[24].metadata.annotations or {})[PARAMETERS_ANNOTATION]
    ]
    assert replay(spec, [annotate(3, history="nonsense")]) == [
        f"trial 3 has no readable annotation {HISTORY_ANNOTATION}"
    ]
    assert replay(spec, [annotate(3, parameters="nonsense")]) == [f"trial 3 has no annotation {PARAMETERS_ANNOTATION}"]
    nameless = trials[3].to_dict()
    nameless["metadata"]["labels"] = {TRIAL_LABEL: "three"}
    assert replay(spec, [CompressionJob.model_validate(nameless)]) == ["digits-00003 has no trial number"]
    gone = replay(spec, [trials[number] for number in range(20, 25)])
    assert gone
    assert all("of its history these are gone: 0, 1, 2" in line for line in gone)


def test_what_was_running_stays_running_in_a_replay(make_sweep: MakeSweep, make_trial: MakeTrial) -> None:
    """A history that calls trials running gives the same answer when they have finished since."""
    spec = make_sweep("tpe")
    trials = run(spec, make_trial, 20)
    pending = {
        number: make_trial(
            spec, number, json.loads((job.metadata.annotations or {})[PARAMETERS_ANNOTATION]), phase=None
        )
        for number, job in trials.items()
    }
    history = History(finished=tuple(range(15)), running=tuple(range(15, 20)))
    then = {**trials, **{number: pending[number] for number in range(15, 20)}}
    assert strategy_for(spec).suggest(20, history, then) == strategy_for(spec).suggest(20, history, trials)


def test_only_the_trials_of_the_history_count(make_sweep: MakeSweep, make_trial: MakeTrial) -> None:
    """Trials that exist but are not named change nothing; neither does the order of the mapping."""
    spec = make_sweep("tpe")
    trials = run(spec, make_trial, 25)
    history = History(finished=tuple(range(15)))
    named = {number: trials[number] for number in range(15)}
    backwards = dict(reversed(trials.items()))
    assert strategy_for(spec).suggest(15, history, backwards) == strategy_for(spec).suggest(15, history, named)


def test_a_success_without_its_objective_is_a_failure_to_the_sampler(
    make_sweep: MakeSweep, make_trial: MakeTrial
) -> None:
    """A trial that succeeded but reports no objective teaches as much as a failed one, and is not ranked."""
    spec = make_sweep("tpe")
    trials = run(spec, make_trial, 15)
    point = {"algorithm": "l1", "sparsity": 0.5, "epochs": 1}
    history = History(finished=tuple(range(16)))
    without = {**trials, 15: make_trial(spec, 15, point, compressed={"macs": 1.0})}
    failed = {**trials, 15: make_trial(spec, 15, point, phase="Failed")}
    strategy = strategy_for(spec)
    assert strategy.suggest(16, history, without) == strategy.suggest(16, history, failed)
    assert strategy.ranking([without[15]]) == (None, [])


def test_an_uncertain_trial_stands_between_met_and_missed(make_sweep: MakeSweep, make_trial: MakeTrial) -> None:
    """It is best only where none is certain, before all that miss a constraint, and never on the front."""
    spec = make_sweep(constraints=[{"metric": "latencyMs", "maxRatio": 0.5}])
    point = {"algorithm": "random", "sparsity": 0.5}

    def trial(number: int, default: float, latency: float, met: bool | str) -> CompressionJob:
        compressed = {"default": default, "macs": 1.0, "latencyMs": latency}
        return make_trial(spec, number, point, compressed=compressed, met=met)

    certain, unsure, missed = trial(0, 0.7, 0.9, True), trial(1, 0.8, 1.1, "uncertain"), trial(2, 0.9, 1.01, False)
    best, front = strategy_for(spec).ranking([certain, unsure, missed])
    assert best is not None
    assert (best.number, best.feasible, front) == (0, True, [0])
    best, front = strategy_for(spec).ranking([unsure, missed])
    assert best is not None
    assert (best.number, best.feasible, front) == (1, False, [])


def test_ranking(make_sweep: MakeSweep, make_trial: MakeTrial) -> None:
    """Best: feasible, then the first objective. Front: the feasible that none dominates. Others are passed over."""
    spec = make_sweep(objectives=("default", "latencyMs"))
    point = {"algorithm": "random", "sparsity": 0.5}

    def trial(number: int, default: float, macs: float, latency: float, **fields: Any) -> CompressionJob:
        compressed = {"default": default, "macs": macs, "latencyMs": latency}
        return make_trial(spec, number, point, compressed=compressed, **fields)

    trials = [
        trial(0, 0.999, 990.0, 2.0),  # macs 0.99 > 0.95: infeasible
        trial(1, 0.985, 500.0, 1.5),
        trial(2, 0.98, 400.0, 1.0),  # exactly 2 % lost: feasible
        trial(3, 0.985, 500.0, 1.6),  # dominated by 1
        trial(4, 0.97, 10.0, 0.1),  # 3 % lost: infeasible
        trial(5, 1.0, 1.0, 0.1, phase="Failed"),
        trial(6, 1.0, 1.0, 0.1, phase="Stopped"),
        trial(7, 1.0, 1.0, 0.1, phase="Running"),
    ]
    best, front = strategy_for(spec).ranking(trials)
    assert best is not None
    assert best.to_dict() == {
        "number": 1,
        "name": "digits-00001",
        "parameters": point,
        "metrics": {"default": 0.985, "macs": 500.0, "latencyMs": 1.5},
        "feasible": True,
    }
    assert front == [1, 2]
    # 0 misses by 0.99 - 0.95 = 0.04 of macs, 4 by 0.03 - 0.02 = 0.01 of default.
    best, front = strategy_for(spec).ranking([trials[0], trials[4]])
    assert best is not None
    assert (best.number, best.feasible, front) == (4, False, [])
    assert strategy_for(spec).ranking(trials[5:]) == (None, [])


def test_goals_come_from_objective_metric_and_template(make_sweep: MakeSweep, make_trial: MakeTrial) -> None:
    """perplexity is minimized by the template's metrics, default maximized; an objective's own goal stands."""
    point = {"algorithm": "random", "sparsity": 0.5}
    for objective, winner in (
        ({"metric": "perplexity"}, 0),
        ({"metric": "default"}, 1),
        ({"metric": "default", "goal": "minimize"}, 0),
    ):
        spec = CompressionSweepSpec.model_validate({**make_sweep().to_dict(), "objectives": [objective]})
        low = make_trial(spec, 0, point, compressed={"default": 0.99, "perplexity": 5.0, "macs": 1.0})
        high = make_trial(spec, 1, point, compressed={"default": 1.0, "perplexity": 6.0, "macs": 1.0})
        best, _ = strategy_for(spec).ranking([low, high])
        assert best is not None
        assert best.number == winner


@pytest.mark.parametrize(("met", "feasible"), [(True, True), (False, False), (None, False)])
def test_the_condition_decides_where_metrics_are_missing(
    make_sweep: MakeSweep, make_trial: MakeTrial, met: bool | None, feasible: bool
) -> None:
    """Without the dense model's metrics ConstraintsMet tells; without that either, nothing is claimed."""
    spec = make_sweep()
    point = {"algorithm": "random", "sparsity": 0.5}
    job = make_trial(spec, 0, point, compressed={"default": 0.5}, baseline={}, met=met)
    best, front = strategy_for(spec).ranking([job])
    assert best is not None
    assert best.feasible is feasible
    assert front == ([0] if feasible else [])


def test_long_fronts_are_thinned(make_sweep: MakeSweep, make_trial: MakeTrial) -> None:
    """Of 1200 trials on the front 1000 are named, the two ends among them: a status holds no more."""
    spec = make_sweep(objectives=("default", "latencyMs"))
    point = {"algorithm": "random", "sparsity": 0.5}
    first = make_trial(spec, 0, point, compressed={"default": 1.0, "latencyMs": 1.0, "macs": 1.0})
    trials = []
    for number in range(1200):
        metrics = {"default": 1.0 + number, "latencyMs": 1.0 + number, "macs": 1.0}
        pair = first.status.metrics.model_copy(update={"compressed": metrics}) if first.status.metrics else None
        meta = first.metadata.model_copy(update={"labels": {TRIAL_LABEL: str(number)}})
        status = first.status.model_copy(update={"metrics": pair})
        trials.append(first.model_copy(update={"metadata": meta, "status": status}))
    _, front = strategy_for(spec).ranking(trials)
    assert len(front) == len(set(front)) == 1000
    assert front == sorted(front)
    assert (front[0], front[-1]) == (0, 1199)


def test_annotations_written_by_others_do_no_harm(make_sweep: MakeSweep, make_trial: MakeTrial) -> None:
    """Parameters that are no scalars, or not of this space, are left out of the result."""
    spec = make_sweep()
    document = make_trial(spec, 0, {"algorithm": "l1"}, compressed={"default": 1.0, "macs": 1.0}).to_dict()
    annotations = document["metadata"]["annotations"]
    annotations[PARAMETERS_ANNOTATION] = '{"algorithm": "l1", "sparsity": [1], "epochs": Infinity, "no such!": 1}'
    best, front = strategy_for(spec).ranking([CompressionJob.model_validate(document)])
    assert best is not None
    assert best.parameters == {"algorithm": "l1"}
    assert front == [0]


@pytest.mark.parametrize("algorithm", ["random", "grid", "tpe"])
def test_two_processes_suggest_alike(make_sweep: MakeSweep, make_trial: MakeTrial, algorithm: str) -> None:
    """The same spec, history and trials, given as JSON in another order to a process with another hash seed."""
    spec = make_sweep(algorithm, objectives=("default", "macs"))
    trials = run(spec, make_trial, 20, parallelism=3)
    history = History(finished=tuple(range(17)), running=(17, 18, 19))
    program = """
import json, sys
from modelpress.api.v1alpha1 import CompressionJob, CompressionSweepSpec
from modelpress.search import strategy_for
from modelpress.trials import History
question = json.load(sys.stdin)
trials = {int(number): CompressionJob.model_validate(job) for number, job in question["trials"].items()}
strategy = strategy_for(CompressionSweepSpec.model_validate(question["spec"]))
history = History.decode(question["history"])
print(json.dumps([dict(strategy.suggest(number, history, trials).parameters) for number in (20, 21, 22)]))
"""
    question = {
        "spec": spec.to_dict(),
        "history": history.encode(),
        "trials": {number: job.to_dict() for number, job in reversed(trials.items())},
    }
    done = subprocess.run(
        [sys.executable, "-c", program],
        input=json.dumps(question),
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "99"},
    )
    strategy: Strategy = strategy_for(spec)
    assert json.loads(done.stdout) == [dict(strategy.suggest(n, history, trials).parameters) for n in (20, 21, 22)]


def test_optuna_loads_only_for_tpe() -> None:
    """Importing the search and using grid and random loads neither Optuna nor numpy."""
    program = """
import sys
import modelpress.search
from modelpress.search.samplers import create
from modelpress.api.search_space import Space
from modelpress.api.v1alpha1 import Parameter
space = Space([Parameter.model_validate({"name": "x", "paths": ["/x"], "int": {"min": 1, "max": 3}})])
for name in ("random", "grid"):
    assert create(name, space, ("maximize",), 0).sample(0, [])
assert not {"optuna", "numpy", "torch", "pytest"} & set(sys.modules)
create("tpe", space, ("maximize",), 0)
assert "optuna" in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)
