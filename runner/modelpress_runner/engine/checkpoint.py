"""Checkpoints of a run in its store: what is needed to go on within, or behind, a step of its recipe.

Of several processes that train together rank 0 writes, and the others read; only what differs between them (states of
random number generators, what their training functions did, optimizers that are spread over the ranks) is kept of each.

All files hold tensors and plain data only and are read with weights_only. `<prefix>/checkpoint/state.pt` is the last
checkpoint; each write replaces it as a whole. What it refers to is written before it:
`begin/<step>.pt`, what its training step began with, where the training function is called again to go on;
`parts/<step>-<run>/<number>-<rank>.pt`, what that function did, bit by bit; and
`ranks/<step>-<run>-<position>/<rank>.pt`, optimizers that are spread over the ranks. `made/<attempt>-<step>` says how
many optimizer steps an attempt made.
"""

from __future__ import annotations

import json
import os
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from modelpress.store import layout
from modelpress.store.base import ArtifactStore
from modelpress.store.errors import ObjectMissingError
from modelpress_runner.edits.base import Edit
from modelpress_runner.edits.masks import Masks, placed
from modelpress_runner.edits.replay import read, replay, write
from modelpress_runner.errors import InvalidSpecError, StoreError
from modelpress_runner.methods.context import StageContext
from modelpress_runner.runtime import distributed as ranks

FORMAT = 5
EVERY = "MODELPRESS_CHECKPOINT_STEPS"


@dataclass(frozen=True)
class GeneratorStates:
    """States of one rank's generators: `everywhere` the global ones, `own` the user's, by the way to them."""

    everywhere: dict[str, Any]
    own: dict[str, Any]

    def to_plain(self) -> dict[str, Any]:
        """Tensors and plain data."""
        return dict(self.__dict__)


@dataclass(frozen=True)
class Within:
    """The place of a checkpoint within its training step.

    Attributes:
        steps: optimizer steps that the first optimizer had made.
        events: of the training function, where that is called again to go on; 0 elsewhere.
        parts: how many files have them.
        run: which of several runs of the training step they belong to, one that was begun anew being another.
        gradients: of the parameters, by name.
        participants: states of what rides on the training.
    """

    steps: int
    events: int
    parts: int
    run: int
    gradients: dict[str, torch.Tensor]
    participants: list[dict[str, Any]]


@dataclass(frozen=True)
class Asked:
    """How the procedure of a stage came to the step that a checkpoint is of.

    Attributes:
        state: of the procedure, before it was asked for that step.
        score: what it was asked with.
        seen: what came of the step, if it is an evaluation and over.
    """

    state: dict[str, Any]
    score: dict[str, float] | None = None
    seen: dict[str, float] | None = None


@dataclass
class Checkpoint:
    """The state of a run within a training step, or behind a training or an evaluation.

    Attributes:
        step: index of that step among all steps of the recipe.
        within: where in it; None: it is over.
        trainer: state of optimizers and schedulers; empty where every rank's part is a file of its own.
        generators: GeneratorStates of every rank, as plain data.
        records: the records of the stages that are finished.
        steps: optimizer steps of the whole recipe so far, and those of the present stage.
        seconds: time spent on the stage so far.
        score: the last intermediate score, if there is one.
        asked: how the procedure of the stage came to the step; None: in a loop of the user's own.
    """

    step: int
    within: Within | None
    model: dict[str, torch.Tensor]
    buffers: dict[str, torch.Tensor]
    masks: Masks
    edits: list[Edit]
    trainer: dict[str, Any]
    generators: list[dict[str, Any]]
    notes: list[str] = field(default_factory=list)
    records: list[dict[str, Any]] = field(default_factory=list)
    steps: tuple[int, int] = (0, 0)
    seconds: float = 0.0
    score: dict[str, float] | None = None
    asked: Asked | None = None

    @property
    def world(self) -> int:
        """How many processes trained together."""
        return len(self.generators)

    def generators_of(self, rank: int) -> GeneratorStates:
        """What a rank goes on with; where it was not there, those of rank 0."""
        return GeneratorStates(**self.generators[rank if rank < self.world else 0])

    def to_plain(self) -> dict[str, Any]:
        """Tensors and plain data."""
        return {
            **self.__dict__,
            "within": None if self.within is None else dict(self.within.__dict__),
            "asked": None if self.asked is None else dict(self.asked.__dict__),
            "edits": write(self.edits),
        }

    @classmethod
    def from_plain(cls, value: dict[str, Any]) -> Checkpoint:
        """The inverse of to_plain."""
        within = None if value["within"] is None else Within(**value["within"])
        asked = None if value["asked"] is None else Asked(**value["asked"])
        return cls(**{**value, "edits": read(value["edits"]), "within": within, "asked": asked})

    def set_weights(self, model: nn.Module) -> None:
        """Sets parameters and buffers of a model that has the checkpoint's shapes."""
        model.load_state_dict(self.model, strict=True)
        buffers = dict(model.named_buffers(remove_duplicate=False))
        with torch.no_grad():
            for name, value in self.buffers.items():
                if name in buffers and buffers[name].shape == value.shape:
                    buffers[name].copy_(value)

    def apply_to(self, context: StageContext) -> None:
        """Turns the dense model in `context` into the checkpoint's: edited, with its weights, masks and notes."""
        if coming := self.edits[len(context.edits) :]:  # a loop has made its first ones again
            replay(context.model, coming)
        self.set_weights(context.model)
        context.masks = placed(self.masks, context.model)  # a checkpoint is read into main memory
        context.edits = list(self.edits)
        context.note(*self.notes)


def other_buffers(model: nn.Module) -> dict[str, torch.Tensor]:
    """Buffers that are not in the model's state dict."""
    saved = model.state_dict().keys()
    return {name: value for name, value in model.named_buffers(remove_duplicate=False) if name not in saved}


def _asked_for() -> int | None:
    text = os.environ.get(EVERY, "")
    if text and not (text.isascii() and text.isdigit() and int(text)):
        raise InvalidSpecError(f"{EVERY} is {text!r} in the environment; give a number of optimizer steps, 1 or more")
    return int(text) if text else None


def copies(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """In main memory."""
    return {
        name: value.detach().to("cpu", copy=True) if isinstance(value, torch.Tensor) else value
        for name, value in tensors.items()
    }


class Checkpointer:
    """Writes and reads the checkpoint of one run.

    Where one process trains alone, files are written by a thread beside it, one after another; the next call waits
    until they are there, and raises what went wrong.

    Args:
        store: where.
        prefix: folder of the run; "" is the store's own.
        identity: digest of everything that must be the same for a checkpoint to be of use: recipe, code, versions.
        attempt: number of this attempt; none: one more than the highest that left a mark.
        every: optimizer steps after which a checkpoint is due, however long it takes; none: what the environment says
            in MODELPRESS_CHECKPOINT_STEPS, or else its time alone counts.

    Raises:
        InvalidSpecError: the environment says something that is no number of steps.
    """

    def __init__(
        self,
        store: ArtifactStore,
        prefix: str,
        identity: str,
        attempt: int | None = None,
        every: int | None = None,
    ) -> None:
        self._store, self._identity = store, identity
        self.every = _asked_for() if every is None else every
        self._folder = layout.checkpoint_prefix(prefix)
        self._attempt = attempt or 1 + max((int(name.split("-")[0]) for name in self._marks()), default=0)
        self._writing: threading.Thread | None = None
        self._failed: list[Exception] = []
        self.written_seconds = 0.0  # processor time of all that was written beside the training

    # Reading ----------------------------------------------------------------------------------------------------------

    def load(self) -> tuple[Checkpoint | None, str | None]:
        """The checkpoint that is there, or None; and why one that is there is of no use. Such a one is deleted.

        On every rank the same, as rank 0 finds it.
        """
        self.wait()
        mine: list[Checkpoint] = []

        def look() -> tuple[bool, str | None]:
            found, note = self._load()
            mine.extend([found] if found else [])
            return found is not None, note

        there, note = ranks.on_rank_zero(look)
        if there and not mine:
            found, note = self._load()
            if found is None:
                raise StoreError(f"the checkpoint that rank 0 reads cannot be read by rank {ranks.rank()} ({note})")
            mine.append(found)
        return (mine[0] if mine else None), note

    def _load(self) -> tuple[Checkpoint | None, str | None]:
        try:
            return Checkpoint.from_plain(self._read("state.pt")), None
        except ObjectMissingError:
            return None, None
        except OtherError:
            note = "a checkpoint was ignored: it was made by another recipe, code or version of torch"
        except Exception as error:
            note = f"an unreadable checkpoint was ignored ({type(error).__name__})"
        self.delete()
        return None, note

    def begin(self, step: int) -> Checkpoint:
        """What training step `step` began with."""
        return Checkpoint.from_plain(self._read(f"begin/{step}.pt"))

    def part(self, checkpoint: Checkpoint, number: int) -> dict[str, Any]:
        """What this rank kept with `save_part`."""
        assert checkpoint.within is not None
        content: dict[str, Any] = self._read(self._part(checkpoint.step, checkpoint.within.run, number))
        return content

    def shard(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """This rank's part of the optimizers."""
        trainer: dict[str, Any] = self._read(f"ranks/{_place(checkpoint.step, checkpoint.within)}/{ranks.rank()}.pt")
        return trainer

    def _read(self, path: str) -> Any:
        with tempfile.TemporaryDirectory() as folder:
            local = Path(folder) / "file.pt"
            self._store.get_file(f"{self._folder}/{path}", local)
            return read_file(local, self._identity)

    def get(self, name: str) -> dict[str, Any] | None:
        """As methods.context.Parts.get, on every rank what rank 0 finds."""

        def look() -> dict[str, Any] | None:
            self.wait()
            try:
                found: dict[str, Any] = self._read(f"kept/{name}.pt")
            except Exception:  # missing, damaged or another run's: it is worked out again
                return None
            return found

        return ranks.on_rank_zero(look)

    # Writing ----------------------------------------------------------------------------------------------------------

    def save(self, checkpoint: Checkpoint) -> None:
        """Replaces the checkpoint, whose tensors nobody may change from now on."""
        if not ranks.is_rank_zero():
            return
        plain = checkpoint.to_plain()

        def write() -> None:
            self._write("state.pt", plain)
            self._forget(checkpoint)

        self._beside(write)

    def save_begin(self, checkpoint: Checkpoint) -> None:
        """Keeps what a training step begins with."""
        if ranks.is_rank_zero():
            plain = checkpoint.to_plain()
            self._beside(lambda: self._write(f"begin/{checkpoint.step}.pt", plain))

    def save_part(self, step: int, run: int, number: int, content: dict[str, Any]) -> None:
        """Keeps some of what a training function did on this rank."""
        self._beside(lambda: self._write(self._part(step, run, number), content))
        ranks.barrier()

    def save_shard(self, step: int, within: Within | None, trainer: dict[str, Any]) -> None:
        """Keeps this rank's part of the optimizers, before the checkpoint that belongs to it; on every rank."""
        path = f"ranks/{_place(step, within)}/{ranks.rank()}.pt"
        self._beside(lambda: self._write(path, trainer))
        ranks.barrier()

    def put(self, name: str, content: dict[str, Any]) -> None:
        """As methods.context.Parts.put."""
        if ranks.is_rank_zero():
            self._beside(lambda: self._write(f"kept/{name}.pt", content))

    def wait(self) -> None:
        """Returns when everything is written.

        Raises:
            Whatever the store raised.
        """
        if self._writing is not None:
            self._writing.join()
            self._writing = None
        if self._failed:
            failed, self._failed = self._failed, []
            raise failed[0]

    def _beside(self, write: Callable[[], None]) -> None:
        """Has something written in its turn, by a thread where nobody else waits for it."""
        before = self._writing
        if ranks.is_distributed():
            self.wait()
            write()
            return

        def work() -> None:
            if before is not None:
                before.join()
            try:
                if not self._failed:
                    began = time.thread_time()
                    write()
                    self.written_seconds += time.thread_time() - began
            except Exception as error:
                self._failed.append(error)

        self._writing = threading.Thread(target=work, name="checkpoint", daemon=True)
        self._writing.start()

    def _write(self, path: str, content: Any) -> None:
        with tempfile.TemporaryDirectory() as folder:
            local = Path(folder) / "file.pt"
            write_file(local, self._identity, content)
            self._store.put_file(f"{self._folder}/{path}", local)

    def _part(self, step: int, run: int, number: int) -> str:
        return f"parts/{step}-{run}/{number}-{ranks.rank()}.pt"

    def _forget(self, checkpoint: Checkpoint) -> None:
        """Deletes what belonged to earlier checkpoints."""
        keep = {f"ranks/{_place(checkpoint.step, checkpoint.within)}"}
        if checkpoint.within is not None:
            keep |= {f"begin/{checkpoint.step}.pt", f"parts/{checkpoint.step}-{checkpoint.within.run}"}
        for folder in ("ranks", "begin", "parts"):
            for info in self._store.list(f"{self._folder}/{folder}"):
                path = info.path[info.path.rindex(f"{self._folder}/{folder}/") + len(self._folder) + 1 :]
                if not {path, path.rpartition("/")[0]} & keep:
                    self._store.delete(info.path)

    # Counting ---------------------------------------------------------------------------------------------------------

    def made(self, step: int, steps: int) -> None:
        """Notes how many optimizer steps this attempt has made of training step `step` so far."""
        if ranks.is_rank_zero():
            path = f"{self._folder}/made/{self._attempt}-{step}"
            content = json.dumps(steps).encode()
            self._beside(lambda: self._store.put_bytes(path, content))

    def executed(self) -> int:
        """How many optimizer steps all attempts together have noted."""

        def count() -> int:
            self.wait()
            return sum(int(self._store.get_bytes(f"{self._folder}/made/{name}")) for name in self._marks())

        return ranks.on_rank_zero(count)

    def _marks(self) -> list[str]:
        return [info.path.rsplit("/", 1)[-1] for info in self._store.list(f"{self._folder}/made")]

    def delete(self) -> None:
        """Deletes the checkpoint and all marks."""
        if ranks.is_rank_zero():
            self.wait()
            self._store.delete_prefix(self._folder)


class OtherError(Exception):
    """A file of something else."""


def write_file(path: Path, identity: str, content: Any) -> None:
    """Writes tensors and plain data that are of use where `identity` is the same."""
    torch.save({"format": FORMAT, "identity": identity, "content": content}, path)


def read_file(path: Path, identity: str) -> Any:
    """What write_file wrote.

    Raises:
        OtherError: it was written for another identity, or by another version.
    """
    value = torch.load(path, map_location="cpu", weights_only=True)
    if value["format"] != FORMAT or value["identity"] != identity:
        raise OtherError
    return value["content"]


def _place(step: int, within: Within | None) -> str:
    return f"{step}-end" if within is None else f"{step}-{within.run}-{within.steps}"
