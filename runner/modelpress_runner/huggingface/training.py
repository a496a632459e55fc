"""Training and scoring of a task, by the evaluator for plain PyTorch.

The loop is our own and not transformers' Trainer: a Trainer would make its optimizer, its schedule and the order of its
data anew for every call of train(), where an own loop simply goes on with them, bit for bit.

Processes that train together share the rows of each batch: rank r of n has every nth of them, from the rth on. It adds
its gradients to the sum by its share of the rows, so what comes out is the gradient of the whole batch (of the in-batch
negatives, of each rank's own part).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import distributed, nn
from transformers import PreTrainedModel

from modelpress.api.v1alpha1 import HuggingFace
from modelpress_runner.evaluators.base import Score
from modelpress_runner.evaluators.torch_evaluator import TorchEvaluator
from modelpress_runner.huggingface.device import on_accelerator
from modelpress_runner.huggingface.tasks.base import Batch, Task
from modelpress_runner.inputs.gather import Inputs
from modelpress_runner.runtime import distributed as ranks

MAX_NORM = 1.0  # of all gradients together, as is usual for transformers


class TaskEvaluator(TorchEvaluator):
    """Trains a task on data.train and scores it on data.validation.

    Args:
        spec: batch size, learning rate with its schedule, and weight decay.
        task: the task.
        inputs: its data.

    Raises:
        InvalidSpecError: the data does not fit the task.
    """

    train_needs = "spec.data.train"
    evaluate_needs = "spec.data.validation"

    def __init__(self, spec: HuggingFace, task: Task, inputs: Inputs) -> None:
        self.task, self._spec = task, spec
        train, validation = inputs.data.get("train"), inputs.data.get("validation")
        self._train = None if train is None else task.examples(train)
        self._validation = None if validation is None else task.examples(validation)

        def optimizer(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
            given = list(parameters)
            groups = [
                {"params": [each for each in given if each.ndim >= 2], "weight_decay": spec.weight_decay},
                {"params": [each for each in given if each.ndim < 2], "weight_decay": 0.0},
            ]
            return torch.optim.AdamW([group for group in groups if group["params"]], lr=spec.learning_rate)

        super().__init__(
            training_func=None if self._train is None else self._loop,
            optimizers=optimizer,
            training_step=lambda batch, model: task.loss(model, batch),
            dummy_input=task.dummy_input(),
            evaluating_func=None if self._validation is None else self._score,
            # The loop adds gradients up itself: shares differ in size, and no loss asks for some weights (a pooler's).
            parallel=False,
        )

    def train(self, max_steps: int | None = None, max_epochs: int | None = None) -> None:
        with on_accelerator(self.model, self.optimizers()):
            super().train(max_steps, max_epochs)

    @contextlib.contextmanager
    def placed(self, model: nn.Module) -> Iterator[None]:
        with on_accelerator(model):
            yield

    def _loop(
        self, model: nn.Module, optimizer: Any, step: Any, _: Any, max_steps: int | None, max_epochs: int | None
    ) -> None:
        assert self._train is not None
        done = epoch = 0
        schedule = self._schedule(optimizer, self._steps(max_steps, max_epochs))
        while (max_epochs is None or epoch < max_epochs) and (max_steps is None or done < max_steps):
            for batch, share in self._shuffled(self._train):
                optimizer.zero_grad()
                (step(batch, model) * share).backward()
                _add_up(model)
                nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
                optimizer.step()
                if schedule is not None:
                    schedule.step()
                done += 1
                if done == max_steps:
                    return
            epoch += 1

    def _steps(self, max_steps: int | None, max_epochs: int | None) -> int:
        """Optimizer steps of a training with these limits, of which there is one at least."""
        assert self._train is not None
        in_epochs = max_epochs and max_epochs * math.ceil(len(self._train) / self._spec.batch_size)
        return min(limit for limit in (max_steps, in_epochs) if limit is not None)

    def _schedule(self, optimizer: Any, steps: int) -> torch.optim.lr_scheduler.LambdaLR | None:
        """What moves the learning rates, where they move."""
        shape, warm = self._spec.learning_rate_schedule, self._spec.warmup_ratio
        if shape == "constant" and not warm:
            return None
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, steps, shape, warm))

    def _shuffled(self, examples: Sequence[Any]) -> Iterator[tuple[Batch, float]]:
        """This rank's part of each batch, and what share of it that is; the order is random.

        The generator is torch's own, which checkpoints save. A rank that gets no row of a small last batch takes
        the first one, with a share of 0: all ranks step together.
        """
        order = ranks.broadcast_object(torch.randperm(len(examples)).tolist())
        for first in range(0, len(order), self._spec.batch_size):
            rows = order[first : first + self._spec.batch_size]
            own = rows[ranks.rank() :: ranks.world_size()]
            yield self.task.batch([examples[index] for index in own or rows[:1]]), len(own) / len(rows)

    def _score(self, model: nn.Module) -> Score:
        assert self._validation is not None
        examples = self._validation
        # Only the module itself takes texts of any length: a program was traced with the example inputs.
        whole = not isinstance(model, PreTrainedModel)
        batches = (
            self.task.batch(examples[first : first + self._spec.batch_size], whole)
            for first in range(0, len(examples), self._spec.batch_size)
        )
        # A program has constants of its own beside its weights, and stays where it is.
        with contextlib.nullcontext() if whole else on_accelerator(model):
            return self.task.score(model, batches)


def rate(step: int, total: int, schedule: str, warmup_ratio: float) -> float:
    """What the greatest learning rate is multiplied by in the step of this number, the first being 0."""
    warm = round(warmup_ratio * total)
    if step < warm:
        return (step + 1) / warm
    left = (total - step) / max(total - warm, 1)
    if schedule == "linear":
        return max(left, 0.0)
    return max((1 - math.cos(math.pi * left)) / 2, 0.0) if schedule == "cosine" else 1.0


def _add_up(model: nn.Module) -> None:
    """The sum of all ranks' gradients, in place on every rank."""
    if not ranks.is_distributed():
        return
    gradients = [each.grad for each in model.parameters() if each.grad is not None]
    flat = torch.cat([each.flatten() for each in gradients])
    distributed.all_reduce(flat)
    for gradient, part in zip(gradients, flat.split([each.numel() for each in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def calibration_batches(spec: HuggingFace, task: Task, inputs: Inputs) -> list[dict[str, torch.Tensor]] | None:
    """Batches of model inputs from data.calibration, all as long as the example inputs, whether the rows have labels or
    not; None: there is none."""
    rows = inputs.data.get("calibration")
    if rows is None:
        return None
    examples = task.unlabeled(rows)
    return [
        task.inputs(examples[first : first + spec.batch_size]) for first in range(0, len(examples), spec.batch_size)
    ]
