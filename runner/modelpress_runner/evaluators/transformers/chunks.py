"""A Hugging Face Trainer whose training is called in chunks and goes on where the last one ended.

Trainer.train() makes its schedule, its counters and its order of the data anew each time. Here optimizer, scheduler and
wrapped model are prepared once, with a schedule over the whole training; the counters go on; and a chunk that begins in
the middle of an epoch leaves out the batches that the epoch has had already, as resuming from a checkpoint of the
Trainer does. Training in chunks therefore sees the batches and the learning rates that one call of train() sees.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from accelerate.optimizer import AcceleratedOptimizer
from torch import nn
from transformers import Trainer
from transformers.trainer_callback import ExportableState, TrainerCallback
from transformers.trainer_utils import has_length

from modelpress_runner.errors import InvalidModelError
from modelpress_runner.evaluators.optimizer_state import load_optimizer, plain
from modelpress_runner.evaluators.replay.draws import Draws
from modelpress_runner.runtime import rng

LossPatch = Callable[[torch.Tensor, Any], torch.Tensor]

_COUNTERS = (
    "epoch",
    "global_step",
    "num_input_tokens_seen",
    "total_flos",
    "log_history",
    "best_metric",
    "best_global_step",
    "best_model_checkpoint",
)
_PREPARED = ("_models", "_optimizers", "_schedulers", "deepspeed_engine_wrapped")
_SKIP = "a chunk that begins within an epoch"  # stands for a checkpoint where the Trainer only asks for None


class ChunkedTrainer:
    """A prepared Trainer.

    Args:
        trainer: made for the model, not trained yet.
        max_steps: optimizer steps of the whole training, which the learning rate's schedule spans, or
        max_epochs: its epochs; neither: what the Trainer's own arguments say.

    Raises:
        InvalidModelError: the length of the data, which epochs need, is not known.
    """

    def __init__(self, trainer: Trainer, max_steps: int | None, max_epochs: int | None) -> None:
        self.trainer = trainer
        self.patches: list[LossPatch] = []
        self._set: list[str] = []
        self._epoch, self._steps = 0, 0  # epochs that are over, and optimizer steps within the present one
        self._ended = False  # a callback has ended the training for good
        self._first_of_chunk = self._cut = False
        self._end: int | None = None  # the step that a chunk ends at
        self._until: tuple[int | None, int | None] | None = None  # the step and epoch that the present call ends with
        self._asked_at = self._base = self._fetches = 0
        self._length: int | None = None  # of an epoch, in optimizer steps
        self._due = False  # somebody wants a safe point
        self._draws = False  # making batches draws random numbers
        self._generators = Draws({})
        self.goes_on_here = True
        self._epoch_rng: dict[str, Any] | None = None  # the generators when the epoch began
        self._resumed: dict[str, Any] | None = None  # the generators then, and behind the step to go on from
        self._safe: Callable[[], None] | None = None
        self._wanted: Callable[[], bool] | None = None
        self._prepared: dict[str, Any] = {}
        self._prepare(max_steps, max_epochs)

    def _prepare(self, max_steps: int | None, max_epochs: int | None) -> None:
        trainer = self.trainer
        with rng.fork_rng(), self._limits(max_steps, max_epochs):
            loader = trainer.get_train_dataloader()
            if trainer.args.max_steps < 0 and not has_length(loader):
                raise InvalidModelError(
                    "the Trainer's data has no length, so epochs cannot be counted; give maxSteps instead of epochs"
                )
            self._total = trainer.set_initial_training_values(trainer.args, loader)[-1]
            self._wrapped, _ = trainer._prepare_for_training(self._total, loader, None)
        accelerator = trainer.accelerator
        self._prepared = {name: getattr(accelerator, name) for name in _PREPARED if hasattr(accelerator, name)}
        self._patch("_prepare_for_training", self._go_on)
        self._patch("set_initial_training_values", self._training_values)
        self._patch("_init_training_state", self._counters)
        self._patch("_run_epoch", self._run_epoch)
        self._patch("_maybe_log_save_evaluate", self._after_step)
        self._patch("compute_loss", self._compute_loss)
        self._patch("get_batch_samples", self._fetch)
        self._patch("_load_rng_state", self._sync)

    def _patch(self, name: str, replacement: Callable[..., Any]) -> None:
        original = getattr(self.trainer, name)
        setattr(self.trainer, name, lambda *args, **kwargs: replacement(original, *args, **kwargs))
        self._set.append(name)

    @property
    def wrapped(self) -> nn.Module:
        """The model in whatever trains it: DistributedDataParallel, a DeepSpeed engine, or itself."""
        wrapped: nn.Module = self._wrapped
        return wrapped

    @property
    def optimizer(self) -> Any:
        """The optimizer itself, without accelerate's wrapping."""
        optimizer = self.trainer.optimizer
        while isinstance(optimizer, AcceleratedOptimizer):
            optimizer = optimizer.optimizer
        return optimizer

    def close(self) -> None:
        """Takes everything off the Trainer and off accelerate's globals."""
        for name in self._set:
            vars(self.trainer).pop(name, None)
        self._set = []
        neftune = getattr(self.trainer, "neftune_hook_handle", None)
        if neftune is not None:
            neftune.remove()
        for name in self._prepared:
            setattr(self.trainer.accelerator, name, None if name.startswith("deepspeed") else [])
        state = self.trainer.accelerator.gradient_state
        state._set_sync_gradients(True)
        # An iterator that was left in the middle stays registered, and later gathers ask the last one registered.
        state.dataloader_references = [None]

    def train(self, max_steps: int | None, max_epochs: int | None) -> None:
        """One call of Trainer.train(). Nothing is trained any more once a callback has ended the training."""
        if self._ended:
            return
        if self._until is None:  # else it goes on with a call that was broken off
            end = None if max_steps is None else self.trainer.state.global_step + max_steps
            self._until = (end, None if max_epochs is None else self._epoch + max_epochs)
        end, epochs = self._until
        self._run(end, epochs)
        self._until = None

    def _run(self, end: int | None, epochs: int | None) -> None:
        trainer, accelerator = self.trainer, self.trainer.accelerator
        self._first_of_chunk, self._cut = True, False
        self._end = end
        with self._limits(end, epochs):
            for name in _PREPARED:  # the Trainer clears them, and destroys an engine that it finds there
                if name in self._prepared:
                    setattr(accelerator, name, None if name.startswith("deepspeed") else [])
            try:
                trainer.train()
            finally:
                trainer.is_in_train = False
                for name, value in self._prepared.items():
                    setattr(accelerator, name, value)

    def at_safe_points(self, hook: Callable[[], None], wanted: Callable[[], bool]) -> None:
        """Calls `hook` behind steps after which `wanted` said so.

        Where the batches are made with random numbers of this process, as a collator that masks tokens does, they are
        drawn a batch ahead: then a training goes on from the end of an epoch only (`goes_on_here`).
        """
        self._safe, self._wanted = hook, wanted

    def _limits(self, max_steps: int | None, max_epochs: int | None) -> _Limits:
        return _Limits(self.trainer.args, max_steps, max_epochs)

    def _go_on(self, original: Callable[..., Any], max_steps: int, loader: Any, checkpoint: Any) -> Any:
        """In place of preparing again: what is prepared goes on."""
        trainer = self.trainer
        for name, value in self._prepared.items():
            setattr(trainer.accelerator, name, value)
        for name in ("model", "optimizer", "lr_scheduler"):
            setattr(trainer.callback_handler, name, getattr(trainer, name))
        trainer.callback_handler.train_dataloader = loader
        return self._wrapped, loader

    def _training_values(self, original: Callable[..., Any], args: Any, loader: Any) -> Any:
        epochs, *rest = original(args, loader)
        if args.max_steps > 0:
            epochs = max(epochs, self._epoch + math.ceil(epochs) + 1)  # the steps end it, not the epochs
        return (epochs, *rest)

    def _counters(self, original: Callable[..., Any], max_steps: int, *args: Any) -> tuple[int, int]:
        """The counters of the chunk before, in place of zeros; the training's end, in place of the chunk's."""
        before = self.trainer.state
        original(max(max_steps, self._total), *args)
        for name in _COUNTERS:
            setattr(self.trainer.state, name, getattr(before, name))
        return self._epoch, 0

    def _run_epoch(self, original: Callable[..., Any], **kwargs: Any) -> None:
        """One epoch, or what is left of it."""
        trainer = self.trainer
        skipped = self._steps if self._first_of_chunk and not trainer.args.ignore_data_skip else 0
        self._first_of_chunk = False
        self._epoch, self._steps = kwargs["epoch"], skipped
        self._base, self._fetches = trainer.state.global_step - skipped, 0
        self._length = kwargs["num_update_steps_per_epoch"] if has_length(kwargs["train_dataloader"]) else None
        if skipped:
            # The epoch's order is drawn again as it was; what the next step draws comes behind the last one.
            if self._resumed is None:
                self._resumed = {"epoch": self._epoch_rng, "step": rng.capture()}
            rng.restore(self._resumed["epoch"])
        self._epoch_rng = rng.capture()
        if skipped:
            kwargs |= {
                "resume_from_checkpoint": _SKIP,
                "epochs_trained": kwargs["epoch"],
                "steps_trained_in_current_epoch": skipped * trainer.args.gradient_accumulation_steps,
            }
        before = trainer.state.global_step
        original(**kwargs)
        self._steps = skipped + trainer.state.global_step - before
        over = self._steps >= kwargs["num_update_steps_per_epoch"] and has_length(kwargs["train_dataloader"])
        if over or not trainer.control.should_training_stop:
            self._epoch, self._steps = self._epoch + 1, 0

    def _after_step(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        """After each step, and each epoch, when callbacks may end the training: ends the chunk."""
        trainer = self.trainer
        if self._cut:
            trainer.control.should_training_stop = False
        original(*args, **kwargs)
        if trainer.control.should_training_stop and trainer.state.global_step < trainer.state.max_steps:
            self._ended = True
        if self._end is not None and trainer.state.global_step >= self._end:
            self._cut = trainer.control.should_training_stop = True
        elif not self._ended:
            self._offer()

    def _offer(self) -> None:
        """Calls the hook for safe points, if somebody wants one, behind a step or behind the last one of an epoch."""
        step = self.trainer.state.global_step
        stepped, self._asked_at = step > self._asked_at, step
        if self._safe is None or self._wanted is None:
            return
        if stepped:
            self._due = self._wanted()
        if not self._due or (stepped and self._length is not None and step - self._base >= self._length):
            return  # what belongs to the epoch's end is still to come
        epoch, steps = self._epoch, self._steps
        self._epoch, self._steps = (epoch, step - self._base) if stepped else (epoch + 1, 0)
        self.goes_on_here = not stepped or not self._draws
        self._due = False
        try:
            self._safe()
        finally:
            self._epoch, self._steps = epoch, steps

    def _fetch(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Batches; notes whether making them draws random numbers, the first ones of an epoch aside."""
        self._fetches += 1
        if self._fetches == 1 or self._draws:
            return original(*args, **kwargs)
        before = self._generators.read()
        batches = original(*args, **kwargs)
        self._draws = self._generators.read() != before
        return batches

    def _sync(self, original: Callable[..., Any], checkpoint: Any) -> None:
        """In place of reading a checkpoint's random numbers, once the batches that were trained are left out."""
        if checkpoint is not _SKIP:
            original(checkpoint)
        elif self._resumed is not None:
            rng.restore(self._resumed["step"])
            self._resumed = None

    def _compute_loss(
        self, original: Callable[..., Any], model: nn.Module, inputs: Any, *args: Any, **kwargs: Any
    ) -> Any:
        batch = dict(inputs)  # the Trainer takes the labels out of it
        result = original(model, inputs, *args, **kwargs)
        if not self.patches or not torch.is_grad_enabled():  # evaluation computes losses, too
            return result
        loss = result[0] if isinstance(result, tuple) else result
        items = args[1] if len(args) > 1 else kwargs.get("num_items_in_batch")
        parts = self._parts(items, batch)
        # Patches see the mean over the batch, whatever part of an accumulated gradient it is.
        loss = loss * parts if parts != 1 else loss
        for patch in self.patches:
            loss = patch(loss, batch)
        loss = loss / parts if parts != 1 else loss
        return (loss, *result[1:]) if isinstance(result, tuple) else loss

    def _parts(self, items: Any, batch: dict[str, Any]) -> float:
        """By how much the mean over the batch is divided already, as part of an accumulated loss: by the items (rows
        or tokens with a label) of the whole step for each of its own, so that batches weigh by their items."""
        trainer = self.trainer
        scaled = trainer.loss_is_scaled_for_ga
        if scaled is None:
            scaled = (trainer.model_accepts_loss_kwargs and items is not None) or trainer.compute_loss_func is not None
        if not scaled:
            return 1
        own = _items(batch, trainer._loss_shifts_labels)
        if items is None or not own:
            return float(trainer.current_gradient_accumulation_steps)
        return float(items) / (own * (trainer.accelerator.num_processes if self._counts_all() else 1))

    def _counts_all(self) -> bool:
        """Whether the Trainer counts the items of all processes, and multiplies each one's loss by their number."""
        return bool(self.trainer.args.average_tokens_across_devices) and self.trainer.args.world_size > 1

    def optimizer_state(self) -> dict[str, Any]:
        """The optimizer, and the loss scale of mixed precision."""
        scaler = self.trainer.accelerator.scaler
        return {
            "optimizer": plain(self.optimizer.state_dict()),
            "scaler": None if scaler is None else plain(scaler.state_dict()),
        }

    def load_optimizer_state(self, state: dict[str, Any]) -> None:
        """Restores what `optimizer_state` gave."""
        load_optimizer(self.optimizer, state["optimizer"])
        if state["scaler"] is not None:
            self.trainer.accelerator.scaler.load_state_dict(state["scaler"])

    def state_dict(self) -> dict[str, Any]:
        """Everything else: schedule, counters, place in the data, and the states of callbacks that have one."""
        return {
            "scheduler": plain(self.trainer.lr_scheduler.state_dict()),
            "trainer": plain({name: getattr(self.trainer.state, name) for name in _COUNTERS}),
            "place": [self._epoch, self._steps],
            "generators": None if not self._steps else {"epoch": self._epoch_rng, "step": rng.capture()},
            "ended": self._ended,
            "until": None if self._until is None else list(self._until),
            "callbacks": [plain(callback.state()) for callback in self._stateful()],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` gave."""
        self.trainer.lr_scheduler.load_state_dict(dict(state["scheduler"]))
        for name, value in state["trainer"].items():
            setattr(self.trainer.state, name, value)
        self._epoch, self._steps = state["place"]
        self._resumed = state["generators"]
        self._ended, self._asked_at = state["ended"], self.trainer.state.global_step
        self._until = None if state["until"] is None else (state["until"][0], state["until"][1])
        for callback, saved in zip(self._stateful(), state["callbacks"], strict=True):
            vars(callback).update(saved["attributes"])

    def _stateful(self) -> list[ExportableState]:
        callbacks: list[TrainerCallback] = self.trainer.callback_handler.callbacks
        return [callback for callback in callbacks if isinstance(callback, ExportableState)]


class _Limits:
    """A context in which the Trainer's arguments say how long to train; with neither they stay as they are."""

    def __init__(self, args: Any, max_steps: int | None, max_epochs: int | None) -> None:
        self._args = args
        self._before = (args.max_steps, args.num_train_epochs)
        if max_steps is not None:
            self._now = (max_steps, args.num_train_epochs)
        elif max_epochs is not None:
            self._now = (-1, max_epochs)
        else:
            self._now = self._before

    def __enter__(self) -> None:
        self._args.max_steps, self._args.num_train_epochs = self._now

    def __exit__(self, *_: object) -> None:
        self._args.max_steps, self._args.num_train_epochs = self._before


def _items(batch: dict[str, Any], shifted: bool) -> int:
    """How many labels of a batch count, as the Trainer counts them; 0: it has none."""
    labels = batch.get("shift_labels", batch.get("labels"))
    if not isinstance(labels, torch.Tensor):
        return 0
    if shifted and "shift_labels" not in batch:
        labels = labels[..., 1:]
    return int(labels.ne(-100).sum())
