"""Making a user's Hugging Face Trainer again for another model, without its noise."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import shutil
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import torch
from accelerate.state import AcceleratorState
from torch import nn
from transformers import Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.trainer_utils import SaveStrategy

from modelpress_runner.errors import InvalidModelError
from modelpress_runner.evaluators.torch_evaluator import is_scheduler
from modelpress_runner.evaluators.trace import RebuildPlan, RecordedCall, call_of
from modelpress_runner.runtime import rng
from modelpress_runner.usercode.calling import user_code

_DEFAULT_SAVE_STEPS = 500
_BEHIND = (  # where a user's own random number generators may be
    "train_dataset",
    "eval_dataset",
    "data_collator",
    "compute_metrics",
    "compute_loss_func",
    "preprocess_logits_for_metrics",
)


class TransformersTrainerSource:
    """How a Trainer comes about: a recorded constructor call, or a function (model) -> Trainer.

    Args:
        given: what the user gave.
        resumable: whether its training may be ended for a checkpoint, and go on.

    Raises:
        InvalidModelError: it is neither, or uses what cannot work on a model that changes.
    """

    def __init__(self, given: Any, resumable: bool) -> None:
        self._given, self._resumable = given, resumable
        self._plan: RebuildPlan | None = None
        if isinstance(given, Trainer):
            if call_of(given) is None:
                kind = type(given).__name__
                raise InvalidModelError(
                    f"the {kind} was not traced, so it cannot be made again for a smaller model; make it with "
                    f"mp.trace({kind})(...) or give a function (model) -> Trainer"
                )
            self._check(given)
            self._plan = self._recorded(given)
        elif call_of(given) is not None or isinstance(given, type) or not callable(given):
            raise InvalidModelError(
                f"trainer is a {type(given).__name__}; give mp.trace(Trainer)(model, args, ...) or a function "
                "(model) -> Trainer"
            )

    @property
    def trainer(self) -> Trainer | None:
        """The user's own Trainer, if he gave one."""
        return self._given if isinstance(self._given, Trainer) else None

    def rng_roots(self) -> dict[str, Any]:
        """What random number generators may be behind."""
        if self.trainer is None:
            return {"trainer": self._given}
        own = {name: getattr(self.trainer, name, None) for name in _BEHIND}
        return {"trainer": type(self.trainer), **own, "callbacks": list(self.trainer.callback_handler.callbacks)}

    def _recorded(self, trainer: Trainer) -> RebuildPlan:
        """The recorded call, with names in place of the parts of the Trainer's model."""
        _check_schedulers(call_of(trainer))
        plan = RebuildPlan.of([trainer], trainer.model)
        [root] = plan.roots
        call, args, kwargs = plan.calls[root]
        plan.calls[root] = (dataclasses.replace(call, factory=_quietly(call.factory)), args, kwargs)
        return plan

    def make(self, model: nn.Module) -> Trainer:
        """A Trainer for `model`; the random numbers of the process are as before.

        Raises:
            InvalidModelError: it trains another model, or uses what cannot work here.
            UserCodeError: the user's function raised.
        """
        # accelerate refuses a second Trainer with a DeepSpeed configuration as long as it remembers the first one.
        if AcceleratorState._shared_state.get("deepspeed_plugins") is not None:
            AcceleratorState._reset_state()
        with rng.fork_rng(), user_code("making the Trainer again"):
            if self._plan is not None:
                [trainer] = self._plan.build(model)
            else:
                trainer = self._given(model)
        if not isinstance(trainer, Trainer):
            raise InvalidModelError(
                f"the trainer function returned a {type(trainer).__name__}; return a transformers.Trainer"
            )
        if trainer.model is not model:
            raise InvalidModelError(
                "the Trainer is for another model than the one that is compressed; make it with model=<the very model> "
                "or, in a function (model) -> Trainer, with the model that it is given"
            )
        self._check(trainer)
        _silence(trainer)
        return trainer

    def _check(self, trainer: Trainer) -> None:
        args = trainer.args
        if is_scheduler(trainer.optimizer) or isinstance(trainer.lr_scheduler, torch.optim.Optimizer):
            kind = type(trainer.optimizer if is_scheduler(trainer.optimizer) else trainer.lr_scheduler).__name__
            raise InvalidModelError(
                f"the Trainer's optimizers have a {kind} in the other's place; give (optimizer, scheduler), None for "
                "what the Trainer shall make"
            )
        refused = {
            "model_init": (trainer.model_init is not None, "give the model itself"),
            "push_to_hub": (args.push_to_hub, "push the artifact when it is done"),
            "enable_jit_checkpoint": (args.enable_jit_checkpoint, "modelpress saves on SIGTERM itself"),
            "fsdp": (bool(args.fsdp), "use DeepSpeed, or several processes without sharding"),
            "load_best_model_at_end": (
                args.load_best_model_at_end and self._resumable,
                "training may be ended for a checkpoint and would load it there; or say resumable=False",
            ),
        }
        for name, (used, instead) in refused.items():
            if used:
                raise InvalidModelError(f"the Trainer has {name}, which cannot work here; leave it out: {instead}")


def training_arguments(args: TrainingArguments) -> TrainingArguments:
    """A copy of `args` that writes no checkpoints unless they were asked for, and shows no progress bar.

    Asked for is what differs from the Trainer's defaults: save_strategy "epoch" or "best", or other save_steps.
    """
    quiet = copy.copy(args)
    asked = args.save_strategy not in (SaveStrategy.STEPS, SaveStrategy.NO) or args.save_steps != _DEFAULT_SAVE_STEPS
    if not asked:
        quiet.save_strategy = SaveStrategy.NO
    quiet.disable_tqdm = True
    return quiet


def _quietly(factory: Callable[..., Any]) -> Callable[..., Any]:
    """The factory with its arguments changed so that nothing is written when it is called."""

    def make(*args: Any, **kwargs: Any) -> Any:
        folder = tempfile.mkdtemp(prefix="modelpress-trainer-")
        swapped: list[tuple[TrainingArguments, str]] = []

        def quiet(value: Any) -> Any:
            if not isinstance(value, TrainingArguments):
                return value
            changed = training_arguments(value)
            if changed.save_strategy == SaveStrategy.NO:
                swapped.append((changed, changed.output_dir))
                changed.output_dir = folder
            return changed

        try:
            return factory(*map(quiet, args), **{name: quiet(value) for name, value in kwargs.items()})
        finally:
            for changed, before in swapped:
                changed.output_dir = before
            shutil.rmtree(folder, ignore_errors=True)

    make.__name__ = getattr(factory, "__name__", "Trainer")
    return make


def _silence(trainer: Trainer) -> None:
    if not trainer.args.disable_tqdm or trainer.args.save_strategy != SaveStrategy.NO:
        trainer.args = training_arguments(trainer.args)
    for shown in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(shown)


def _check_schedulers(call: RecordedCall | None) -> None:
    for value in _values(() if call is None else (call.args, call.kwargs)):
        if isinstance(value, torch.optim.lr_scheduler.LRScheduler) and call_of(value) is None:
            kind = type(value).__name__
            raise InvalidModelError(
                f"the Trainer was made with a {kind} that was not traced, so it cannot be made again for a smaller "
                f"model; make it with mp.trace({kind})(...)"
            )


def _values(value: Any) -> Iterator[Any]:
    if isinstance(value, list | tuple):
        for item in value[:64]:
            yield from _values(item)
    elif isinstance(value, dict):
        for item in list(value.values())[:64]:
            yield from _values(item)
    else:
        yield value


def takes(model: nn.Module, name: str) -> bool:
    """Whether the model's forward takes an argument of this name."""
    from modelpress_runner.export.pt2.module import Program

    if isinstance(model, Program):
        return name in model.input_names
    parameters = inspect.signature(model.forward).parameters
    return name in parameters or any(each.kind is each.VAR_KEYWORD for each in parameters.values())
