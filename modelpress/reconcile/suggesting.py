"""Suggestions of a search that imports torch: a short Job answers each question, one at a time.

A Job is named after its trial, and its answer repeats the history that it is based on. So all state is in the trials
and in Jobs that can be made again: the same question has the same answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from modelpress.api.v1alpha1 import CompressionJob
from modelpress.api.v1alpha1 import reasons as r
from modelpress.request import SuggestRequest
from modelpress.result import SuggestedPoint
from modelpress.trials import History, Question, Strategy, Suggestion

from . import naming
from .conditions import Verdict, cut, seconds, stamp
from .job_snapshot import MESSAGE_GRACE, WATCH_LAG
from .model import Action, CreateJob, DeleteJob, ObservedJob
from .pending_reason import pending_reason
from .requests import request_problem, sweep_request
from .sweep_snapshot import SweepSnapshot
from .termination import read_result, read_termination


@dataclass(frozen=True)
class Asked:
    """Where the question about a trial stands: answered, failed for good with a sentence, or neither.

    `round_`: of the Job that is made next, where neither and none is under way.
    """

    answer: SuggestedPoint | None = None
    failed: str | None = None
    waits_for: ObservedJob | None = None
    wait: float | None = None
    round_: int = 1


def asked(snapshot: SweepSnapshot, number: int) -> Asked:
    """What the Jobs that were asked about a trial say."""
    jobs = {child.name: child for child in snapshot.ours if child.purpose == "suggest"}
    spec = snapshot.sweep.spec.template.spec
    round_, failures = 1, 0
    while (child := jobs.get(naming.suggest_name(snapshot.sweep.metadata.name, number, round_))) is not None:
        if not child.terminal or child.deleting:
            return Asked(waits_for=child)
        result, end = read_result(child), read_termination(child, started=True)
        if result is not None and result.phase == "Succeeded":
            return Asked(answer=result.suggested)
        if result is None and child.finished_at is not None:
            late = MESSAGE_GRACE - seconds(stamp(child.finished_at), snapshot.now)
            if late > 0:
                return Asked(waits_for=child, wait=late)
        failures += end.outcome == "Failed"
        round_ += 1
        enough = failures > spec.backoff_limit or round_ > spec.backoff_limit + spec.max_disruptions + 1
        if end.outcome == "Invalid" or enough:
            return Asked(failed=cut(f"Nobody can say the parameters of trial {number}: {end.message}"))
    return Asked(round_=round_)


def suggest(
    snapshot: SweepSnapshot, strategy: Strategy, number: int, history: History, trials: Mapping[int, CompressionJob]
) -> Suggestion:
    """As the strategy's; its question is replaced by what follows from the answer, where there is one to it."""
    found = strategy.suggest(number, history, trials)
    if found.question is None:
        return found
    answer = asked(snapshot, number).answer
    if answer is None or answer.history != found.question.history:
        return found
    return strategy.answered(found.question, answer.values)


def answered_history(snapshot: SweepSnapshot, number: int) -> History | None:
    """The history that a trial's answer is based on; None: there is no answer."""
    answer = asked(snapshot, number).answer
    try:
        return None if answer is None else History.decode(answer.history)
    except ValueError:
        return None


def ask(snapshot: SweepSnapshot, number: int, question: Question) -> tuple[Verdict, list[Action], float | None]:
    """What a sweep says while a question is open, the Job to make, and when to look again."""
    stands = asked(snapshot, number)
    if stands.waits_for is not None:
        reason, text = pending_reason(f"The Job that is asked for trial {number}'s parameters", stands.waits_for)
        if stands.waits_for.state != "pending":
            text = f"Trial {number} waits for its parameters."
        return Verdict("Running", reason or r.SUGGESTION_PENDING, text), [], stands.wait
    name = naming.suggest_name(snapshot.sweep.metadata.name, number, stands.round_)
    other = snapshot.foreign.get(name)
    if other is not None and other.deleting:
        text = f"The Job {name} of a former owner is being deleted."
        return Verdict("Pending", r.PENDING, text, reconciling=True), [], WATCH_LAG
    if other is not None:
        text = f"The Job {name} belongs to somebody else; delete it, or give this sweep another name."
        return Verdict("Pending", r.NAME_CONFLICT, text, stalled=True), [], None
    about = SuggestRequest(**vars(question))
    request = sweep_request(snapshot.sweep, "suggest", stands.round_, suggest=about)
    why = request_problem(request)
    if why is not None:
        return Verdict("Pending", why[0], f"spec.template.{why[1]}", stalled=True), [], None
    create = CreateJob(name, "suggest", stands.round_, request)
    text = f"Trial {number} waits for its parameters."
    return Verdict("Running", r.SUGGESTION_PENDING, text), [create], WATCH_LAG


def settled(snapshot: SweepSnapshot) -> list[Action]:
    """Jobs that were asked for trials that are there by now go."""
    stem = f"{snapshot.sweep.metadata.name}-suggest-"
    done = [child for child in snapshot.ours if child.purpose == "suggest" and child.terminal and not child.deleting]
    out: list[Action] = []
    for child in done:
        number = child.name.removeprefix(stem).partition("-")[0]
        if number.isdigit() and int(number) in snapshot.trials:
            out.append(DeleteJob(child.name, child.uid))
    return out
