"""What rides on a training, whoever runs its loop: an evaluator's training function, or a loop of the user's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from modelpress_runner.edits.masks import Masks
from modelpress_runner.errors import CompressionError
from modelpress_runner.evaluators.parameter_groups import ParameterGroup
from modelpress_runner.training.calls import Call
from modelpress_runner.training.fingerprint import fingerprint


class Participant:
    """One thing that goes along with a training. Every method may be left out; in here each does nothing.

    In order: parameter_groups, attach, begin unless the training goes on from a checkpoint, then for every loss `loss`
    and around every step before_step and after_step, finish behind the last one, and detach however it ended.

    The loss contract. `loss` is called once for each loss that goes backward; what it gives goes backward instead.

    - The loss is a mean over its batch, a scalar, before any factor of mixed precision; what comes back is in the same
      measure. Factors come afterwards and hold for both: a GradScaler's or DeepSpeed's scale, the average over
      processes.
    - Gradients that are accumulated over n batches: the loss is that of one of them, undivided. Lightning
      (accumulate_grad_batches), Transformers (gradient_accumulation_steps; with num_items_in_batch each batch's own
      share of the items is taken out for the call and put back behind it) and DeepSpeed divide afterwards, so a term
      that is added to each of n losses weighs once and not n times. A training function or loop of the user's own must
      divide what its training step, or on_after_compute_loss, gives back, as in (training_step(batch, model) /
      n).backward(): where it divides before, what is added weighs n times as much.
    - Several losses in one step, of several optimizers or parts of the model: each goes through `loss`, and has what is
      added to it.
    """

    takes_teacher_output = False  # it reads Call.teacher_output

    def parameter_groups(self, model: nn.Module) -> list[ParameterGroup]:
        """Parameters of its own that train along, as an optimizer takes them: [{"params": [...], "lr": 0.1}].

        Asked once, before the training is bound to `model`. They join the user's first optimizer and follow its
        schedule; options that are left out are the optimizer's. They move to the device of the losses, their gradients
        are averaged over processes and are gone after each step, and checkpoints keep them. Where the optimizer takes
        none (DeepSpeed from ZeRO stage 1 on or in 16 bits, LBFGS, a loop that did not hand over its optimizers) the
        training is an InvalidModelError.
        """
        return []

    def attach(self, model: nn.Module) -> None:
        """The training of `model` is bound, and in no DistributedDataParallel."""

    def begin(self) -> None:
        """The training begins at its first step. Not called where it goes on within, from a checkpoint."""

    def detach(self) -> None:
        """The training is over, however it ended."""

    def loss(self, call: Call | None, loss: torch.Tensor) -> torch.Tensor:
        """The loss that goes backward in place of `loss`.

        Args:
            call: the call of the model that the loss comes from, taken by a hook on the model itself; None: there was
                none, as where a training step calls parts of the model only.
            loss: as the contract says.
        """
        return loss

    def before_step(self, step: int) -> None:
        """The first optimizer is about to make its step number `step`, from 1, with its gradients there."""

    def after_step(self, step: int) -> None:
        """An optimizer has stepped; the first one's last step was number `step`. Several optimizers make several
        calls."""

    def touches(self, step: int) -> str | None:
        """What the coming `after_step` does with parameters: "reads" them, "writes" them, or neither.

        Some evaluators have to gather them from all ranks first; others do not ask.
        """
        return None

    def finish(self) -> None:
        """The training's last step is made; raises CompressionError if it cannot have worked."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs besides the model, the masks and its own parameters: tensors and plain data."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where `state_dict` was."""


class MaskKeeper(Participant):
    """Sets masked weights to zero: at the begin, after every step and at the end.

    Args:
        model: what trains.
        masks: gives those that are in force; others from one moment to the next, if somebody prunes meanwhile.
    """

    def __init__(self, model: nn.Module, masks: Callable[[], Masks]) -> None:
        self._model, self._masks = model, masks
        self._known: Masks | None = None
        self._pairs: list[tuple[nn.Parameter, torch.Tensor]] = []  # with True where a weight is pruned

    def attach(self, model: nn.Module) -> None:
        self.apply()

    def touches(self, step: int) -> str | None:
        return "writes" if self._masks() else None

    def after_step(self, step: int) -> None:
        self.apply()

    def finish(self) -> None:
        self.apply()

    def apply(self) -> None:
        """Sets every masked weight to zero, wherever training has moved the parameter."""
        masks = self._masks()
        if masks is not self._known:
            self._known, self._pairs = masks, [(parameter, mask == 0) for parameter, mask in masked(self._model, masks)]
        for number, (parameter, gone) in enumerate(self._pairs):
            if gone.device != parameter.device:
                gone = gone.to(parameter.device)
                self._pairs[number] = (parameter, gone)
            # .data: another loss may still be on its way back through the parameter, and nothing changes for it.
            parameter.data.masked_fill_(gone, 0)


class MovementCheck(Participant):
    """Finds out whether a training moves any weight at all.

    It keeps fingerprints of the weights that the training began with, or the weights themselves, until one has moved.
    What counts is that a step moved one: weights that are put back in the end, the best ones say, are a result. Weights
    that are masked by then do not count: pruning is no movement.

    Args:
        why_not: the error's message, once it is clear that nothing moved.
        masks: gives those that are in force.
        must: whether a training without any step is an error.
        masks_grow: whether something on the training prunes. Then it needs the weights: no fingerprint tells what is
            pruned from what has moved.
    """

    def __init__(
        self,
        why_not: Callable[[MovementCheck], str],
        masks: Callable[[], Masks] = dict,
        must: bool = True,
        masks_grow: bool = False,
    ) -> None:
        self._why_not, self._masks, self._must, self._masks_grow = why_not, masks, must, masks_grow
        self._model: nn.Module | None = None
        self._before: dict[str, torch.Tensor] | None = None
        self._next = 1
        self.steps = 0
        self.trainable = True

    def attach(self, model: nn.Module) -> None:
        self._model = model
        named = {name: value for name, value in model.named_parameters() if value.requires_grad}
        if self._masks_grow:
            self._before = {name: value.detach().clone() for name, value in named.items()}
        else:  # what is masked is zero whenever it is looked at
            self._before = {name: fingerprint(value) for name, value in named.items()}
        self.trainable = bool(named)

    def detach(self) -> None:
        self._before = self._model = None

    @property
    def moved(self) -> bool:
        """Whether a weight has moved."""
        return self._before is None

    def touches(self, step: int) -> str | None:
        return "reads" if self._before is not None and self.steps + 1 >= self._next else None

    def after_step(self, step: int) -> None:
        self.steps += 1
        if self._before is not None and self.steps >= self._next:
            self._next = 2 * self.steps  # a warm-up may begin with many steps at a rate of zero
            self._look()

    def finish(self) -> None:
        if self._before is None or not (self.steps or self._must):
            return
        self._look()
        if self._before is not None:
            raise CompressionError(self._why_not(self))

    def state_dict(self) -> dict[str, Any]:
        return {"moved": self.moved}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["moved"]:
            self._before = None

    def _look(self) -> None:
        assert self._model is not None
        assert self._before is not None
        now = dict(self._model.named_parameters())
        if self._masks_grow:
            gone = {id(parameter): mask == 0 for parameter, mask in masked(self._model, self._masks())}
            moved = any(_differ(now[name], value, gone.get(id(now[name]))) for name, value in self._before.items())
        else:
            moved = any(int(fingerprint(now[name])) != int(value) for name, value in self._before.items())
        if moved:
            self._before = None


class FiniteCheck(Participant):
    """Refuses a training that ends with a weight that is NaN or infinite."""

    def __init__(self) -> None:
        self._model: nn.Module | None = None

    def attach(self, model: nn.Module) -> None:
        self._model = model

    def finish(self) -> None:
        assert self._model is not None
        check_finite(self._model)


def masked(model: nn.Module, masks: Masks) -> Iterator[tuple[nn.Parameter, torch.Tensor]]:
    """Every masked parameter with its mask."""
    for module_name, by_parameter in masks.items():
        module = model.get_submodule(module_name)
        for name, mask in by_parameter.items():
            yield getattr(module, name), mask


def _differ(now: nn.Parameter, before: torch.Tensor, gone: torch.Tensor | None) -> bool:
    value, before = now.detach(), before.to(now.device)
    if gone is not None:
        gone = gone.to(now.device)
        value, before = value.masked_fill(gone, 0), before.masked_fill(gone, 0)
    return not torch.equal(value, before)


class Participants:
    """Several of them, in their order.

    A loss goes through all of them, the first one's first; so do steps.

    Attributes:
        own: the parameters of all of them that are no part of the model, once they were asked for.
    """

    def __init__(self, members: Sequence[Participant]) -> None:
        self.members = tuple(members)
        self._attached: list[Participant] = []
        self._own: list[list[nn.Parameter]] = [[] for _ in self.members]
        self.own: list[nn.Parameter] = []
        self._before, self._touching, self._after = (
            [each for each in self.members if getattr(type(each), name) is not getattr(Participant, name)]
            for name in ("before_step", "touches", "after_step")
        )

    @property
    def change_losses(self) -> bool:
        """Whether one of them does something to losses."""
        return any(type(each).loss is not Participant.loss for each in self.members)

    def parameter_groups(self, model: nn.Module) -> list[ParameterGroup]:
        """As Participant.parameter_groups, of all."""
        groups = [each.parameter_groups(model) for each in self.members]
        self._own = [[parameter for group in each for parameter in group["params"]] for each in groups]
        self.own = [parameter for each in self._own for parameter in each]
        return [group for each in groups for group in each]

    def __iter__(self) -> Iterator[Participant]:
        return iter(self.members)

    def attach(self, model: nn.Module) -> None:
        """As Participant.attach, for all."""
        for each in self.members:
            self._attached.append(each)
            each.attach(model)

    def detach(self) -> None:
        """As Participant.detach, in the opposite order."""
        while self._attached:
            self._attached.pop().detach()

    def begin(self) -> None:
        """As Participant.begin."""
        for each in self.members:
            each.begin()

    def loss(self, call: Call | None, loss: torch.Tensor) -> torch.Tensor:
        """As Participant.loss, one after another."""
        for each in self.members:
            loss = each.loss(call, loss)
        return loss

    def before_step(self, step: int) -> None:
        """As Participant.before_step."""
        for each in self._before:
            each.before_step(step)

    def touches(self, step: int) -> str | None:
        """The most that one of them does."""
        wanted = [each.touches(step) for each in self._touching]
        return "writes" if "writes" in wanted else "reads" if "reads" in wanted else None

    def after_step(self, step: int) -> None:
        """As Participant.after_step."""
        for each in self._after:
            each.after_step(step)

    def finish(self) -> None:
        """As Participant.finish."""
        for each in self.members:
            each.finish()

    def state_dict(self) -> list[dict[str, Any]]:
        """Everybody's state and parameters."""
        return [
            {
                "state": each.state_dict(),
                "parameters": [parameter.detach().to("cpu", copy=True) for parameter in own],
                "gradients": [None if p.grad is None else p.grad.detach().to("cpu", copy=True) for p in own],
            }
            for each, own in zip(self.members, self._own, strict=True)
        ]

    @torch.no_grad()
    def load_state_dict(self, state: list[dict[str, Any]]) -> None:
        """As Participant.load_state_dict."""
        for each, own, saved in zip(self.members, self._own, state, strict=True):
            for parameter, value, gradient in zip(own, saved["parameters"], saved["gradients"], strict=True):
                parameter.data.copy_(value)
                parameter.grad = None if gradient is None else gradient.to(parameter.device, copy=True)
            each.load_state_dict(saved["state"])


def check_masks(model: nn.Module, masks: Masks, after: str) -> None:
    """Raises CompressionError if a masked weight is not zero any more, or has another shape, `after` a stage."""
    for module_name, by_parameter in masks.items():
        for name, mask in by_parameter.items():
            full = f"{module_name}.{name}"
            try:
                parameter = getattr(model.get_submodule(module_name), name)
            except AttributeError:
                raise CompressionError(f"after {after} the masked {full} is no longer in the model") from None
            if parameter.shape != mask.shape:
                raise CompressionError(
                    f"after {after} {full} has shape {tuple(parameter.shape)}, its mask {tuple(mask.shape)}"
                )
            alive = int(torch.count_nonzero(parameter.detach().masked_fill(mask.to(parameter.device, torch.bool), 0)))
            if alive:
                raise CompressionError(f"after {after} {alive} pruned weights of {full} are no longer zero")


def check_finite(model: nn.Module) -> None:
    """Raises CompressionError if a parameter is NaN or infinite."""
    for name, value in model.named_parameters():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise CompressionError(f"training made {name} NaN or infinite; lower the learning rate or prune less")
