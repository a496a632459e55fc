"""The evaluator for Hugging Face's Trainer."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import Trainer

from modelpress_runner.errors import InvalidModelError
from modelpress_runner.evaluators.base import Evaluator, Score
from modelpress_runner.evaluators.footprint import Footprint
from modelpress_runner.evaluators.parameter_groups import join
from modelpress_runner.evaluators.transformers import scoring
from modelpress_runner.evaluators.transformers.chunks import ChunkedTrainer, LossPatch
from modelpress_runner.evaluators.transformers.trainer import TrainerSource
from modelpress_runner.runtime import rng as seeding
from modelpress_runner.runtime.preserve import flags_restored
from modelpress_runner.usercode.calling import user_code

if TYPE_CHECKING:
    from modelpress_runner.evaluators.transformers.deepspeed import PartitionedTrainer


class TransformersEvaluator(Evaluator):
    """Training and evaluation by a Hugging Face Trainer.

    How long to train comes from the recipe, not from the Trainer's num_train_epochs and max_steps; the learning rate's
    schedule spans a stage's whole training. Trainer.train() runs once for it. Random numbers come from
    the recipe's seed, not from args.seed. Checkpoints and progress bars of the Trainer are off unless save_strategy
    "epoch" or "best" or other save_steps than 500 ask for checkpoints.

    Args:
        trainer: mp.trace(Trainer)(model, args, ...), of any subclass, or a function (model) -> Trainer. Optimizers and
            schedulers that are given to a traced Trainer are made by mp.trace, too.
        dummy_input: an example input: a tensor, or a tuple, list or dict of what the model takes.
        metric: which of the numbers of Trainer.evaluate() is the score, with or without `eval_`; none: `default`.
        resumable: False: train() is never ended for a checkpoint.

    Raises:
        InvalidModelError: the Trainer was not traced, or uses what cannot work on a model that changes.
    """

    train_needs = "a train_dataset in the Trainer"
    evaluate_needs = "an eval_dataset in the Trainer"

    def __init__(
        self,
        trainer: Trainer | Callable[[nn.Module], Trainer],
        dummy_input: Any = None,
        *,
        metric: str | None = None,
        resumable: bool = True,
    ) -> None:
        self._source = TrainerSource(trainer, resumable)
        self.dummy_input = dummy_input
        self.resumable = resumable
        self._metric = metric
        self._length: tuple[int | None, int | None] = (None, None)
        self._reference: nn.Module | None = None  # the user's model, of the class that the Trainer was meant for
        self._scorer: Trainer | None = None  # evaluates models that are not bound
        self._chunks: ChunkedTrainer | None = None
        self._bound: tuple[nn.Module, Footprint, Trainer] | None = None
        self._partitioned: PartitionedTrainer | None = None
        self._handles: list[Any] = []

    @property
    def can_train(self) -> bool:
        return self._has("train_dataset", "get_train_dataloader")

    @property
    def can_evaluate(self) -> bool:
        return self._has("eval_dataset", "get_eval_dataloader")

    def _has(self, data: str, loader: str) -> bool:
        """Whether the Trainer has that data. A function that has made no Trainer yet is taken at its word."""
        trainer = self._source.trainer or (self._bound[2] if self._bound else self._scorer)
        if trainer is None:
            return True
        return getattr(trainer, data) is not None or getattr(type(trainer), loader) is not getattr(Trainer, loader)

    def user_objects(self) -> dict[str, Any]:
        return self._source.user_objects()

    def resolve(self, model: nn.Module) -> None:
        self._reference, self._scorer = model, None

    def enter_training(self, max_steps: int | None, max_epochs: int | None) -> None:
        self._length = (max_steps, max_epochs)

    @property
    def model(self) -> nn.Module:
        if self._bound is None:
            raise RuntimeError("the evaluator is not bound to a model")
        return self._bound[0]

    @property
    def trainer(self) -> Trainer:
        """The Trainer of the bound model. RuntimeError if there is none."""
        if self._bound is None:
            raise RuntimeError("the evaluator is not bound to a model")
        return self._bound[2]

    @property
    def sharded(self) -> bool:  # type: ignore[override]
        """Whether DeepSpeed spreads the optimizer over the ranks."""
        trainer = self._bound[2] if self._bound else self._source.trainer or self._scorer
        if trainer is None or not trainer.is_deepspeed_enabled:
            return False
        return bool(trainer.accelerator.state.deepspeed_plugin.zero_stage >= 1)

    def bind(self, model: nn.Module) -> None:
        if self._bound is not None:
            raise RuntimeError("the evaluator is already bound; unbind it first")
        footprint = Footprint(model, scoring.FOREIGN)
        try:
            trainer = self._source.make(model)
            self._bound = (model, footprint, trainer)
            if self.can_train:
                with user_code("preparing the Trainer"):
                    self._prepare(trainer, model, footprint)
        except BaseException:
            self.unbind()
            footprint.erase()
            raise

    def _prepare(self, trainer: Trainer, model: nn.Module, footprint: Footprint) -> None:
        length = self._length
        if not trainer.is_deepspeed_enabled:
            self._chunks = ChunkedTrainer(trainer, *length)
            join(self.extra_groups, self._chunks.optimizer, [trainer.lr_scheduler])
            return
        from modelpress_runner.evaluators.transformers.deepspeed import PartitionedTrainer

        self._partitioned = PartitionedTrainer(trainer, model, footprint)
        self._chunks = self._partitioned.prepare(lambda: ChunkedTrainer(trainer, *length))
        self._partitioned.handle.join(self.extra_groups, [trainer.lr_scheduler])

    def unbind(self) -> None:
        super().unbind()
        for handle in self._handles:
            handle.remove()
        self._handles = []
        if self._chunks is not None:
            self._chunks.close()
        try:
            if self._partitioned is not None:
                self._partitioned.close()
        finally:
            if self._bound is not None:
                model, footprint, _ = self._bound
                scoring.unwrap(model)
                footprint.erase()
            self._chunks = self._partitioned = self._bound = None
            self._length = (None, None)

    def train(self, max_steps: int | None = None, max_epochs: int | None = None) -> None:
        model = self.model
        if self._chunks is None:
            raise InvalidModelError(f"the evaluator cannot train; give it {self.train_needs}")
        with contextlib.ExitStack() as reverted:
            if self._partitioned is not None:
                reverted.enter_context(self._partitioned.quiet())
            for context in (flags_restored(model), torch.enable_grad(), user_code("Trainer.train")):
                reverted.enter_context(context)
            self._chunks.train(max_steps, max_epochs)

    def evaluate(self, model: nn.Module | None = None) -> Score:
        if model is None:
            model = self.model
        bound = self._bound is not None and self._bound[0] is model
        trainer = self.trainer if bound else self._scorer or self._make_scorer(model)
        if not self.can_evaluate:
            raise InvalidModelError(f"the evaluator cannot evaluate; give it {self.evaluate_needs}")
        with contextlib.ExitStack() as reverted:
            if trainer.is_deepspeed_enabled and self._partitioned is None:
                from modelpress_runner.evaluators.deepspeed.group import ProcessGroup

                reverted.enter_context(ProcessGroup())
            elif self._partitioned is not None:
                reverted.enter_context(self._partitioned.quiet())
            for context in (flags_restored(model), seeding.aside(), torch.no_grad(), user_code("Trainer.evaluate")):
                reverted.enter_context(context)
            metrics = scoring.evaluate(trainer, model, prepared=bound and self._chunks is not None)
        return scoring.score_from(metrics, self._metric)

    def _make_scorer(self, model: nn.Module) -> Trainer:
        reference = model if self._reference is None else self._reference
        footprint = Footprint(reference, scoring.FOREIGN)
        try:
            self._scorer = self._source.make(reference)
        finally:
            footprint.erase()
        return self._scorer

    def at_safe_points(self, hook: Callable[[], None], wanted: Callable[[], bool]) -> None:
        if self._chunks is not None:
            self._chunks.at_safe_points(hook, wanted)

    @property
    def goes_on_here(self) -> bool:  # type: ignore[override]
        return self._chunks is None or self._chunks.goes_on_here

    def optimizers(self) -> Iterator[torch.optim.Optimizer]:
        if self._partitioned is not None:
            return iter((self._partitioned.handle.optimizer,))
        return iter(() if self._chunks is None else (self._chunks.optimizer,))

    def state_dict(self) -> dict[str, Any]:
        if self._chunks is None:
            return {}
        holder = self._chunks.optimizer_state if self._partitioned is None else self._partitioned.handle.state_dict
        return {"optimizer": holder(), **self._chunks.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self._chunks is None:
            return
        if self._partitioned is None:
            self._chunks.load_optimizer_state(state["optimizer"])
        else:
            self._partitioned.handle.load_state_dict(state["optimizer"])
        self._chunks.load_state_dict(state)

    def patch_loss(self, patch: LossPatch) -> None:
        """As in the protocol; `batch` is the dict of inputs, labels among them."""
        if self._chunks is not None:
            self._chunks.patches.append(patch)

    def before_optimizer_step(self, hook: Callable[[], None]) -> None:
        if self._partitioned is not None:
            self._partitioned.handle.before_step(hook)
        elif self._chunks is not None:
            self._handles.append(self._chunks.optimizer.register_step_pre_hook(lambda *_: hook()))

    def after_optimizer_step(self, hook: Callable[[], None]) -> None:
        if self._partitioned is not None:
            self._partitioned.handle.after_step(hook)
        elif self._chunks is not None:
            self._handles.append(self._chunks.optimizer.register_step_post_hook(lambda *_: hook()))

    def gradient(self, parameter: nn.Parameter) -> torch.Tensor | None:
        return parameter.grad if self._partitioned is None else self._partitioned.handle.gradient(parameter)

    @contextlib.contextmanager
    def whole_parameters(self, modify: bool = False) -> Iterator[None]:
        if self._partitioned is None:
            yield
            return
        with self._partitioned.handle.whole_parameters(modify):
            yield
