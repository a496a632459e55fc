"""What the operator knows of the cluster: the newest version of each watched object, as plain dicts, by owner.

It is fed by listings, watch events and the answers to our own writes. Whatever comes in, in whatever order, an object
never goes back to an older version, and one that was deleted does not come back: so nothing is decided on a state from
before our own writes.
"""

from __future__ import annotations

import re
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator

from .compact import transform
from .resources import (
    COMPRESSION_JOBS,
    COMPRESSION_SWEEPS,
    RawObject,
    Resource,
    controller_uid,
    meta_of,
    version_of,
)

MAX_TOMBSTONES = 50_000  # uids of deleted objects that are remembered
_NUMBERED = re.compile(r"(.+)-(\d{5})")

ObjectId = tuple[Resource, str, str]  # resource, namespace, name
# (resource, before, after, whether we wrote it ourselves); before or after is None where it was created or is gone.
Listener = Callable[[Resource, RawObject | None, RawObject | None, bool], None]


class Cache:
    """For one event loop. What it returns must not be changed."""

    def __init__(self) -> None:
        self._objects: dict[Resource, dict[tuple[str, str], RawObject]] = {}
        self._by_owner: dict[str, dict[ObjectId, None]] = {}
        self._numbered: dict[tuple[str, str], dict[str, None]] = {}
        self._tombstones: OrderedDict[str, None] = OrderedDict()
        self._listed: set[tuple[Resource, str | None]] = set()
        self._name_conflicts: dict[ObjectId, RawObject] = {}
        self.listener: Listener | None = None

    # Reading ---------------------------------------------------------------------------------------------------------

    def get(self, resource: Resource, namespace: str, name: str) -> RawObject | None:
        """The object of that name."""
        return self._objects.get(resource, {}).get((namespace, name))

    def all(self, resource: Resource) -> Iterator[RawObject]:
        """Every object of a kind."""
        return iter(self._objects.get(resource, {}).values())

    def owned(self, uid: str, resource: Resource) -> list[RawObject]:
        """The objects of a kind that the object of this uid controls."""
        places = self._by_owner.get(uid, {})
        return [self._objects[object_id[0]][object_id[1:]] for object_id in places if object_id[0] is resource]

    def numbered(self, namespace: str, stem: str) -> list[RawObject]:
        """CompressionJobs called <stem>-00000 and so on, whosever they are."""
        names = self._numbered.get((namespace, stem), {})
        jobs = self._objects[COMPRESSION_JOBS] if names else {}
        return [jobs[(namespace, name)] for name in names]

    def name_conflict(self, resource: Resource, namespace: str, name: str) -> RawObject | None:
        """An object that is not ours but has a name that we wanted to give, as it was when we ran into it."""
        return self._name_conflicts.get((resource, namespace, name))

    @property
    def name_conflicts(self) -> list[ObjectId]:
        return list(self._name_conflicts)

    def listed(self, resource: Resource, namespace: str | None) -> bool:
        """Whether all objects of a kind in a namespace (None: everywhere) were seen once."""
        return (resource, namespace) in self._listed

    def phases(self) -> Counter[tuple[str, str]]:
        """How many CompressionJobs and CompressionSweeps are in each phase."""
        counts: Counter[tuple[str, str]] = Counter()
        for resource in (COMPRESSION_JOBS, COMPRESSION_SWEEPS):
            for obj in self.all(resource):
                counts[resource.kind, (obj.get("status") or {}).get("phase") or "Pending"] += 1
        return counts

    # Writing ---------------------------------------------------------------------------------------------------------

    def put(self, resource: Resource, obj: RawObject, *, ours: bool = False, whole: bool = True) -> bool:
        """Store an object; False if this version or a newer one is known.

        Args:
            ours: it is the answer to our own write.
            whole: as the API server gave it, and not as compact.transform does.
        """
        meta = meta_of(obj)
        uid = meta.get("uid") or ""
        object_id = (resource, meta.get("namespace") or "", meta.get("name") or "")
        if uid in self._tombstones:
            return False
        before = self.get(*object_id)
        if before is not None and version_of(obj) <= version_of(before):
            return False
        after = transform(resource, obj) if whole else obj
        if before is not None:
            self._forget(object_id, before)
            if meta_of(before).get("uid") != uid:
                self._add_tombstone(meta_of(before).get("uid") or "")
                self._tell(resource, before, None, ours)
                before = None
        self._objects.setdefault(resource, {})[object_id[1:]] = after
        owner = controller_uid(after)
        if owner is not None:
            self._by_owner.setdefault(owner, {})[object_id] = None
        if resource is COMPRESSION_JOBS and (match := _NUMBERED.fullmatch(object_id[2])):
            self._numbered.setdefault((object_id[1], match[1]), {})[object_id[2]] = None
        self._name_conflicts.pop(object_id, None)
        self._tell(resource, before, after, ours)
        return True

    def tell_again(self, resource: Resource, namespace: str, name: str) -> None:
        """Have an object looked at once more: what it was judged by is known better now."""
        if (obj := self.get(resource, namespace, name)) is not None:
            self._tell(resource, obj, obj, False)

    def remove(self, resource: Resource, obj: RawObject, *, ours: bool = False) -> bool:
        """Store that an object is gone; False if that is known."""
        meta = meta_of(obj)
        self._add_tombstone(meta.get("uid") or "")
        object_id = (resource, meta.get("namespace") or "", meta.get("name") or "")
        before = self.get(*object_id)
        if before is None or meta_of(before).get("uid") != meta.get("uid"):
            return False
        self._forget(object_id, before)
        self._tell(resource, before, None, ours)
        return True

    def replace(self, resource: Resource, namespace: str | None, objects: Iterable[RawObject], version: int) -> None:
        """Take in a complete listing made at `version`: what is older and not in it was deleted meanwhile.

        The objects are as compact.transform gives them.
        """
        uids = set()
        for obj in objects:
            uids.add(meta_of(obj).get("uid"))
            self.put(resource, obj, whole=False)
        gone = [
            obj
            for obj in self.all(resource)
            if meta_of(obj).get("uid") not in uids
            and version_of(obj) <= version
            and namespace in (None, meta_of(obj).get("namespace"))
        ]
        for obj in gone:
            self.remove(resource, obj)
        self._listed.add((resource, namespace))

    def note_name_conflict(self, resource: Resource, namespace: str, name: str, obj: RawObject | None) -> None:
        """Remember somebody else's object of a name that we wanted to give; None: it is gone."""
        object_id = (resource, namespace, name)
        if obj is None:
            self._name_conflicts.pop(object_id, None)
        elif self.get(*object_id) is None:
            self._name_conflicts[object_id] = transform(resource, obj)

    def _add_tombstone(self, uid: str) -> None:
        self._tombstones[uid] = None
        self._tombstones.move_to_end(uid)
        while len(self._tombstones) > MAX_TOMBSTONES:
            self._tombstones.popitem(last=False)

    def _forget(self, object_id: ObjectId, obj: RawObject) -> None:
        del self._objects[object_id[0]][object_id[1:]]
        owner = controller_uid(obj)
        if owner is not None and object_id in (owned := self._by_owner.get(owner, {})):
            del owned[object_id]
            if not owned:
                del self._by_owner[owner]
        if object_id[0] is COMPRESSION_JOBS and (match := _NUMBERED.fullmatch(object_id[2])):
            names = self._numbered[(object_id[1], match[1])]
            del names[object_id[2]]
            if not names:
                del self._numbered[(object_id[1], match[1])]

    def _tell(self, resource: Resource, before: RawObject | None, after: RawObject | None, ours: bool) -> None:
        if self.listener is not None:
            self.listener(resource, before, after, ours)
