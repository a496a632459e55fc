"""What a training loop of the user's own trains with: its optimizers and schedulers, watched, and in checkpoints."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from modelpress_runner.engine.checkpoint import Checkpoint, Checkpointer, GeneratorStates, Within, copies, other_buffers
from modelpress_runner.engine.outcome import RecipeOutcome
from modelpress_runner.errors import InvalidModelError
from modelpress_runner.evaluators.optimizer_hooks import before_step, in_front_of_step
from modelpress_runner.evaluators.optimizer_state import load_optimizer, plain
from modelpress_runner.in_process.loop import Loop
from modelpress_runner.runtime import distributed as ranks
from modelpress_runner.runtime import rng
from modelpress_runner.runtime import user_rng as generators

NOT_RESUMABLE = (
    "no checkpoints were taken of the loop, so an attempt that is interrupted begins anew: give prepare_compression() "
    "the optimizers, and go through compression.epochs(n)"
)


class LoopState:
    """Optimizers and schedulers of a loop.

    Args:
        optimizers: all of them, or none: then nothing is watched or saved.
        schedulers: theirs.
    """

    def __init__(self, optimizers: list[Any], schedulers: list[Any]) -> None:
        self._optimizers, self._schedulers = optimizers, schedulers
        self._checkpointer: Checkpointer | None = None
        self._roots: Mapping[str, Any] = {}
        self._cut = False
        self._resumed_at = self._saved = 0
        self._began = time.perf_counter()

    @classmethod
    def of(cls, model: nn.Module, optimizers: Any, schedulers: Any) -> LoopState:
        """What prepare_compression was given.

        Raises:
            InvalidModelError: something is no optimizer or scheduler, or an optimizer holds nothing of the model.
        """
        made = cls(_list(optimizers), _list(schedulers))
        own = {id(parameter) for parameter in model.parameters()} if isinstance(model, nn.Module) else set()
        for optimizer in made._optimizers:
            if not isinstance(optimizer, torch.optim.Optimizer):
                raise InvalidModelError(
                    f"prepare_compression() was given a {type(optimizer).__name__} among its optimizers; give the "
                    "torch.optim.Optimizer objects that the loop steps"
                )
            held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
            if own and not held & own:
                raise InvalidModelError(
                    f"the {type(optimizer).__name__} holds no parameter of the model; make it from model.parameters()"
                )
        for scheduler in made._schedulers:
            if not callable(getattr(scheduler, "state_dict", None)) or not hasattr(scheduler, "load_state_dict"):
                raise InvalidModelError(
                    f"prepare_compression() was given a {type(scheduler).__name__} among its lr_schedulers; give what "
                    "has state_dict and load_state_dict"
                )
        if made._schedulers and not made._optimizers:
            raise InvalidModelError("prepare_compression() was given lr_schedulers but no optimizers; give them too")
        return made

    @property
    def optimizers(self) -> list[torch.optim.Optimizer]:
        """The optimizers that step, inside of what wraps them."""
        return [_inner(each) for each in self._optimizers]

    @property
    def schedulers(self) -> list[Any]:
        """The schedulers, as they were given."""
        return list(self._schedulers)

    def watch(self, before: Callable[[], None], collect: Callable[[], None]) -> list[Any]:
        """Has others called from the optimizers' steps, until the handles are removed.

        Args:
            before: in front of every step.
            look: once the first optimizer has its gradients, unless it skips the step.
        """
        handles: list[Any] = [in_front_of_step(each, before) for each in self.optimizers]
        return handles + [before_step(each, collect) for each in self.optimizers[:1]]

    def keep_in(self, checkpointer: Checkpointer, roots: Mapping[str, Any]) -> None:
        """Saves checkpoints from now on, if there are optimizers.

        Args:
            checkpointer: where.
            roots: the user's objects by name: random number generators of his own are looked for behind them.
        """
        self._checkpointer, self._roots = checkpointer, roots

    def resume(self, loop: Loop) -> int:
        """Puts the loop where the last checkpoint left it, if there is one; the epoch to go on with."""
        if self._checkpointer is None or not self._optimizers:
            return 0
        self._cut = True
        checkpoint, note = self._checkpointer.load()
        if note is not None:
            loop.context.notes.append(note)
        if checkpoint is None:
            return 0
        checkpoint.apply_to(loop.context)
        for optimizer, saved in zip(self._optimizers, checkpoint.trainer["optimizers"], strict=True):
            load_optimizer(optimizer, saved)
        for scheduler, saved in zip(self._schedulers, checkpoint.trainer["schedulers"], strict=True):
            scheduler.load_state_dict(copy.copy(saved))
        named = dict(loop.model.named_parameters())
        assert checkpoint.within is not None
        for name, gradient in checkpoint.within.gradients.items():
            named[name].grad = gradient.to(named[name].device)
        loop.restore(checkpoint.trainer["loop"])
        self._resumed_at = loop.steps
        states = checkpoint.generators_of(ranks.rank())
        rng.restore(states.everywhere)
        missing = generators.restore(self._roots, states.own)
        if missing:
            loop.context.notes.append(
                f"the random number generators {', '.join(missing)} were not found again when the run was resumed"
            )
        self._began = time.perf_counter() - checkpoint.seconds
        return loop.epochs

    def save(self, loop: Loop) -> None:
        """Saves a checkpoint behind an epoch."""
        if not self._cut or self._checkpointer is None:
            return
        context = loop.context
        named = loop.model.named_parameters()
        gradients = {name: p.grad.detach().to("cpu", copy=True) for name, p in named if p.grad is not None}
        states = GeneratorStates(rng.capture(), generators.save(self._roots)).to_plain()
        self._checkpointer.save(
            Checkpoint(
                step=0,
                within=Within(loop.steps, 0, 0, 0, gradients, []),
                model=copies(loop.model.state_dict()),
                buffers=copies(other_buffers(loop.model)),
                masks=context.masks,
                edits=context.edits,
                trainer={
                    "optimizers": [plain(each.state_dict()) for each in self._optimizers],
                    "schedulers": [plain(each.state_dict()) for each in self._schedulers],
                    "loop": loop.progress(),
                },
                generators=ranks.all_gather_object(states),
                notes=list(context.notes),
                steps=(loop.steps, loop.steps),
                seconds=time.perf_counter() - self._began,
            )
        )
        self._checkpointer.made(0, loop.steps - self._resumed_at)
        self._saved += 1

    def wait(self) -> None:
        """Returns when the last checkpoint is written; raises what the store raised."""
        if self._checkpointer is not None:
            self._checkpointer.wait()

    def finish(self, outcome: RecipeOutcome) -> None:
        """Says in the outcome how many steps were made, and whether they could have been resumed."""
        if self._cut and self._checkpointer is not None:
            outcome.executed = max(outcome.steps, self._checkpointer.executed())
            outcome.checkpoints = self._saved
        elif self._checkpointer is not None:
            outcome.notes.append(NOT_RESUMABLE)


def _inner(optimizer: Any) -> torch.optim.Optimizer:
    """The optimizer that a wrapper, such as accelerate's, passes its steps on to."""
    while isinstance(getattr(optimizer, "optimizer", None), torch.optim.Optimizer):
        optimizer = optimizer.optimizer
    inner: torch.optim.Optimizer = optimizer
    return inner


def _list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]
