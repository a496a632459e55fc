"""From the cache to what the reconcile core observes of one object."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from pydantic import ValidationError

from modelpress.api.errors import Problem, SpecError, located_problems
from modelpress.api.json_numbers import to_json_numbers
from modelpress.api.v1alpha1 import CompressionJob, CompressionSweep, TrialRecord
from modelpress.api.v1alpha1 import reasons as r
from modelpress.reconcile import JobObserved, ObservedJob, OwnerState, SweepObserved, naming
from modelpress.reconcile.attempts import COLLECT_ROUNDS

from .cache import Cache
from .compact import UNREAD
from .failed_create import FailedCreateEvents
from .finished import finished_trial, has_records, is_finished, is_summarized, unread_trial
from .observe import LOST_SECONDS, missing_pods, observed_job, recheck_after
from .resources import (
    COMPRESSION_JOBS,
    COMPRESSION_SWEEPS,
    JOBS,
    PODS,
    RawObject,
    controller_of,
    meta_of,
)

T = TypeVar("T", CompressionJob, CompressionSweep)


@dataclass(frozen=True)
class Problems:
    """What is wrong with a specification, and what kind of wrong: InvalidSpec, NotOnCluster or SpecTooLarge."""

    texts: tuple[str, ...] = ()
    reason: str = r.INVALID_SPEC

    @classmethod
    def of(cls, found: Iterable[Problem]) -> Problems:
        """One reason for all: a specification that is wrong anywhere is called so first."""
        problems = list(found)
        elsewhere = problems and all(problem.reason == r.NOT_ON_CLUSTER for problem in problems)
        return cls(tuple(str(problem) for problem in problems), r.NOT_ON_CLUSTER if elsewhere else r.INVALID_SPEC)

    def also(self, text: str, reason: str) -> Problems:
        """With one more, found later."""
        return Problems((*self.texts, text), reason)


class Snapshots:
    """Typed views of the cache. Each object is parsed once per version: the search recognises trials by identity.

    A finished job is parsed when it is looked at, and kept only as its sweep sees it.
    """

    def __init__(
        self,
        cache: Cache,
        failed_creates: FailedCreateEvents,
        lost_after: float = LOST_SECONDS,
        made: Mapping[str, TrialRecord] | None = None,
    ) -> None:
        self._cache = cache
        self._made = made if made is not None else {}
        self._lost_after = lost_after
        self._failed_creates = failed_creates
        self._jobs: dict[str, tuple[str, CompressionJob]] = {}
        self._sweeps: dict[str, tuple[str, CompressionSweep]] = {}

    def job(self, raw: RawObject) -> CompressionJob:
        """The typed CompressionJob.

        Raises:
            SpecError: this version of modelpress does not understand it.
        """
        job = _parsed(raw, CompressionJob, {} if is_finished(raw) else self._jobs)
        record = self._made.get(job.metadata.uid or "")
        if record is None or job.status.trial is not None:
            return job
        job = job.model_copy(update={"status": job.status.model_copy(update={"trial": record})})
        if not is_finished(raw):
            self._jobs[meta_of(raw)["uid"]] = str(meta_of(raw).get("resourceVersion")), job
        return job

    def trial(self, raw: RawObject, sweep: RawObject) -> CompressionJob:
        """A CompressionJob as its sweep sees it; of a finished one only what a sweep reads.

        One that this version of modelpress does not understand is there all the same, in the phase that it says.
        """
        try:
            return self._trial(raw, sweep)
        except SpecError:
            return unread_trial(raw, self.sweep(sweep))

    def _trial(self, raw: RawObject, sweep: RawObject) -> CompressionJob:
        if UNREAD in raw or not is_summarized(raw, sweep):
            return self.job(raw)
        meta = meta_of(raw)
        uid, version = meta["uid"], str(meta["resourceVersion"])
        there = self._jobs.get(uid)
        if there is None or there[0] != version:
            template = to_json_numbers(sweep["spec"]["template"]["spec"])
            try:
                lean = finished_trial(to_json_numbers(raw), self.sweep(sweep), template)
            except ValidationError as error:
                raise SpecError(problem for problem, _ in located_problems(error, CompressionJob)) from None
            there = self._jobs[uid] = version, lean
        return there[1]

    def sweep(self, raw: RawObject) -> CompressionSweep:
        """The typed CompressionSweep.

        Raises:
            SpecError: this version of modelpress does not understand it.
        """
        return _parsed(raw, CompressionSweep, self._sweeps)

    def forget(self, uid: str) -> None:
        """An object is gone."""
        self._jobs.pop(uid, None)
        self._sweeps.pop(uid, None)

    def observe_job(self, raw: RawObject, problems: Problems, now: dt.datetime) -> JobObserved | None:
        """A CompressionJob as it stands; None for a trial whose sweep is gone, which soon goes too."""
        job, owner = self.job(raw), None
        ref = controller_of(raw)
        if ref is not None and ref.get("kind") == COMPRESSION_SWEEPS.kind:
            sweep = self._cache.get(COMPRESSION_SWEEPS, meta_of(raw)["namespace"], ref["name"])
            if sweep is None or meta_of(sweep).get("uid") != ref.get("uid"):
                return None
            spec = sweep.get("spec") or {}
            suspended, metrics = bool(spec.get("suspend")), _objectives(spec)
            owner = OwnerState(ref["uid"], ref["name"], suspended, metrics, has_records(sweep))
        started, name = job.status.started, job.metadata.name
        names = [naming.attempt_name(name, number) for number in (started, started + 1) if number > 0]
        names += [naming.collect_name(name, started, round_) for round_ in range(1, COLLECT_ROUNDS + 1) if started > 0]
        return JobObserved(job, owner, self._children(raw, names, now), problems.texts, problems.reason)

    def observe_sweep(self, raw: RawObject, problems: Problems, now: dt.datetime) -> SweepObserved:
        """A CompressionSweep as it stands, with everything that has a name of a trial of it."""
        sweep, meta = self.sweep(raw), meta_of(raw)
        ours = {id(trial): trial for trial in self._cache.owned(meta["uid"], COMPRESSION_JOBS)}
        named = {id(trial): trial for trial in self._cache.numbered(meta["namespace"], meta["name"])}
        trials = tuple(self.trial(trial, raw) for trial in (ours | named).values())
        prepared, published = sweep.status.prepare_attempts, sweep.status.publish_attempts
        names = [naming.prepare_name(meta["name"], number) for number in (prepared, prepared + 1) if number > 0]
        names += [naming.publish_name(meta["name"], number) for number in (published, published + 1) if number > 0]
        return SweepObserved(sweep, trials, self._children(raw, names, now), problems.texts, problems.reason)

    def recheck_after(self, raw: RawObject, now: dt.datetime) -> float | None:
        """Seconds until what is observed may change though nothing happens."""
        pods = [pod for job in self._cache.owned(meta_of(raw)["uid"], JOBS) for pod in self._pods(job)]
        return recheck_after(pods, now, self._lost_after)

    def jobs_missing_pods(self, raw: RawObject) -> list[RawObject]:
        """The Jobs of an object that should have pods and have none."""
        return [job for job in self._cache.owned(meta_of(raw)["uid"], JOBS) if missing_pods(job, self._pods(job))]

    def _children(self, owner: RawObject, names: list[str], now: dt.datetime) -> tuple[ObservedJob, ...]:
        namespace = meta_of(owner)["namespace"]
        found = {meta_of(job)["name"]: job for job in self._cache.owned(meta_of(owner)["uid"], JOBS)}
        for name in names:
            other = self._cache.get(JOBS, namespace, name) or self._cache.name_conflict(JOBS, namespace, name)
            if other is not None:
                found.setdefault(name, other)
        return tuple(self._observed(job, now) for _, job in sorted(found.items()))

    def _observed(self, job: RawObject, now: dt.datetime) -> ObservedJob:
        refused = self._failed_creates.why(meta_of(job).get("uid") or "")
        return observed_job(job, self._pods(job), now, refused=refused, lost_after=self._lost_after)

    def _pods(self, job: RawObject) -> list[RawObject]:
        return self._cache.owned(meta_of(job).get("uid") or "", PODS)


def _objectives(spec: RawObject) -> tuple[str, ...]:
    """Metrics that a sweep optimises."""
    listed = (item.get("metric") for item in spec.get("objectives") or () if isinstance(item, dict))
    return tuple(metric for metric in listed if isinstance(metric, str))


def _parsed(raw: RawObject, model: type[T], known: dict[str, tuple[str, T]]) -> T:
    if UNREAD in raw:
        raise SpecError([Problem("", raw[UNREAD]["message"], "delete it")])
    meta = meta_of(raw)
    uid, version = meta.get("uid") or "", str(meta.get("resourceVersion"))
    there = known.get(uid)
    if there is not None and there[0] == version:
        return there[1]
    try:
        parsed = model.model_validate(to_json_numbers(raw))
    except ValidationError as error:
        raise SpecError(problem for problem, _ in located_problems(error, model)) from None
    if there is not None and there[1].spec == parsed.spec:
        parsed = parsed.model_copy(update={"spec": there[1].spec})  # one copy in memory, whatever the status
    known[uid] = version, parsed
    return parsed
