"""Evaluating any model with a Hugging Face Trainer, and the score in what Trainer.evaluate() returns."""

from __future__ import annotations

import contextlib
import numbers
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from torch import nn
from transformers import PreTrainedModel, Trainer
from transformers.loss.loss_utils import LOSS_MAPPING

from modelpress.api.v1alpha1 import DEFAULT_METRIC
from modelpress_runner.errors import InvalidModelError
from modelpress_runner.evaluators.base import Score
from modelpress_runner.evaluators.deepspeed import engine as deepspeed_engine
from modelpress_runner.evaluators.framework_residue import FrameworkResidue
from modelpress_runner.evaluators.score import score_of
from modelpress_runner.evaluators.transformers.trainer import takes

_PREFIX = "eval_"
_BOOKKEEPING = frozenset(  # the Trainer's own: clocks and counters, not measures of a model
    {
        "epoch",
        "runtime",
        "samples_per_second",
        "steps_per_second",
        "tokens_per_second",
        "model_preparation_time",
        "jit_compilation_time",
        "num_input_tokens_seen",
    }
)
FOREIGN = ("_original_forward", "_is_accelerate_prepared", *deepspeed_engine.FOREIGN)


def score_from(metrics: Mapping[str, Any], metric: str | None) -> Score:
    """The score in what Trainer.evaluate() returned; keys with and without `eval_` mean the same.

    Args:
        metrics: its numbers; clocks and counters of the Trainer's own are left out, as is what is no number.
        metric: the name of the metric that is the score; none: `default`.

    Raises:
        InvalidModelError: there is no such metric, or the score is no finite number.
    """
    found = {name.removeprefix(_PREFIX): value for name, value in metrics.items()}
    wanted = (metric or DEFAULT_METRIC).removeprefix(_PREFIX)
    named = {name: value for name, value in found.items() if name not in _BOOKKEEPING or name == wanted}
    if wanted not in named:
        listed = ", ".join(map(repr, named)) or "no metric"
        raise InvalidModelError(
            f"Trainer.evaluate() gave {listed} but no {wanted!r}; let compute_metrics return the key "
            "'default', or name one of them: TransformersEvaluator(trainer, metric='...')"
        )
    kept = {name: value for name, value in named.items() if name != wanted and _is_number(value)}
    return score_of({**kept, DEFAULT_METRIC: named[wanted]}, "Trainer.evaluate()")


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def evaluate(trainer: Trainer, model: nn.Module, prepared: bool) -> dict[str, float]:
    """What `trainer` measures of `model`, which may be another one than it was made for.

    Args:
        trainer: any; it is as it was afterwards.
        model: a model or a program. One whose forward takes no labels gets none.
        prepared: whether it is the trainer's own and prepared for training.

    Returns:
        The metrics, without the loss if `model` does not give it and it cannot be computed from its outputs.
    """
    reference = trainer.model
    trainer._set_signature_columns_if_needed()  # which columns a batch keeps is a matter of the model's own class
    with contextlib.ExitStack() as reverted:
        if not prepared:
            reverted.enter_context(_instead(trainer, model))
        losses = None
        if not all(takes(model, name) for name in trainer.label_names):
            losses = _Losses(trainer, model, reference)
            reverted.enter_context(losses)
        metrics: dict[str, float] = trainer.evaluate()
        if losses is not None and losses.missing:
            metrics = {name: value for name, value in metrics.items() if not name.endswith("_loss")}
    return metrics


def unwrap(model: nn.Module) -> None:
    """Takes accelerate's mixed precision off the model's forward."""
    extract_model_from_parallel(model, keep_fp32_wrapper=False)


@contextlib.contextmanager
def _instead(trainer: Trainer, model: nn.Module) -> Iterator[None]:
    """Inside, the trainer is one for `model`, prepared for evaluation only."""
    accelerator = trainer.accelerator
    residue = FrameworkResidue(model, FOREIGN)
    before = {name: getattr(trainer, name) for name in ("model", "model_wrapped", "is_deepspeed_enabled")}
    models, timed = accelerator._models, vars(trainer).pop("model_preparation_time", None)
    trainer.model = trainer.model_wrapped = model
    accelerator._models = []
    if trainer.is_deepspeed_enabled:  # an engine would want to partition the model
        trainer.is_deepspeed_enabled = False
        accelerator._models = [model]
        model.to(trainer.args.device)
    try:
        yield
    finally:
        unwrap(model)
        residue.remove()
        accelerator._models = models
        for name, value in before.items():
            setattr(trainer, name, value)
        vars(trainer).pop("model_preparation_time", None)
        if timed is not None:
            trainer.model_preparation_time = timed


class _Losses:
    """compute_loss for a model that takes no labels, such as an exported program: its outputs against the labels."""

    def __init__(self, trainer: Trainer, model: nn.Module, reference: nn.Module) -> None:
        self._trainer, self._model, self._reference = trainer, model, reference
        self.missing = False

    def __enter__(self) -> None:
        self._before = vars(self._trainer).get("compute_loss")
        self._trainer.compute_loss = self._compute

    def __exit__(self, *_: object) -> None:
        del self._trainer.compute_loss
        if self._before is not None:
            self._trainer.compute_loss = self._before

    def _compute(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        labels = {name: inputs[name] for name in self._trainer.label_names if name in inputs}
        outputs = model(**{name: value for name, value in inputs.items() if takes(self._model, name)})
        if isinstance(outputs, torch.Tensor):
            outputs = {"logits": outputs}
        loss = self._loss(outputs, labels, num_items_in_batch)
        if loss is None:
            self.missing = True
            loss = torch.zeros((), device=next(iter(labels.values())).device if labels else None)
        if not isinstance(outputs, Mapping):
            outputs = (loss, *outputs)  # where the Trainer looks for the loss in a tuple
        return (loss, outputs) if return_outputs else loss

    def _loss(self, outputs: Any, labels: dict[str, Any], items: Any) -> torch.Tensor | None:
        trainer = self._trainer
        loss: torch.Tensor | None
        target = next(iter(labels.values())) if len(labels) == 1 else None
        if trainer.compute_loss_func is not None:
            loss = trainer.compute_loss_func(outputs, target, num_items_in_batch=items)
            return loss
        if trainer.label_smoother is not None and target is not None:
            loss = trainer.label_smoother(outputs, target, shift_labels=trainer._loss_shifts_labels)
            return loss
        return _library_loss(self._reference, outputs, labels)


def _library_loss(reference: nn.Module, outputs: Any, labels: dict[str, Any]) -> torch.Tensor | None:
    """The loss that a model class of the library itself computes from these outputs; None for any other class."""
    known = isinstance(reference, PreTrainedModel) and type(reference).__module__.startswith("transformers.")
    if not known or getattr(reference, "loss_type", None) not in LOSS_MAPPING or not isinstance(outputs, Mapping):
        return None
    config = reference.config
    more = {"vocab_size": getattr(config, "vocab_size", None), "num_labels": getattr(config, "num_labels", None)}
    given = {**outputs, **labels, **more, "config": config}
    if "logits" in outputs:
        given["pooled_logits"] = outputs["logits"]
    loss: torch.Tensor | None = LOSS_MAPPING[reference.loss_type](**given)
    return loss
