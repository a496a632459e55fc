"""The prune stage: what can be wrong with its entries, schedules and algorithms."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from typing import Any

from modelpress.api.errors import Problem
from modelpress.api.messages import in_words
from modelpress.api.v1alpha1 import ConfigEntry, EntrySchedule, Prune, algorithms

from .base import StageRules
from .selectors import regex_error, selector_problems


class PruneRules(StageRules[Prune]):
    """Removes weights or channels."""

    name = "prune"
    block = Prune
    runner = "modelpress_runner.stages.prune:KIND"
    goes_along = True

    def problems(self, block: Prune, path: str) -> Iterator[Problem]:
        """Entries, schedules and algorithms that do not go together."""
        if block.budgets is not None:
            yield from _sizes_problems(block, path)
            block = block.model_copy(update={"budget": block.budgets[0]}) if block.budget is None else block
        yield from _prune_problems(block, path)
        yield from _sparsify_problems(block, path)
        yield from _search_problems(block, path)
        if block.schedule.rewind_to is not None and block.schedule.train is None:
            message = "there is no training that weights could go back from"
            yield Problem(f"{path}.schedule.rewindTo", message, "add train to the schedule, or remove it")

    def problems_along(self, block: Prune, path: str) -> Iterator[Problem]:
        """Schedules must count steps, and nothing is trained between rounds."""
        yield from _collecting(block, path)
        for schedule, where in _schedules(block, path):
            yield from _by_steps(schedule, where)
        if block.schedule.train is not None:
            message = "the training that it goes along with has no rounds, so there is nothing to train between them"
            yield Problem(f"{path}.schedule.train", message, "remove it")
        if block.budget is not None:
            message = "a budget is solved before the first round, and here pruning goes by steps"
            yield Problem(f"{path}.budget", message, "give sparsities, or prune in a stage of its own")
        if block.budgets is not None:
            message = "here the model is pruned once, in the course of a training"
            yield Problem(f"{path}.budgets", message, "give sparsities, or prune in a stage of its own")
        if block.search is not None:
            message = "the training that it goes along with changes the weights that a search would put back"
            yield Problem(f"{path}.search", message, "remove it, or prune in a stage of its own")
        for name, alias in (("epochs", "epochs"), ("max_steps", "maxSteps")):
            if block.sparsify is not None and getattr(block.sparsify, name) is not None:
                message = "the training that it goes along with says how long; the term lasts until the schedule ends"
                yield Problem(f"{path}.sparsify.{alias}", message, "remove it")
        if block.reconstruct != "none":
            message = f"{block.reconstruct} would be trained over: the training that it goes along with recovers"
            yield Problem(f"{path}.reconstruct", message, "remove it, or prune in a stage of its own")

    def problems_outside(self, block: Prune, path: str) -> Iterator[Problem]:
        """Schedules must count rounds, and what trains by itself says how long."""
        if block.sparsify is not None and block.sparsify.epochs is None and block.sparsify.max_steps is None:
            yield Problem(f"{path}.sparsify", "nothing says how long to train", "add epochs or maxSteps")
        for schedule, where in _schedules(block, path):
            yield from _outside(schedule, where)

    def training(self, block: Prune) -> Iterator[str]:
        """Training between rounds."""
        if block.sparsify is not None:
            yield ".sparsify"
        if block.schedule.train is not None:
            yield ".schedule.train"
        if block.search is not None and block.search.train is not None:
            yield ".search.train"

    def shrinking(self, block: Prune) -> Iterator[str]:
        """The speed-up."""
        if block.shrink:
            yield ".shrink"

    def sentence(self, block: Mapping[str, Any]) -> str:
        """By which algorithm, to which sparsities."""
        shares = {entry.get("sparsity", block.get("sparsity")) for entry in block.get("configList", [])} - {None}
        after = block.get("reconstruct", "none")
        recovered = f" and reconstructed ({after})" if after != "none" else ""
        amount = f" to {', '.join(f'{share:.0%}' for share in sorted(shares))} sparsity" if shares else ""
        patterns = dict.fromkeys(entry.get("pattern", block.get("pattern")) for entry in block.get("configList", []))
        if sizes := block.get("budgets"):
            return f"pruned with {block.get('algorithm', 'l1')} to {len(sizes)} sizes{recovered}"
        if budget := block.get("budget"):
            share = budget.get("maxRatio")
            amount = f" to {'' if share is None else f'{share:.0%} of its '}{budget['metric']}"
            amount += f" {budget['max']:g}" if share is None else ""
        if listed := [pattern for pattern in patterns if pattern]:
            amount += f" in blocks of {in_words(listed)}"
        return f"pruned with {block.get('algorithm', 'l1')}{amount}{recovered}"


def _prune_problems(prune: Prune, path: str) -> Iterator[Problem]:
    entries = [(index, entry) for index, entry in enumerate(prune.config_list) if not entry.exclude]
    for index, entry in enumerate(prune.config_list):
        yield from selector_problems(entry, f"{path}.configList[{index}]")
    if not entries:
        yield Problem(
            f"{path}.configList", "every entry excludes, so nothing is pruned", "add an entry with a sparsity"
        )
        return
    for index, entry in entries:
        where = f"{path}.configList[{index}]"
        if not any(_says_how_much(other) for _, other in entries if _may_overlap(entry, other)) and (
            not _says_how_much(prune) and prune.budget is None
        ):
            yield Problem(f"{where}.sparsity", "nothing says how much to prune", "add sparsity here or to prune")
        yield from _amount_problems(prune, entry, where, path)
        yield from _pattern_problems(prune, entry, where, path)
        yield from _schedule_problems(prune, entry, where, path)
    used = {entry.algorithm or prune.algorithm for _, entry in entries}
    known, listed = algorithms.algorithms("prune"), ", ".join(sorted(used))
    if prune.scores is not None and not any(row.data_driven for row in known if row.name in used):
        message = f"{listed} needs no data, so there are no scores to collect"
        others = in_words(row.name for row in known if row.data_driven)
        yield Problem(f"{path}.scores", message, f"remove it, or use {others}")
    units = any(_removes_units(prune, entry) for _, entry in entries)
    others = in_words(row.name for row in known if row.structured)
    if prune.reconstruct != "none" and prune.schedule.rewind_to is not None:
        message = "weights are put back behind each round, so nothing that comes back would stay"
        yield Problem(f"{path}.reconstruct", message, "remove it, or rewindTo")
    if prune.budget is not None:
        yield from _budget_problems(prune, entries, path)
    if prune.reconstruct == "leastSquares" and not units:
        message = f"it refits layers that lost whole inputs, and {listed} removes single weights"
        yield Problem(f"{path}.reconstruct", message, "write bias or auto")
    if prune.shrink and not units:
        message = f"{listed} removes single weights, which leaves nothing to shrink"
        yield Problem(f"{path}.shrink", message, f"write 'shrink: false', or use {others}")
    if prune.round_to is not None and not units:
        message = f"{listed} removes single weights, so there are no channels to count"
        yield Problem(f"{path}.roundTo", message, f"remove it, or use {others}")


def _sizes_problems(prune: Prune, path: str) -> Iterator[Problem]:
    """They stand in place of one budget, are of one kind, and fall."""
    assert prune.budgets is not None
    if prune.budget is not None:
        yield Problem(f"{path}.budgets", "budget and budgets are two ways to say how much", "remove one of them")
    for index, (one, other) in enumerate(itertools.pairwise(prune.budgets), 1):
        where = f"{path}.budgets[{index}]"
        if (one.metric, one.max is None) != (other.metric, other.max is None):
            message = "sizes that are cut from each other are measured alike"
            yield Problem(where, message, f"give a {'maxRatio' if one.max is None else 'max'} of {one.metric}")
        elif (other.max_ratio or other.max or 0.0) >= (one.max_ratio or one.max or 0.0):
            message = f"it is not below budgets[{index - 1}]"
            yield Problem(where, message, "name the largest first, and each once")


def _budget_problems(prune: Prune, entries: list[tuple[int, ConfigEntry]], path: str) -> Iterator[Problem]:
    """A budget is what says how much goes, and only what is cut away costs less."""
    blocks: list[tuple[ConfigEntry | Prune, str]] = [(prune, path)]
    blocks += [(entry, f"{path}.configList[{index}]") for index, entry in entries]
    for block, where in blocks:
        for name, alias in (("sparsity", "sparsity"), ("sparsity_threshold", "sparsityThreshold")):
            if getattr(block, name) is not None:
                message = "the budget says how much goes"
                yield Problem(f"{where}.{alias}", message, "remove it, or the budget; maxSparsity bounds a layer")
        if block.schedule is not None and block.schedule.initial_sparsity > 0:
            message = "the budget says how much goes, so a round cannot begin with a sparsity"
            yield Problem(f"{where}.schedule.initialSparsity", message, "remove it")
    for index, entry in entries:
        row = _row(prune, entry)
        if not _removes_units(prune, entry) or row.threshold is not None:
            why = "says itself what goes" if row.threshold is not None else "removes single weights"
            message = f"{row.name} {why}, and a budget is met by channels that are cut away"
            others = in_words(other.name for other in algorithms.algorithms("prune") if other.structured)
            place = path if entry.algorithm is None else f"{path}.configList[{index}]"
            yield Problem(f"{place}.algorithm", message, f"use {others}")
    if prune.sparsify is not None and prune.sparsify.penalty == "admm":
        message = "admm projects to sparsities, and the budget's are not known before"
        yield Problem(f"{path}.sparsify.penalty", message, "take another penalty, or give sparsities")
    if prune.search is not None:
        yield Problem(
            f"{path}.search", "it shares out a sparsity, and the budget shares out itself", "remove one of both"
        )
    if not prune.shrink:
        yield Problem(f"{path}.shrink", "masks alone cost what they cost before", "remove it, or give sparsities")


def _search_problems(prune: Prune, path: str) -> Iterator[Problem]:
    if prune.search is None:
        return
    search, both = prune.search, prune.search.type == "auto_compress"
    if (prune.schedule.rounds != 1 and not both) or prune.schedule.rewind_to is not None:
        name = "rewindTo" if prune.schedule.rewind_to is not None else "rounds"
        message = "a search tries whole sparsities, so there is one round"
        yield Problem(f"{path}.schedule.{name}", message, "remove it, or put a stage with a schedule behind this one")
    if both and (prune.sparsify is None or prune.sparsify.penalty != "admm"):
        where = f"{path}.sparsify" if prune.sparsify is None else f"{path}.sparsify.penalty"
        message = f"{search.type} trains towards what it found before it prunes"
        yield Problem(where, message, "write sparsify: {penalty: admm, epochs: 3}, or set type to simulated_annealing")
    if prune.sparsify is not None and not both:
        message = "what is driven towards zero is what the sparsity would take, and the search takes something else"
        yield Problem(f"{path}.sparsify", message, "remove it, or the search")
    if prune.scope == "global":
        message = "a global ranking shares out the sparsity itself, and here the search does"
        yield Problem(f"{path}.scope", message, "remove it, or the search")
    for index, entry in enumerate(prune.config_list):
        if entry.exclude:
            continue
        threshold = entry.sparsity_threshold
        if entry.sparsity is None and threshold is None:
            threshold = prune.sparsity_threshold if prune.sparsity is None else None
        if threshold is not None or _row(prune, entry).threshold is not None:
            message = "a search needs a sparsity to reach, and here a threshold says what goes"
            yield Problem(f"{path}.configList[{index}]", message, "give a sparsity")
    if search.sparsities is not None and search.type != "sensitivity":
        yield Problem(f"{path}.search.sparsities", f"{search.type} takes any", "remove it")
    if search.train is not None and search.type != "net_adapt":
        message = f"{search.type} scores the model as it was pruned"
        yield Problem(f"{path}.search.train", message, "remove it, or set type to net_adapt")
    if search.stop_temperature > search.start_temperature:
        message = f"{search.stop_temperature:g} is above startTemperature"
        yield Problem(f"{path}.search.stopTemperature", message, "lower it")


def _sparsify_problems(prune: Prune, path: str) -> Iterator[Problem]:
    if prune.sparsify is None:
        return
    admm = prune.sparsify.penalty == "admm"
    if not admm and prune.sparsify.frequency is not None:
        message = f"{prune.sparsify.penalty} projects nothing"
        yield Problem(f"{path}.sparsify.frequency", message, "remove it, or set penalty to admm")
    rows = [_row(prune, entry) for entry in prune.config_list if not entry.exclude]
    looking = next((row for row in rows if row.data_driven), None)
    if admm and looking is not None:
        message = f"admm projects by weights, and {looking.name} scores by {looking.data}"
        yield Problem(f"{path}.sparsify.penalty", message, "take an algorithm that looks at weights, such as l1")


def kept_of(pattern: str) -> tuple[int, int] | None:
    """N and M of a pattern N:M, which keeps N of every M; None: it is none."""
    kept, colon, of = pattern.partition(":")
    return (int(kept), int(of)) if colon else None


def _row(prune: Prune, entry: ConfigEntry) -> algorithms.Algorithm:
    return algorithms.algorithm("prune", entry.algorithm or prune.algorithm)


def _removes_units(prune: Prune, entry: ConfigEntry) -> bool:
    return _row(prune, entry).structured or (entry.pattern or prune.pattern) == "1xchannel"


def _says_how_much(block: ConfigEntry | Prune) -> bool:
    by_itself = block.algorithm is not None and (algorithms.algorithm("prune", block.algorithm).threshold is not None)
    n_of_m = block.pattern is not None and kept_of(block.pattern) is not None
    return by_itself or n_of_m or block.sparsity is not None or block.sparsity_threshold is not None


def _amount_problems(prune: Prune, entry: ConfigEntry, where: str, path: str) -> Iterator[Problem]:
    row = _row(prune, entry)
    for name, alias in (("sparsity", "sparsity"), ("sparsity_threshold", "sparsityThreshold")):
        if row.threshold is not None and getattr(entry, name) is not None:
            yield Problem(f"{where}.{alias}", f"{row.name} says itself what goes", "remove it")
    threshold = entry.sparsity_threshold if entry.sparsity is None else None
    if threshold is None and entry.sparsity is None:
        threshold = prune.sparsity_threshold
    schedule, at = (entry.schedule, f"{where}.schedule") if entry.schedule else (prune.schedule, f"{path}.schedule")
    if (threshold is not None or row.threshold is not None) and not algorithms.schedule(schedule.type).at_once:
        at_once = in_words(other.name for other in algorithms.schedules() if other.at_once)
        message = f"{schedule.type} goes to a sparsity, and here a threshold says what goes"
        yield Problem(f"{at}.type", message, f"write {at_once}, or a sparsity")
    least, most = (
        next((value for value in (getattr(entry, name), getattr(prune, name)) if value is not None), default)
        for name, default in (("min_sparsity", 0.0), ("max_sparsity", 1.0))
    )
    if least > most:
        message = f"minSparsity {least:g} is above maxSparsity {most:g}"
        place = where if entry.min_sparsity is not None else path
        yield Problem(f"{place}.minSparsity", message, f"give at most {most:g}")
    if entry.global_group is not None and (entry.scope or prune.scope) != "global":
        message = "modules of a group are ranked together, and here each is ranked alone"
        yield Problem(f"{where}.globalGroup", message, "write 'scope: global', or remove it")
    if entry.round_to is not None and not _removes_units(prune, entry):
        message = f"{row.name} removes single weights, so there are no channels to count"
        yield Problem(f"{where}.roundTo", message, "remove it")


def _pattern_problems(prune: Prune, entry: ConfigEntry, where: str, path: str) -> Iterator[Problem]:
    pattern, at = (entry.pattern, where) if entry.pattern is not None else (prune.pattern, path)
    if pattern is None:
        return
    row = _row(prune, entry)
    if row.structured and pattern != "1xchannel":
        if at == where or not any(other.algorithm for other in prune.config_list):
            message = f"{row.name} scores output channels, which {pattern} would divide"
            weights = in_words(other.name for other in algorithms.algorithms("prune") if not other.structured)
            yield Problem(f"{at}.pattern", message, f"remove it, or use {weights}")
        return
    if (numbers := kept_of(pattern)) is not None:
        kept, of = numbers
        sparsity = entry.sparsity if entry.sparsity is not None else prune.sparsity
        if kept >= of:
            yield Problem(f"{at}.pattern", f"{pattern} keeps everything: it is N of every M", "write N below M, as 2:4")
        elif sparsity is not None and sparsity > 1 - kept / of + 1e-9:
            message = f"{pattern} removes {1 - kept / of:g} at most"
            yield Problem(f"{where if entry.sparsity is not None else path}.sparsity", message, "lower or remove it")


def _schedule_problems(prune: Prune, entry: ConfigEntry, where: str, path: str) -> Iterator[Problem]:
    schedule, at = (entry.schedule, f"{where}.schedule") if entry.schedule else (prune.schedule, f"{path}.schedule")
    if entry.schedule and entry.schedule.rounds > prune.schedule.rounds:
        message = f"takes {entry.schedule.rounds} rounds, but the stage has {prune.schedule.rounds}"
        fix = f"set prune.schedule.rounds to {entry.schedule.rounds}"
        if algorithms.schedule(prune.schedule.type).at_once:
            fix += f" and its type to {in_words(algorithms.gradual())}"
        yield Problem(f"{at}.rounds", message, fix)
    sparsity = entry.sparsity if entry.sparsity is not None else prune.sparsity
    if algorithms.schedule(schedule.type).at_once:
        if schedule.initial_sparsity > 0:
            message = f"{schedule.type} prunes at once, so there is no initial sparsity"
            fix = f"set type to {in_words(algorithms.gradual())}, or remove it"
            yield Problem(f"{at}.initialSparsity", message, fix)
    elif sparsity is not None and schedule.initial_sparsity > sparsity:
        message = f"{schedule.initial_sparsity:g} is above the sparsity to reach, {sparsity:g}"
        yield Problem(f"{at}.initialSparsity", message, f"give at most {sparsity:g}")


def _may_overlap(one: ConfigEntry, other: ConfigEntry) -> bool:
    """Whether a module could be selected by both, as far as can be said without the model."""
    if one is other:
        return True
    types, other_types = set(one.op_types or ()), set(other.op_types or ())
    if types and other_types and "default" not in types | other_types and not types & other_types:
        return False
    if one.op_names is None or other.op_names is None:
        return True
    return (
        any(_selects(other, name) for name in one.op_names)
        or any(_selects(one, name) for name in other.op_names)
        or (one.op_names_re is not None and other.op_names_re is not None)
    )


def _selects(entry: ConfigEntry, name: str) -> bool:
    patterns = [pattern for pattern in entry.op_names_re or () if not regex_error(pattern)]
    return name in (entry.op_names or ()) or any(re.fullmatch(pattern, name) for pattern in patterns)


def _collecting(prune: Prune, path: str) -> Iterator[Problem]:
    """What scores by training steps cannot prune before the first of them."""
    for index, entry in enumerate(prune.config_list):
        row = algorithms.algorithm("prune", entry.algorithm or prune.algorithm)
        schedule, where = (
            (entry.schedule, f"{path}.configList[{index}].schedule")
            if entry.schedule is not None
            else (prune.schedule, f"{path}.schedule")
        )
        at_once = algorithms.schedule(schedule.type).at_once or schedule.initial_sparsity > 0
        if not entry.exclude and row.data_driven and at_once and not schedule.start_step:
            message = f"{row.name} scores by the {row.data} of training steps, and at step 0 there were none"
            yield Problem(f"{where}.startStep", message, "give the number of optimizer steps to wait for, such as 10")


def _schedules(prune: Prune, path: str) -> Iterator[tuple[EntrySchedule, str]]:
    yield prune.schedule, f"{path}.schedule"
    for index, entry in enumerate(prune.config_list):
        if entry.schedule is not None:
            yield entry.schedule, f"{path}.configList[{index}].schedule"


def _outside(schedule: EntrySchedule, path: str) -> Iterator[Problem]:
    for name, alias in (("start_step", "startStep"), ("end_step", "endStep"), ("frequency", "frequency")):
        if getattr(schedule, name) is not None:
            message = f"{alias} counts the steps of a training that the stage goes along with, and here there is none"
            fix = "use rounds, put the stage into a together, or give a loop of your own as model.script"
            yield Problem(f"{path}.{alias}", message, fix)
    if schedule.progressive_steps != 1:
        message = "between two prunings there are steps only in the course of a training, and here there is none"
        yield Problem(f"{path}.progressiveSteps", message, "remove it, or put the stage into a together")


def _by_steps(schedule: EntrySchedule, path: str) -> Iterator[Problem]:
    start, end = schedule.start_step or 0, schedule.end_step
    if schedule.rounds != 1:
        message = "the training that it goes along with has steps, not rounds"
        yield Problem(f"{path}.rounds", message, "remove it, and give startStep, endStep and frequency")
    if algorithms.schedule(schedule.type).at_once:
        fix = f"remove it, or set type to {in_words(algorithms.gradual())}"
        if end is not None and end != start:
            message = f"{schedule.type} reaches its target at startStep ({start}), not at {end}"
            yield Problem(f"{path}.endStep", message, fix)
        if schedule.frequency is not None:
            yield Problem(f"{path}.frequency", f"{schedule.type} prunes once", fix)
        if schedule.progressive_steps != 1:
            yield Problem(f"{path}.progressiveSteps", f"{schedule.type} prunes once", fix)
    elif end is None:
        message = f"{schedule.type} needs the step at which the target is reached"
        yield Problem(f"{path}.endStep", message, "give the number of optimizer steps done by then")
    elif end <= start:
        message = f"{end} is not behind startStep ({start})"
        at_once = [row.name for row in algorithms.schedules() if row.at_once]
        yield Problem(f"{path}.endStep", message, f"raise it, or set type to {in_words(at_once)}")
    if not algorithms.schedule(schedule.type).at_once and schedule.progressive_steps > (schedule.frequency or 1):
        between = schedule.frequency or 1
        message = f"{schedule.progressive_steps} parts are more than the {between} steps between two prunings"
        yield Problem(f"{path}.progressiveSteps", message, "lower it, or raise frequency")
