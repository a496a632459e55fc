"""An in-memory cluster of one object and what it owns, journaled: what the API server is to the operator.

Objects carry uid, resourceVersion and generation as in Kubernetes. Every change is on disk before it is in memory and
before anybody is told of it, so a process killed at any instruction finds at its next start all that anyone acted on.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
import json
import re
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, TypeAlias

from pydantic import TypeAdapter, ValidationError

from modelpress.api.v1alpha1 import (
    TERMINAL_PHASES,
    CompressionJob,
    CompressionJobStatus,
    CompressionSweep,
    CompressionSweepStatus,
    Point,
    Progress,
    Stop,
    TrialRecord,
)
from modelpress.reconcile.model import Cause, ObservedJob
from modelpress.request import Purpose

from .errors import AlreadyExistsError, ConflictError, StateError
from .journal import Journal

Root: TypeAlias = CompressionJob | CompressionSweep
Kind = Literal["CompressionJob", "CompressionSweep"]
JobState = Literal["pending", "running", "succeeded", "failed"]
_NAME = re.compile(r"[a-z0-9][a-z0-9.-]{0,252}")
_UID = re.compile(r"[0-9A-Za-z-]{1,64}")


@dataclass(frozen=True)
class Key:
    """Which object."""

    kind: Kind
    name: str


@dataclass(frozen=True)
class JobRecord:
    """A child Job: one process, with its past. `mark` (process.start_mark) tells its pid from its pid used again."""

    name: str
    uid: str
    owner_kind: Kind
    owner_name: str
    owner_uid: str
    purpose: Purpose
    attempt: int
    state: JobState = "pending"
    cause: Cause | None = None
    reason: str | None = None
    detail: str | None = None
    message: str | None = None
    started_at: dt.datetime | None = None
    finished_at: dt.datetime | None = None
    deleting: bool = False
    pid: int | None = None
    mark: str | None = None
    exit_code: int | None = None

    @property
    def owner(self) -> Key:
        return Key(self.owner_kind, self.owner_name)

    @property
    def terminal(self) -> bool:
        return self.state in ("succeeded", "failed")

    def observed(self) -> ObservedJob:
        """As the reconcile core sees it."""
        return ObservedJob(
            name=self.name,
            uid=self.uid,
            owner_uid=self.owner_uid,
            purpose=self.purpose,
            attempt=self.attempt,
            state=self.state,
            cause=self.cause,
            reason=self.reason,
            detail=self.detail,
            message=self.message,
            started_at=self.started_at,
            finished_at=self.finished_at,
            deleting=self.deleting,
        )

    def to_dict(self) -> dict[str, Any]:
        """As the journal keeps it."""
        value = asdict(self)
        for name in ("started_at", "finished_at"):
            value[name] = value[name].isoformat() if value[name] else None
        return value

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> JobRecord:
        """The inverse of to_dict.

        Raises:
            TypeError, ValueError: the value is not a record.
        """
        unknown = value.keys() - {item.name for item in fields(cls)}
        if unknown:
            raise TypeError(f"it has an unknown key {min(unknown)[:64]!r}")
        try:
            record = _RECORD.validate_json(json.dumps(value), strict=True)
        except ValidationError as error:
            first = error.errors()[0]
            raise ValueError(f"{first['loc'][0] if first['loc'] else 'it'}: {first['msg']}") from None
        if not (_NAME.fullmatch(record.name) and _UID.fullmatch(record.uid)):
            raise ValueError("it has no name and uid of a job")
        if record.pid is not None and record.pid < 2:  # 0 and 1 stand for whole groups of processes
            raise ValueError(f"no process of ours has the id {record.pid}")
        return record


_RECORD = TypeAdapter(JobRecord)


@dataclass(frozen=True)
class Change:
    """What a watcher is told. `before` and `after` are None where the thing was created or is gone."""

    key: Key  # the object, or the owner of the child Job
    before: Root | JobRecord | None
    after: Root | JobRecord | None


Watcher = Callable[[Change], None]


class LocalCluster:
    """The root object, its trials and their child Jobs, indexed by owner. All methods are synchronous."""

    def __init__(self, journal: Journal, clock: Callable[[], dt.datetime]) -> None:
        self.journal = journal
        self.clock = clock
        self._version = 0
        self._root: Root | None = None
        self._trials: dict[str, CompressionJob] = {}
        self._jobs: dict[str, JobRecord] = {}
        self._jobs_of: dict[str, dict[str, JobRecord]] = {}
        self._watchers: list[Watcher] = []
        self._trial_list: tuple[CompressionJob, ...] | None = None
        self._untold: list[Change] | None = None

    # Reading ---------------------------------------------------------------------------------------------------------

    @property
    def root(self) -> Root:
        assert self._root is not None, "open the cluster first"
        return self._root

    @property
    def root_key(self) -> Key:
        return Key(self.root.kind, self.root.metadata.name)

    @property
    def trials(self) -> tuple[CompressionJob, ...]:
        """The sweep's trials by name, hence by number."""
        if self._trial_list is None:
            self._trial_list = tuple(self._trials[name] for name in sorted(self._trials))
        return self._trial_list

    @property
    def jobs(self) -> Iterable[JobRecord]:
        return self._jobs.values()

    def get(self, key: Key) -> Root | None:
        """The object of that key."""
        if self._root is not None and key == self.root_key:
            return self._root
        return self._trials.get(key.name) if key.kind == "CompressionJob" else None

    def job(self, name: str) -> JobRecord | None:
        """The child Job of that name."""
        return self._jobs.get(name)

    def jobs_of(self, owner_uid: str) -> tuple[JobRecord, ...]:
        """Child Jobs that one object controls, oldest first."""
        return tuple(self._jobs_of.get(owner_uid, {}).values())

    def watch(self, watcher: Watcher) -> None:
        """Have `watcher` called after every change from now on, in the order of the changes."""
        self._watchers.append(watcher)

    # Loading ---------------------------------------------------------------------------------------------------------

    def load(self, wanted: Root) -> None:
        """Take up what the journal holds, with the spec of `wanted` in force; or create `wanted` if it holds nothing.

        `wanted` has its uid and its store set. If the store's folder has moved, the trials move along.

        Raises:
            StateError: the journal is damaged.
        """
        try:
            self._load(wanted)
        except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
            raise self.journal.damaged(
                "object.json", f"it or a file beside it holds something unknown, {error!r}"[:200]
            ) from error

    def _load(self, wanted: Root) -> None:
        kept = self.journal.read("object.json")
        if kept is None:
            meta = wanted.metadata.model_copy(
                update={"resource_version": self._next(), "generation": 1, "creation_timestamp": self.clock()}
            )
            self._put(None, wanted.model_copy(update={"metadata": meta}))
            return
        self._version = int(kept.get("version", 0))
        old_store, new_store = _store_of(kept["object"]), store_uri(wanted)
        for value in self.journal.read_all("trials"):
            trial = self._parse(CompressionJob, _moved(value["object"], old_store, new_store))
            self._trials[trial.metadata.name] = trial
            self._seen(trial)
        for value in self.journal.read_all("jobs"):
            try:
                self._index(JobRecord.from_dict(value["job"]))
            except (TypeError, ValueError, KeyError) as error:
                where = self.journal.root
                raise StateError(
                    f"{where}/jobs holds something unknown ({error}); remove {where} to start over"
                ) from error
        root = self._parse(type(wanted), _moved(kept["object"], old_store, new_store))
        self._root = root
        self._seen(root)
        if root.spec != wanted.spec:
            self.update_spec(wanted.spec)

    def _parse(self, kind: type[Any], value: dict[str, Any]) -> Any:
        try:
            return kind.model_validate_json(json.dumps(value))
        except ValidationError as error:
            raise StateError(
                f"{self.journal.root} was written by another version of modelpress "
                f"({error.error_count()} unknown or missing fields); remove that folder to start over"
            ) from error

    def _seen(self, obj: Root) -> None:
        self._version = max(self._version, int(obj.metadata.resource_version or 0))

    # Writing objects -------------------------------------------------------------------------------------------------

    def update_spec(self, spec: Any) -> None:
        """Put another spec on the root object; its generation goes up."""
        root = self.root
        meta = root.metadata.model_copy(
            update={"resource_version": self._next(), "generation": (root.metadata.generation or 0) + 1}
        )
        self._put(root, root.model_copy(update={"spec": spec, "metadata": meta}))

    def patch_status(
        self, key: Key, status: CompressionJobStatus | CompressionSweepStatus, resource_version: str | None
    ) -> None:
        """Replace the status of an object.

        Raises:
            ConflictError: the object is gone, or its resourceVersion is no longer `resource_version`.
        """
        old = self.get(key)
        if old is None or old.metadata.resource_version != resource_version:
            raise ConflictError(f"{key.kind} {key.name} has changed since it was read")
        if old.status != status:
            self._replace_status(old, status)

    def stop_trial(self, name: str, uid: str, reason: str) -> None:
        """Set `status.stop` of a trial unless it is set or the trial is another one by now."""
        trial = self._trials.get(name)
        if trial is None or trial.metadata.uid != uid or trial.status.stop is not None:
            return
        stop = Stop(reason=reason, time=self.clock())
        self._replace_status(trial, trial.status.model_copy(update={"stop": stop}))

    def tell_progress(self, name: str, progress: Progress, points: list[Point]) -> None:
        """Set `status.progress` and `status.intermediate` of a job that goes on."""
        job = self.get(Key("CompressionJob", name))
        if isinstance(job, CompressionJob) and job.status.phase not in TERMINAL_PHASES:
            update = {"progress": progress, "intermediate": points or None}
            self._replace_status(job, job.status.model_copy(update=update))

    def admit_trial(self, name: str, uid: str, record: TrialRecord) -> None:
        """Set `status.trial` of a trial unless it is set or the trial is another one by now."""
        trial = self._trials.get(name)
        if trial is not None and trial.metadata.uid == uid and trial.status.trial is None:
            self._replace_status(trial, trial.status.model_copy(update={"trial": record}))

    def create_trial(self, job: CompressionJob) -> None:
        """Create a trial of the root sweep.

        Raises:
            AlreadyExistsError: the name is taken by an object that the root does not control.
        """
        name = job.metadata.name
        there = self._trials.get(name)
        if there is not None:
            if there.metadata.controller_uid() != self.root.metadata.uid:
                raise AlreadyExistsError(f"there is another CompressionJob {name}")
            return
        meta = job.metadata.model_copy(
            update={
                "uid": derived_uid(self.root.metadata.uid or "", name),
                "resource_version": self._next(),
                "generation": 1,
                "creation_timestamp": self.clock(),
            }
        )
        self._put(None, job.model_copy(update={"metadata": meta}))

    def _replace_status(self, old: Root, status: CompressionJobStatus | CompressionSweepStatus) -> None:
        meta = old.metadata.model_copy(update={"resource_version": self._next()})
        self._put(old, old.model_copy(update={"metadata": meta, "status": status}))

    def _put(self, before: Root | None, after: Root) -> None:
        name = after.metadata.name
        is_root = self._root is None or after.metadata.uid == self._root.metadata.uid
        value = {"version": self._version, "object": after.to_dict()}
        self.journal.write("object.json" if is_root else f"trials/{name}.json", value)
        if is_root:
            self._root = after
        else:
            assert isinstance(after, CompressionJob)
            self._trials[name] = after
            self._trial_list = None
        self._tell(Change(Key(after.kind, name), before, after))

    # Writing child Jobs ----------------------------------------------------------------------------------------------

    def create_job(self, record: JobRecord) -> bool:
        """Create a child Job; False if its owner has it already.

        Raises:
            AlreadyExistsError: the name is another owner's, or the Job of that name is being deleted.
        """
        there = self._jobs.get(record.name)
        if there is not None:
            if there.owner_uid != record.owner_uid or there.deleting:
                raise AlreadyExistsError(f"Job {record.name} exists")
            return False
        self._put_job(None, record)
        return True

    def update_job(self, name: str, uid: str, **changes: Any) -> JobRecord | None:
        """Change fields of a child Job; None if it is gone."""
        old = self._jobs.get(name)
        if old is None or old.uid != uid:
            return None
        new = replace(old, **changes)
        if new != old:
            self._put_job(old, new)
        return new

    def remove_job(self, name: str, uid: str) -> None:
        """Forget a child Job whose process is gone."""
        old = self._jobs.get(name)
        if old is None or old.uid != uid:
            return
        self.journal.remove(f"jobs/{name}.json")
        del self._jobs[name]
        del self._jobs_of[old.owner_uid][name]
        self._tell(Change(old.owner, old, None))

    def _put_job(self, before: JobRecord | None, after: JobRecord) -> None:
        self.journal.write(f"jobs/{after.name}.json", {"job": after.to_dict()})
        self._index(after)
        self._tell(Change(after.owner, before, after))

    def _index(self, record: JobRecord) -> None:
        self._jobs[record.name] = record
        self._jobs_of.setdefault(record.owner_uid, {})[record.name] = record

    def _next(self) -> str:
        self._version += 1
        return str(self._version)

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Changes made inside are kept all or none by a crash; watchers are told of them at the end."""
        self._untold = []
        try:
            with self.journal.together():
                yield
        finally:
            untold, self._untold = self._untold, None
        for change in untold:
            self._tell(change)

    def _tell(self, change: Change) -> None:
        if self._untold is not None:
            self._untold.append(change)
            return
        for watcher in self._watchers:
            watcher(change)


def derived_uid(*parts: str) -> str:
    """A uid that is the same whenever the parts are: the first 128 bits of their sha256."""
    return str(uuid.UUID(hex=hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]))


def store_uri(obj: Root) -> str:
    """URI of the store in an object whose store is set."""
    spec = obj.spec.template.spec if isinstance(obj, CompressionSweep) else obj.spec
    return spec.store.uri if spec.store else ""


def _store_of(value: dict[str, Any]) -> str:
    spec = value.get("spec", {})
    spec = spec.get("template", {}).get("spec", spec)
    return str(spec.get("store", {}).get("uri", ""))


def _moved(value: dict[str, Any], old: str, new: str) -> dict[str, Any]:
    if not old or old == new:
        return value
    spec = value["spec"].get("template", value)["spec"]
    spec.setdefault("store", {})["uri"] = new
    artifact = value.get("status", {}).get("artifact")
    if artifact and artifact["uri"].startswith(old):
        artifact["uri"] = new + artifact["uri"][len(old) :]
    return value
