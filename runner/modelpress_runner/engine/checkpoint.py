"""Checkpoints of a run in its store: what is needed to go on behind the last finished chunk of training.

Of several processes that train together rank 0 writes, and the others read; only what differs between them (states of
random number generators, and of optimizers that are spread over the ranks) is kept of each.

`<prefix>/checkpoint/state.pt` holds tensors and plain data only and is read with weights_only; each write replaces it
as a whole. `<prefix>/checkpoint/started/<step>-<chunk>-<attempt>` marks that an attempt began a chunk, so that chunks
which ran more than once can be counted. `<prefix>/checkpoint/ranks/<step>-<chunk>/<rank>.pt` are the parts of
optimizers that are spread over the ranks; they are written before the state.pt that they belong to.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from modelpress.store import layout
from modelpress.store.base import ArtifactStore
from modelpress.store.errors import ObjectMissingError
from modelpress_runner.edits.cuts import Cut
from modelpress_runner.edits.masks import Masks, placed
from modelpress_runner.errors import StoreError
from modelpress_runner.methods.context import StageContext
from modelpress_runner.runtime import distributed as ranks

FORMAT = 2


@dataclass(frozen=True)
class GeneratorStates:
    """States of one rank's generators: `everywhere` the global ones, `own` the user's, by the way to them."""

    everywhere: dict[str, Any]
    own: dict[str, Any]

    def to_plain(self) -> dict[str, Any]:
        """Tensors and plain data."""
        return dict(self.__dict__)


@dataclass
class Checkpoint:
    """The state of a run after a chunk of training.

    Attributes:
        step: index of the training step among all steps of the recipe.
        chunk: index of the finished chunk within it.
        trainer: state of optimizers and schedulers; empty where every rank's part is a file of its own.
        generators: GeneratorStates of every rank, as plain data.
        records: the records of the stages that are finished.
        seconds: time spent on the stage so far.
        score: the last intermediate score, if there is one.
    """

    step: int
    chunk: int
    model: dict[str, torch.Tensor]
    buffers: dict[str, torch.Tensor]
    masks: Masks
    cuts: list[Cut]
    trainer: dict[str, Any]
    generators: list[dict[str, Any]]
    notes: list[str] = field(default_factory=list)
    records: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    score: dict[str, float] | None = None

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
            "cuts": [[cut.module, cut.axis, list(cut.kept)] for cut in self.cuts],
        }

    @classmethod
    def from_plain(cls, value: dict[str, Any]) -> Checkpoint:
        """The inverse of to_plain."""
        cuts = [Cut(module, axis, tuple(kept)) for module, axis, kept in value["cuts"]]
        return cls(**{**value, "cuts": cuts})

    def apply_to(self, context: StageContext) -> None:
        """Turns the dense model in `context` into the checkpoint's: shrunk, with its weights, masks and notes."""
        from modelpress_runner.edits.replay import replay

        if self.cuts:
            replay(context.model, self.cuts)
        context.model.load_state_dict(self.model, strict=True)
        buffers = dict(context.model.named_buffers(remove_duplicate=False))
        with torch.no_grad():
            for name, value in self.buffers.items():
                if name in buffers and buffers[name].shape == value.shape:
                    buffers[name].copy_(value)
        context.masks = placed(self.masks, context.model)  # a checkpoint is read into main memory
        context.cuts = list(self.cuts)
        context.notes.extend(note for note in self.notes if note not in context.notes)


def other_buffers(model: nn.Module) -> dict[str, torch.Tensor]:
    """Buffers that are not in the model's state dict."""
    saved = model.state_dict().keys()
    return {name: value for name, value in model.named_buffers(remove_duplicate=False) if name not in saved}


class Checkpointer:
    """Writes and reads the checkpoint of one run.

    Args:
        store: where.
        prefix: folder of the run; "" is the store's own.
        identity: digest of everything that must be the same for a checkpoint to be of use: recipe, code, versions.
        attempt: number of this attempt; none: one more than the highest that left a mark.
    """

    def __init__(self, store: ArtifactStore, prefix: str, identity: str, attempt: int | None = None) -> None:
        self._store, self._identity = store, identity
        self._folder = layout.checkpoint_prefix(prefix)
        self._attempt = attempt or 1 + max((int(name.rsplit("-", 1)[-1]) for name in self._marks()), default=0)

    def load(self) -> tuple[Checkpoint | None, str | None]:
        """The checkpoint that is there, or None; and why one that is there is of no use. Such a one is deleted.

        On every rank the same, as rank 0 finds it.
        """
        mine: list[Checkpoint] = []

        def look() -> tuple[bool, str | None]:
            found, note = self._load()
            mine.extend([found] if found else [])
            return found is not None, note

        there, note = ranks.by_main(look)
        if there and not mine:
            found, note = self._load()
            if found is None:
                raise StoreError(f"the checkpoint that rank 0 reads cannot be read by rank {ranks.rank()} ({note})")
            mine.append(found)
        return (mine[0] if mine else None), note

    def _load(self) -> tuple[Checkpoint | None, str | None]:
        with tempfile.TemporaryDirectory() as folder:
            local = Path(folder) / "state.pt"
            try:
                self._store.get_file(f"{self._folder}/state.pt", local)
            except ObjectMissingError:
                return None, None
            try:
                value = torch.load(local, map_location="cpu", weights_only=True)
                identity = value["identity"] if value["format"] == FORMAT else None
                checkpoint = Checkpoint.from_plain(value["checkpoint"]) if identity == self._identity else None
            except Exception as error:
                note = f"an unreadable checkpoint was ignored ({type(error).__name__})"
            else:
                if checkpoint is not None:
                    return checkpoint, None
                note = "a checkpoint was ignored: it was made by another recipe, code or version of torch"
        self.delete()
        return None, note

    def started(self, step: int, chunk: int) -> None:
        """Marks that this attempt begins a chunk."""
        if ranks.is_main():
            self._store.put_bytes(f"{self._folder}/started/{step}-{chunk}-{self._attempt}", b"")

    def save(self, checkpoint: Checkpoint) -> None:
        """Replaces the checkpoint."""
        if not ranks.is_main():
            return
        with tempfile.TemporaryDirectory() as folder:
            local = Path(folder) / "state.pt"
            plain = {"format": FORMAT, "identity": self._identity, "checkpoint": checkpoint.to_plain()}
            torch.save(plain, local)
            self._store.put_file(f"{self._folder}/state.pt", local)
        current = f"{checkpoint.step}-{checkpoint.chunk}"
        for info in self._store.list(f"{self._folder}/ranks"):
            if info.path.rsplit("/", 2)[-2] != current:
                self._store.delete(info.path)

    def save_shard(self, step: int, chunk: int, trainer: dict[str, Any]) -> None:
        """Keeps this rank's part of the optimizers; returns when every rank has done so."""
        with tempfile.TemporaryDirectory() as folder:
            local = Path(folder) / "part.pt"
            torch.save({"format": FORMAT, "identity": self._identity, "trainer": trainer}, local)
            self._store.put_file(f"{self._folder}/ranks/{step}-{chunk}/{ranks.rank()}.pt", local)
        ranks.barrier()

    def shard(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """This rank's part of the optimizers."""
        with tempfile.TemporaryDirectory() as folder:
            local = Path(folder) / "part.pt"
            path = f"{self._folder}/ranks/{checkpoint.step}-{checkpoint.chunk}/{ranks.rank()}.pt"
            self._store.get_file(path, local)
            trainer: dict[str, Any] = torch.load(local, map_location="cpu", weights_only=True)["trainer"]
        return trainer

    def executed(self) -> tuple[int, int]:
        """How many chunks were begun by all attempts together, and how many of them repeated an earlier one."""
        names = ranks.by_main(self._marks)
        chunks = {name.rsplit("-", 1)[0] for name in names}
        return len(names), len(names) - len(chunks)

    def _marks(self) -> list[str]:
        return [info.path.rsplit("/", 1)[-1] for info in self._store.list(f"{self._folder}/started")]

    def delete(self) -> None:
        """Deletes the checkpoint and all marks."""
        if ranks.is_main():
            self._store.delete_prefix(self._folder)
