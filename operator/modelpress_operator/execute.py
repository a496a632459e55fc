"""Carries out a plan: its actions in order, none after one that failed, each harmless if it was done before.

One exception: a sweep's new trials come before the status that counts them (docs/design/0010-trials-before-count.md).

Answers go into the cache at once, so the next reconciliation knows what this one did without waiting for the watch.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Any

from pydantic import ValidationError

from modelpress.api.json_numbers import to_json_numbers
from modelpress.api.v1alpha1 import (
    CompressionJob,
    CompressionJobStatus,
    CompressionSweepStatus,
    Stop,
    TrialRecord,
)
from modelpress.api.v1alpha1 import reasons as r
from modelpress.reconcile import (
    Action,
    AdmitTrial,
    CreateJob,
    CreateTrial,
    DeleteJob,
    EmitEvent,
    PatchStatus,
    Plan,
    StopTrial,
)
from modelpress.reconcile.conditions import stamp

from .cache import Cache
from .client import (
    AlreadyExistsError,
    ClusterClient,
    ClusterError,
    ConflictError,
    InvalidError,
    NotFoundError,
    ServerError,
    merge_patch,
)
from .events import EventWriter
from .lease import Leadership
from .metrics import Metrics
from .observe import parse_time
from .progress import StatusWrites
from .render import RenderError, SpecTooLargeError
from .resources import (
    BY_KIND,
    COMPRESSION_JOBS,
    COMPRESSION_SWEEPS,
    GANG_PARTS,
    JOBS,
    LABELS,
    Key,
    RawObject,
    Resource,
    controller_uid,
    is_deleting,
    is_gang,
    meta_of,
)

log = logging.getLogger(__name__)
MAX_WRITTEN = 10_000
MAX_MADE = 10_000  # trials that run at one time
CREATE_WAITS = (0.2, 1.0)  # seconds before a creation is sent again
Render = Callable[[CreateJob, RawObject], list[RawObject]]


class NameTakenError(Exception):
    """A name that we wanted to give belongs to somebody else, or to an object that is being deleted."""

    def __init__(self, message: str, *, foreign: bool) -> None:
        super().__init__(message)
        self.foreign = foreign


class InvalidChildError(Exception):
    """The API server, or the renderer, will never take what the specification asks for; the text says why."""

    def __init__(self, message: str, reason: str = r.INVALID_SPEC) -> None:
        super().__init__(message)
        self.reason = reason


class Executor:
    """Writes to the cluster, as long as this replica leads. `progress`: what a job's status takes along."""

    def __init__(
        self,
        client: ClusterClient,
        cache: Cache,
        leadership: Leadership,
        events: EventWriter,
        metrics: Metrics,
        render: Render,
        clock: Callable[[], Any],
        progress: StatusWrites | None = None,
    ) -> None:
        self._client = client
        self._cache = cache
        self._leadership = leadership
        self._events = events
        self._metrics = metrics
        self._render = render
        self._clock = clock
        self._progress = progress
        self.made: dict[str, TrialRecord] = {}  # of trials that were created and may have no status yet, by uid
        self._written: dict[str, str] = {}  # of sweeps: the version that our last patch made, by uid

    def check(self) -> None:
        """Call before a write of one's own.

        Raises:
            LeaseLostError: another replica leads.
        """
        self._leadership.check()

    async def execute(self, key: Key, observed: RawObject, plan: Plan) -> None:
        """All actions of a plan that was made for this version of the object.

        Raises:
            ClusterError: a request failed.
            NameTakenError, UnfitError: a child cannot be created.
            LeaseLostError: another replica leads.
        """
        lonely = all(isinstance(action, EmitEvent) for action in plan.actions[1:])
        actions = list(plan.actions)
        if moved := _trials_first(observed, actions):
            observed = await self._check_precondition(key, observed)
            actions = moved
        for action in actions:
            if isinstance(action, EmitEvent):
                self._events.emit(observed, action)
                continue
            self._leadership.check()
            await self._execute_action(key, observed, action, lonely)

    async def _execute_action(self, key: Key, observed: RawObject, action: Action, lonely: bool) -> None:
        match action:
            case PatchStatus(status=status):
                await self._patch_status(key, observed, status, lonely)
            case CreateJob():
                await self._create_job(observed, action)
            case DeleteJob(name=name, uid=uid):
                await self._delete_job(key.namespace, name, uid, meta_of(observed)["uid"])
            case CreateTrial(job=job):
                await self._create_trial(key.namespace, job, meta_of(observed)["uid"])
            case AdmitTrial(name=name, uid=uid, record=record):
                await self._order(key.namespace, name, uid, "trial", record.to_dict())
            case StopTrial(name=name, uid=uid, reason=reason):
                stop = Stop(reason=reason, time=stamp(self._clock())).to_dict()
                await self._order(key.namespace, name, uid, "stop", stop)

    async def _check_precondition(self, key: Key, observed: RawObject) -> RawObject:
        """Make sure that what was observed still stands; what we wrote last does, as nobody else writes a status.

        Returns:
            The object to go on from: asking may give it another version.
        """
        version = str(meta_of(observed)["resourceVersion"])
        if self._written.get(meta_of(observed)["uid"]) == version:
            return observed
        self._leadership.check()
        answer = await self._client.patch_status(key.resource, key.namespace, key.name, {}, version)
        self._cache.put(key.resource, answer, ours=True)
        return answer

    async def _patch_status(
        self, key: Key, observed: RawObject, status: CompressionJobStatus | CompressionSweepStatus, lonely: bool
    ) -> None:
        """An equal status is sent too where it fences other actions: an empty patch still checks the version."""
        wanted = status.to_dict()
        said = self._progress.take(key) if self._progress is not None else None
        patch = merge_patch(observed.get("status") or {}, wanted if said is None else wanted | said.status())
        if not patch and lonely:
            return
        version = str(meta_of(observed)["resourceVersion"])
        try:
            answer = await self._client.patch_status(key.resource, key.namespace, key.name, patch, version)
        except NotFoundError as error:
            self._cache.remove(key.resource, observed, ours=True)
            raise ConflictError(str(error), status=404) from error
        except ClusterError:
            if self._progress is not None and said is not None:
                self._progress.give_back(key, said)
            raise
        self._cache.put(key.resource, answer, ours=True)
        self._note_written(answer)
        self._record_end(key, observed, answer)

    def _note_written(self, answer: RawObject) -> None:
        if answer.get("kind") == COMPRESSION_SWEEPS.kind:
            meta = meta_of(answer)
            self._written[meta["uid"]] = str(meta["resourceVersion"])
            while len(self._written) > MAX_WRITTEN:
                del self._written[next(iter(self._written))]

    async def _create_job(self, owner: RawObject, action: CreateJob) -> None:
        try:
            rendered = await asyncio.to_thread(self._render, action, owner)
        except SpecTooLargeError as error:
            raise InvalidChildError(str(error), r.SPEC_TOO_LARGE) from error
        except RenderError as error:
            raise InvalidChildError(str(error)) from error
        for body in rendered:
            await self._create(BY_KIND[body["kind"]], meta_of(owner)["namespace"], body, meta_of(owner)["uid"])
        self._metrics.attempts.labels(action.purpose).inc()

    async def _create_trial(self, namespace: str, job: CompressionJob, owner_uid: str) -> None:
        """A trial; its record is remembered until its status holds it.

        One of that name that is the sweep's, too, is ours if it is what was to be created; the sweep judges any other.
        """
        body = job.to_dict()
        record = job.status.trial
        body.pop("status", None)
        answer = await self._create(COMPRESSION_JOBS, namespace, body, owner_uid)
        if record is None:
            return
        if not _alike(answer, job):
            text = f"CompressionJob {job.metadata.name} was not created by this sweep"
            raise NameTakenError(text, foreign=True)
        self.made[meta_of(answer)["uid"]] = record
        while len(self.made) > MAX_MADE:
            del self.made[next(iter(self.made))]
        # The watch may have told of it before this answer came, and it was taken for somebody else's.
        self._cache.tell_again(COMPRESSION_JOBS, namespace, job.metadata.name)

    async def _create(self, resource: Resource, namespace: str, body: RawObject, owner_uid: str) -> RawObject:
        name = meta_of(body)["name"]
        try:
            answer = await self._create_with_retry(resource, namespace, body)
        except InvalidError as error:
            raise InvalidChildError(f"{resource.kind} {name}: {error}") from error
        except AlreadyExistsError:
            try:
                answer = await self._client.get(resource, namespace, name)
            except NotFoundError:
                raise NameTakenError(f"{resource.kind} {name} was there a moment ago", foreign=False) from None
            if controller_uid(answer) != owner_uid:
                if resource not in (JOBS, COMPRESSION_JOBS):
                    text = f"the {resource.kind} {name} belongs to somebody else; delete it, or rename this object"
                    raise InvalidChildError(text) from None
                self._cache.note_name_conflict(resource, namespace, name, answer)
                text = f"{resource.kind} {name} belongs to somebody else"
                raise NameTakenError(text, foreign=True) from None
            if is_deleting(answer):
                self._cache.put(resource, answer, ours=True)
                raise NameTakenError(f"{resource.kind} {name} is being deleted", foreign=False) from None
        self._cache.put(resource, answer, ours=True)
        return answer

    async def _create_with_retry(self, resource: Resource, namespace: str, body: RawObject) -> RawObject:
        """Create an object, again at once where the API server failed: its status says already that it is there."""
        for wait in CREATE_WAITS:
            with contextlib.suppress(ServerError):
                return await self._client.create(resource, namespace, body)
            await asyncio.sleep(wait)
            self._leadership.check()
        return await self._client.create(resource, namespace, body)

    async def _delete_job(self, namespace: str, name: str, uid: str, owner_uid: str) -> None:
        """A Job, and of a gang the Service and the NetworkPolicy beside it; what is left goes with its owner."""
        job = self._cache.get(JOBS, namespace, name)
        gang = job is not None and meta_of(job).get("uid") == uid and is_gang(job)
        await self._delete(JOBS, namespace, name, uid)
        if not gang:
            return
        for resource in GANG_PARTS:
            with contextlib.suppress(NotFoundError):
                part = await self._client.get(resource, namespace, name)
                if controller_uid(part) == owner_uid:
                    await self._delete(resource, namespace, name, meta_of(part)["uid"])

    async def _delete(self, resource: Resource, namespace: str, name: str, uid: str) -> None:
        try:
            answer = await self._client.delete(resource, namespace, name, uid)
        except (NotFoundError, ConflictError):  # gone, or another object of that name by now
            answer = None
        if answer is not None:
            self._cache.put(resource, answer, ours=True)
            return
        there = self._cache.get(resource, namespace, name)
        if there is not None and meta_of(there).get("uid") == uid:
            self._cache.remove(resource, there, ours=True)

    async def _order(self, namespace: str, name: str, uid: str, field: str, value: RawObject) -> None:
        """Set a field of a trial's status, once."""
        trial = self._cache.get(COMPRESSION_JOBS, namespace, name)
        if trial is None or meta_of(trial).get("uid") != uid or (trial.get("status") or {}).get(field):
            return
        version = str(meta_of(trial)["resourceVersion"])
        try:
            answer = await self._client.patch_status(COMPRESSION_JOBS, namespace, name, {field: value}, version)
        except NotFoundError:
            return
        self._cache.put(COMPRESSION_JOBS, answer)  # the trial itself has to act on it

    def _record_end(self, key: Key, before: RawObject, after: RawObject) -> None:
        old, new = before.get("status") or {}, after.get("status") or {}
        phase = new.get("phase")
        if phase not in ("Succeeded", "Failed", "Stopped") or old.get("phase") == phase:
            return
        if key.resource is not COMPRESSION_JOBS:
            return
        trial = controller_uid(after) is not None
        seconds = _between(new.get("startTime"), new.get("completionTime"))
        histogram = self._metrics.trial_seconds if trial else self._metrics.job_seconds
        if seconds is not None:
            histogram.labels(phase).observe(seconds)
        if trial:
            self._metrics.trials.labels(phase).inc()


def _trials_first(observed: RawObject, actions: list[Action]) -> list[Action]:
    """The actions with new trials before the status that counts them; empty where that must not be.

    A process that dies between the two then loses no trial: trials that the status does not know yet are counted by
    the core all the same. Refused numbers are known from the status alone, so such a status is written first.
    """
    trials = [action for action in actions if isinstance(action, CreateTrial)]
    first = actions[0] if actions else None
    if not trials or not isinstance(first, PatchStatus) or not isinstance(first.status, CompressionSweepStatus):
        return []
    if first.status.refused != (observed.get("status") or {}).get("refused", ""):
        return []
    return [*trials, *(action for action in actions if not isinstance(action, CreateTrial))]


def _alike(answer: RawObject, job: CompressionJob) -> bool:
    """Whether an object is what was to be created: its recipe, and what it says of itself."""
    try:
        there = CompressionJob.model_validate(to_json_numbers({**answer, "status": {}}))
    except ValidationError:
        return False
    said = [(one.metadata.annotations or {}, one.metadata.labels or {}) for one in (there, job)]
    ours = [
        ({name: text for name, text in one.items() if name.startswith(f"{LABELS}/")} for one in pair) for pair in said
    ]
    return there.spec == job.spec and list(ours[0]) == list(ours[1])


def _between(start: str | None, end: str | None) -> float | None:
    first, last = parse_time(start), parse_time(end)
    return None if first is None or last is None else max(0.0, (last - first).total_seconds())
