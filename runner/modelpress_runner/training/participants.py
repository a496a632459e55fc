"""What rides on a training, whoever runs its loop: an evaluator's training function, or a loop of the user's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from modelpress_runner.edits.masks import Masks
from modelpress_runner.errors import CompressionError
from modelpress_runner.training.fingerprint import fingerprint


class Participant:
    """One thing that goes along with a training. Every method may be left out; in here each does nothing.

    The loss contract: `loss` is called once for each call of the training step, with the loss that will go backward,
    a scalar, before any factor of mixed precision; where gradients are accumulated it is the loss of that micro batch
    as the user's code has it, divided or not, so what is added must be divided alike.
    """

    def attach(self, model: nn.Module) -> None:
        """The training of `model` begins; it is bound, and in no DistributedDataParallel."""

    def detach(self) -> None:
        """The training is over, however it ended."""

    def loss(self, loss: torch.Tensor, batch: Any) -> torch.Tensor:
        """The loss that goes backward in place of `loss`."""
        return loss

    def before_step(self) -> None:
        """The first optimizer is about to step, with its gradients there."""

    def after_step(self) -> None:
        """An optimizer has stepped."""

    def touches(self) -> str | None:
        """What the coming `after_step` does with parameters: "reads" them, "writes" them, or neither.

        Some evaluators have to gather them from all ranks first; others do not ask.
        """
        return None

    def finish(self) -> None:
        """The training's last step is made; raises CompressionError if it cannot have worked."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs: tensors and plain data."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where `state_dict` was."""


class MaskKeeper(Participant):
    """Sets masked weights to zero: at the begin, after every step and at the end."""

    def __init__(self, model: nn.Module, masks: Masks) -> None:
        self._pairs: list[tuple[nn.Parameter, torch.Tensor]] = []  # with True where a weight is pruned
        for module_name, by_parameter in masks.items():
            module = model.get_submodule(module_name)
            for name, mask in by_parameter.items():
                self._pairs.append((getattr(module, name), mask == 0))

    def __bool__(self) -> bool:
        return bool(self._pairs)

    def attach(self, model: nn.Module) -> None:
        self.apply()

    def touches(self) -> str | None:
        return "writes" if self._pairs else None

    def after_step(self) -> None:
        self.apply()

    def finish(self) -> None:
        self.apply()

    @torch.no_grad()
    def apply(self) -> None:
        """Sets every masked weight to zero, wherever training has moved the parameter."""
        for number, (parameter, gone) in enumerate(self._pairs):
            if gone.device != parameter.device:
                gone = gone.to(parameter.device)
                self._pairs[number] = (parameter, gone)
            # .data: another loss may still be on its way back through the parameter, and nothing changes for it.
            parameter.data.masked_fill_(gone, 0)


class MovementCheck(Participant):
    """Finds out whether a training moves any weight at all, by fingerprints of the weights that it began with.

    What counts is that a step moved one: weights that are put back in the end, the best ones say, are a result.

    Args:
        why_not: the error's message, once it is clear that nothing moved.
    """

    def __init__(self, why_not: Callable[[MovementCheck], str]) -> None:
        self._why_not = why_not
        self._model: nn.Module | None = None
        self._before: dict[str, torch.Tensor] | None = None
        self._next = 1
        self.steps = 0
        self.trainable = True

    def attach(self, model: nn.Module) -> None:
        self._model = model
        named = {name: value for name, value in model.named_parameters() if value.requires_grad}
        self._before = {name: fingerprint(value) for name, value in named.items()}
        self.trainable = bool(named)

    def detach(self) -> None:
        self._before = self._model = None

    @property
    def moved(self) -> bool:
        """Whether a weight has moved."""
        return self._before is None

    def touches(self) -> str | None:
        return "reads" if self._before is not None and self.steps + 1 >= self._next else None

    def after_step(self) -> None:
        self.steps += 1
        if self._before is not None and self.steps >= self._next:
            self._next = 2 * self.steps  # a warm-up may begin with many steps at a rate of zero
            self._look()

    def finish(self) -> None:
        if self._before is None:
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
        for name, value in self._before.items():
            if int(fingerprint(now[name])) != int(value):
                self._before = None
                return


class FiniteCheck(Participant):
    """Refuses a training that ends with a weight that is NaN or infinite."""

    def __init__(self) -> None:
        self._model: nn.Module | None = None

    def attach(self, model: nn.Module) -> None:
        self._model = model

    def finish(self) -> None:
        assert self._model is not None
        check_finite(self._model)


class Participants:
    """Several of them, in their order.

    A loss goes through all of them, the first one's first; so do steps.
    """

    def __init__(self, members: Sequence[Participant]) -> None:
        self.members = tuple(members)
        self._attached: list[Participant] = []

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

    def loss(self, loss: torch.Tensor, batch: Any) -> torch.Tensor:
        """As Participant.loss, one after another."""
        for each in self.members:
            loss = each.loss(loss, batch)
        return loss

    def before_step(self) -> None:
        """As Participant.before_step."""
        for each in self.members:
            each.before_step()

    def touches(self) -> str | None:
        """The most that one of them does."""
        wanted = {each.touches() for each in self.members}
        return "writes" if "writes" in wanted else "reads" if "reads" in wanted else None

    def after_step(self) -> None:
        """As Participant.after_step."""
        for each in self.members:
            each.after_step()

    def finish(self) -> None:
        """As Participant.finish."""
        for each in self.members:
            each.finish()

    def state_dict(self) -> list[dict[str, Any]]:
        """Everybody's state."""
        return [each.state_dict() for each in self.members]

    def load_state_dict(self, state: list[dict[str, Any]]) -> None:
        """As Participant.load_state_dict."""
        for each, saved in zip(self.members, state, strict=True):
            each.load_state_dict(saved)


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
