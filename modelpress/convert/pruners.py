"""Pruners of NNI, which Auptimizer's are, by class or key, with their arguments: prune stages."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from modelpress.api.v1alpha1 import algorithms
from modelpress.api.v1alpha1.base import plain

from .entries import prune_entries
from .notes import Field
from .scripts import ARGUMENTS, CALL, OF
from .spaces import Space

# What trains, scores and traces is the model's own affair here: its entrypoint gives it.
GIVEN = (
    *(
        CALL,
        ARGUMENTS,
        OF,
        "model",
        "config_list",
        "evaluator",
        "trainer",
        "traced_optimizer",
        "optimizer",
        "criterion",
    ),
    *(
        "max_steps",
        "max_epochs",
        "dummy_input",
        "finetuner",
        "short_term_fine_tuner",
        "val_func",
        "finetune_func",
        "evaluate_func",
    ),
)
_LEFT = {
    "dependency_aware": "channels that depend on each other go together by themselves when the model is shrunk",
    "dependency-aware": "channels that depend on each other go together by themselves when the model is shrunk",
    "balance_gran": "a balanced pattern is written as pattern: N:M, which keeps N of every M weights",
    "existed": "masks of an earlier pruning stay in force by themselves",
    "activation": "activations are looked at behind the ReLU that follows",
    "log_dir": "results lie in the store",
    "keep_intermediate_result": "checkpoints are kept by themselves",
    "speedup": "the model is shrunk behind the last round; masks hold until then",
    "reset_optimizer": "optimizers are made anew for every training",
}
# Schedules and searches that NNI has as pruners around another one.
AROUND = {
    "agp": "agp",
    "linear": "linear",
    "lotteryticket": "lottery",
    "admm": "admm",
    "simulatedannealing": "annealing",
    "sensitivity": "sensitivity",
    "netadapt": "net_adapt",
    "autocompress": "auto_compress",
    "amc": "amc",
}
# NNI's default, where its argument is left out.
_BASES = {"net_adapt": "l1", "auto_compress": "l1", "amc": "l1"}
_STEPS = ("training_steps", "training_batches", "sparsifying_training_batches", "statistics_batch_num")
_DEFAULT_SCORE_STEPS = 10


def known(name: str) -> bool:
    """Whether it is the name of a pruner, in any spelling."""
    return any(word in {**AROUND, **_names()} for word in _words(name))


def _names() -> dict[str, str]:
    rows = algorithms.algorithms("prune")
    return {plain(alias): row.name for row in rows for alias in (row.name, *row.aliases)}


def _words(name: str) -> list[str]:
    """What a name may be called: L1FilterPruner, l1_filter, L1NormPruner, l1."""
    word = plain(name.rpartition(".")[2])
    bare = word.removesuffix("pruner")
    return [word, bare, bare.removesuffix("filter"), bare.removesuffix("norm")]


def algorithm_of(name: Field | None, default: str = "l1") -> str:
    """The algorithm that a pruner's name stands for; the default, and a problem, if it is none."""
    if name is None:
        return default
    text = name.text() or ""
    found = next((_names()[word] for word in _words(text) if word in _names()), None)
    if found is None and text:
        listed = ", ".join(algorithms.names("prune"))
        name.wrong(f"there is no counterpart to the pruner {text}", f"write another one; there are {listed}")
    return found or default


def prune_stages(
    name: Field, entries: Sequence[Field], given: Field, space: Space, number: int, *, in_loop: bool = False
) -> list[dict[str, Any]]:
    """The stages that a pruner becomes; none, and a problem, where it has no counterpart.

    Args:
        name: of the pruner.
        entries: of its config list.
        given: its arguments, as a mapping.
        number: of the first stage.
        in_loop: a script trains in a loop of its own, which the stage goes along with.
    """
    words = _words(name.text() or "")
    around = next((AROUND[word] for word in words if word in AROUND), None)
    if around is not None:
        base = given.take("pruning_algorithm", "base_algo", "base_algorithm")
        inner = given.take("pruner")
        usual = _BASES.get(around, "level")
        algorithm = usual if base is None and inner is None else algorithm_of(base or _name_of(inner), usual)
        if base is None and inner is None:
            name.say("changed", f"{name.data} scores by {usual}, as it does where nothing else is said")
    else:
        algorithm = algorithm_of(name)
    row = algorithms.algorithm("prune", algorithm)
    if around is None and algorithm != name.data:
        name.say("translated", f"{name.data} is algorithm: {algorithm}")
    pointer = f"/stages/{number}/prune"
    block: dict[str, Any] = {"algorithm": algorithm}
    block["configList"] = prune_entries(entries, space, f"{pointer}/configList", not row.structured)
    if (mode := given.take("mode")) is not None and mode.data in ("global", "dependency_aware"):
        if mode.data == "global":
            block["scope"] = "global"
        else:
            mode.say("missing", _LEFT["dependency_aware"])
    steps = given.take(*_STEPS)
    if row.data_driven:
        if steps is not None and (count := steps.whole(1)) is not None:
            block["scores"] = {"steps": count}
        if in_loop:
            wait = block.get("scores", {}).get("steps", _DEFAULT_SCORE_STEPS)
            block["schedule"] = {"startStep": wait}
            name.say("changed", f"scores are those of the first {wait} steps of the script's training; then it prunes")
    if row.name == "slim":
        block["scope"] = "global"
        block["sparsify"] = _slim(given, steps, in_loop)
        name.say("changed", "the channels of all layers are ranked together, and are removed, not only masked")
    elif row.name == "movement" and around is None:
        return [_movement(block, given, steps)]
    elif around is not None:
        _around(around, block, entries, given, name)
    if row.structured:
        name.say(
            "translated", "the model is shrunk behind it, as NNI's speed-up does; shrink: false leaves masks alone"
        )
    else:
        block["shrink"] = False
    given.leave(_LEFT, GIVEN)
    return [{"prune": block}]


def _name_of(inner: Field | None) -> Field | None:
    """The name of a pruner that is an argument of another."""
    if inner is None or not isinstance(inner.data, dict):
        return inner
    return inner.take(CALL)


def _slim(given: Field, steps: Field | None, in_loop: bool) -> dict[str, Any]:
    out: dict[str, Any] = {"penalty": "l1"}
    strength = given.take("regular_scale", "scale")
    if strength is not None and (value := strength.number(0)) is not None:
        out["strength"] = value
    epochs = given.take("sparsifying_training_epochs", "training_epochs")
    if in_loop:
        return out
    if steps is not None and (count := steps.whole(1)) is not None:
        out["maxSteps"] = count
    elif epochs is not None and (count := epochs.whole(1)) is not None:
        out["epochs"] = count
    else:
        out["epochs"] = 10
        given.say("todo", "how long slim trains with its penalty; 10 epochs were taken, as NNI does")
    return out


def _movement(block: dict[str, Any], given: Field, steps: Field | None) -> dict[str, Any]:
    begin = given.take("warmup_step", "warm_up_step")
    end = given.take("cooldown_begin_step", "cool_down_beginning_step")
    start = (begin.whole() if begin is not None else None) or 1
    last = end.whole(1) if end is not None else None
    length: dict[str, Any] = {}
    if steps is not None and (count := steps.whole(1)) is not None:
        length = {"maxSteps": count}
    elif (epochs := given.take("training_epochs")) is not None and (count := epochs.whole(1)) is not None:
        length = {"epochs": count}
    if not length:
        length = {"epochs": 3}
        given.say("todo", "how long the model trains while it is pruned; 3 epochs were taken")
    block["shrink"] = False
    if last is not None and last > start:
        block["schedule"] = {"type": "agp", "startStep": start, "endStep": last}
    else:
        block["schedule"] = {"startStep": start}
    strength = given.take("regular_scale")
    if strength is not None:
        strength.say("missing", "movement scores by what training does to the weights, without a penalty")
    given.leave(_LEFT, GIVEN)
    return {"together": {**length, "of": [{"prune": block}]}}


def _around(kind: str, block: dict[str, Any], entries: Sequence[Field], given: Field, name: Field) -> None:
    if kind in ("agp", "linear"):
        block["schedule"] = {"type": kind, **_rounds(entries, given, name)}
    elif kind == "lottery":
        rounds = given.take("total_iteration", "prune_iterations") or _of_entries(entries, "prune_iterations")
        count = (rounds.whole(1) if rounds is not None else None) or 5
        reset = given.take("reset_weight", "reset_weights")
        schedule: dict[str, Any] = {"type": "exp", "rounds": max(2, count), "train": {"epochs": 1}}
        if reset is None or reset.boolean():
            schedule["rewindTo"] = 0
        name.say("todo", "how long each round trains; 1 epoch was taken")
        block["schedule"] = schedule
    elif kind == "admm":
        block["sparsify"] = _admm(given, entries, name)
    elif kind == "amc":
        _amc(block, given, name)
    else:
        block["search"] = _search({"annealing": "simulated_annealing"}.get(kind, kind), given)
        if kind == "net_adapt":
            each = given.take("sparsity_per_iteration")
            if each is not None and (share := each.number(0, 1, below=True)) is not None:
                block["search"]["sparsityPerStep"] = share
            block["search"]["train"] = {"epochs": 1}
            name.say("todo", "how long each try trains before it is scored; 1 epoch was taken")
        elif kind == "auto_compress":
            rounds = given.take("total_iteration", "num_iterations")
            annealing, admm = given.take("sa_params"), given.take("admm_params")
            if annealing is not None:
                block["search"] |= _search(kind, annealing)
                annealing.leave(_LEFT, GIVEN)
            block["sparsify"] = _admm(admm or given, entries, name)
            if admm is not None:
                admm.leave(_LEFT, GIVEN)
            count = (rounds.whole(1) if rounds is not None else None) or 3
            if count > 1:
                block["schedule"] = {"type": "exp", "rounds": count}


def _search(kind: str, given: Field) -> dict[str, Any]:
    """A search with what is said of annealing and of the goal."""
    search: dict[str, Any] = {"type": kind}
    for theirs, ours in (
        ("start_temperature", "startTemperature"),
        ("stop_temperature", "stopTemperature"),
        ("cool_down_rate", "coolDownRate"),
        ("perturbation_magnitude", "perturbation"),
    ):
        if (field := given.take(theirs)) is not None and (value := field.number(0)) is not None:
            search[ours] = value
    if (mode := given.take("optimize_mode")) is not None and mode.data == "minimize":
        mode.say("todo", "that less is better is said under metrics: {default: {goal: minimize}}")
    return search


def _admm(given: Field, entries: Sequence[Field], name: Field) -> dict[str, Any]:
    """Training with ADMM's penalty."""
    iterations = given.take("iterations", "num_iterations", "admm_num_iterations")
    epochs = given.take("training_epochs", "epochs_per_iteration", "admm_training_epochs", "admm_epochs_per_iteration")
    counts = [field.whole(1) if field is not None else None for field in (iterations, epochs)]
    sparsify: dict[str, Any] = {"penalty": "admm", "epochs": (counts[0] or 30) * (counts[1] or 5)}
    rho = given.take("rho", "row") or _of_entries(entries, "rho")
    if rho is not None and (value := rho.number(0)) is not None:
        sparsify["strength"] = value
    (iterations or name).say("changed", "its iterations are one training; it projects every 100 steps")
    return sparsify


def _amc(block: dict[str, Any], given: Field, name: Field) -> None:
    """A budget in place of a policy that learns over episodes; a layer loses .8 at most, as the paper has it."""
    shares = []
    for entry in block["configList"]:
        entry.pop("scope", None)
        if isinstance(share := entry.pop("sparsity", None), float | int):
            shares.append(share)
        if not entry.get("exclude"):
            entry.setdefault("maxSparsity", 0.8)
    target = given.take("target", "target_type")
    metric = "parameters" if target is not None and target.data == "params" else "macs"
    block["budget"] = {"metric": metric, "maxRatio": round(1 - max(shares, default=0.5), 6)}
    budget = f"budget: {{metric: {metric}, maxRatio: {block['budget']['maxRatio']:g}}}"
    name.say("changed", f"{name.data} is {budget}, which goes by scores of channels; nothing learns from accuracies")
    if not shares:
        name.say("todo", "how much is left; half was taken")
    given.take("total_episode", "train_episode", "ddpg_params")


def _of_entries(entries: Sequence[Field], key: str) -> Field | None:
    return next((value for entry in entries if (value := entry.take(key)) is not None), None)


def _rounds(entries: Sequence[Field], given: Field, name: Field) -> dict[str, Any]:
    """Rounds and the training after each, of version 1 in epochs, of version 2 in iterations, of version 3 in steps."""
    out: dict[str, Any] = {}
    initial = _of_entries(entries, "initial_sparsity")
    if initial is not None and (share := initial.number(0, 1, below=True)):
        out["initialSparsity"] = share
    times, steps = given.take("total_times", "total_iteration", "num_iterations"), given.take("interval_steps")
    start, end = _of_entries(entries, "start_epoch"), _of_entries(entries, "end_epoch")
    every = _of_entries(entries, "frequency")
    if end is not None and times is None:
        first, last = (start.whole() if start is not None else 0) or 0, end.whole(1) or 1
        frequency = (every.whole(1) if every is not None else 1) or 1
        out["rounds"] = max(1, math.ceil((last - first) / frequency))
        out["train"] = {"epochs": frequency}
        end.say("translated", f"epochs {first} to {last} became {out['rounds']} rounds with training between them")
        if first:
            end.say("todo", f"the {first} epochs before the first pruning; put a finetune stage before it")
        return out
    count = (times.whole(1) if times is not None else None) or 10
    if times is None:
        name.say("todo", "how many rounds there are; 10 were taken")
    out["rounds"] = count
    if steps is not None and (length := steps.whole(1)) is not None:
        out["train"] = {"maxSteps": length}
    else:
        out["train"] = {"epochs": 1}
        name.say("todo", "how long each round trains; 1 epoch was taken")
    return out
