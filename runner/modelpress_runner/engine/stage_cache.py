"""First stages that several trials of a sweep have alike: computed by one of them, taken over by the others.

`<root>/stages/<digest>/` holds the state behind them under the digest of its content; `state.json`, put-if-absent, says
which one all go on with. What a stage depends on is in the digest: the dense model and what makes it, the stages up to
it, the seed, versions, and how many processes train together. Files hold tensors and plain data, and are read with
weights_only.
"""

from __future__ import annotations

import contextlib
import logging
import re
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from modelpress.plainjson import json_of
from modelpress.store import layout
from modelpress.store.base import ArtifactStore
from modelpress.store.errors import ObjectMissingError, StoreError
from modelpress.store.manifest import canonical_json, digest_of, hash_file
from modelpress_runner.engine.checkpoint import Checkpoint, OtherError, read_file, write_file
from modelpress_runner.engine.plan import PlannedStage
from modelpress_runner.runtime import distributed as ranks

CACHED = "cached"  # in the record of a stage that another trial ran
_MAX_RECORD = 4096  # bytes of state.json
_NAME = re.compile(r"state-[0-9a-f]{64}\.pt")

log = logging.getLogger("modelpress")


class StageCache:
    """The states behind first stages that trials below one root have alike.

    In a process group every rank must call its methods, alike.

    Args:
        store: where.
        root: of the sweep.
        identity: of all that a state depends on besides the stages themselves.
        shared: how many first stages other trials have alike.
    """

    def __init__(self, store: ArtifactStore, root: str, identity: str, shared: int) -> None:
        self._store, self._root, self._identity, self._shared = store, root, identity, shared

    def find(self, plan: Sequence[PlannedStage], done: int) -> Checkpoint | None:
        """The state behind the most first stages of the recipe that are there; None where `done` of them are more.

        Its records say that they come from here. A state that cannot be read is passed over.
        """
        for count in range(min(self._shared, len(plan) - 1), done, -1):
            folder = self._folder(plan, count)
            path = ranks.on_rank_zero(partial(self._standing, folder))
            if path is None:
                continue
            found = self._read(path)
            if not ranks.any_rank(found is None):
                assert found is not None
                found.records = [{**record, CACHED: True} for record in found.records]
                return found
        return None

    def keep(self, plan: Sequence[PlannedStage], count: int, state: Callable[[], Checkpoint]) -> None:
        """Keeps the state behind the first `count` stages, unless it is there or no other trial has use for it.

        That behind all of them is one that a trial of a second rung goes on from.
        """
        if count > self._shared:
            return
        folder = self._folder(plan, count)
        if ranks.on_rank_zero(lambda: self._standing(folder) is not None):
            return
        plain = state().to_plain()
        ranks.on_rank_zero(lambda: self._put(folder, plain))

    def _folder(self, plan: Sequence[PlannedStage], count: int) -> str:
        stages = [{"name": stage.name, stage.method: stage.block.to_dict()} for stage in plan[:count]]
        return layout.stages_prefix(self._root, digest_of(canonical_json([self._identity, stages])))

    def _standing(self, folder: str) -> str | None:
        """Path of the state that stands; None: there is none."""
        with contextlib.suppress(ObjectMissingError, ValueError, KeyError, TypeError):
            name = json_of(self._store.get_bytes(f"{folder}/{layout.STAGES_RECORD}", _MAX_RECORD))["file"]
            if _NAME.fullmatch(name):
                return f"{folder}/{name}"
        return None

    def _read(self, path: str) -> Checkpoint | None:
        with tempfile.TemporaryDirectory() as folder:
            local = Path(folder) / "state.pt"
            try:
                self._store.get_file(path, local)
                return Checkpoint.from_plain(read_file(local, self._identity))
            except (ObjectMissingError, OtherError):
                return None
            except StoreError:
                raise
            except Exception as error:
                log.warning("the stage cache has an unreadable state (%s); the stage runs", type(error).__name__)
                return None

    def _put(self, folder: str, plain: dict[str, Any]) -> None:
        with tempfile.TemporaryDirectory() as temporary:
            local = Path(temporary) / "state.pt"
            write_file(local, self._identity, plain)
            name = f"state-{hash_file(local)[0]}.pt"
            self._store.put_file(f"{folder}/{name}", local)
        self._store.put_if_absent(f"{folder}/{layout.STAGES_RECORD}", canonical_json({"file": name}))
