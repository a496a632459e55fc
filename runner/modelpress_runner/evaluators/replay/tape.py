"""What a user's training function did, so that it can be called again and go on where a checkpoint was.

The function is called once, for the whole of a training. While it runs, what goes through our hands is noted: each call
of its training step (a checksum of the batch, the loss that it got), each optimizer step, each new scale of mixed
precision, and what the random number generators were at wherever its own code drew between two of these. To go on from
a checkpoint the function is called again, with the same seeds. Until the checkpoint's step its training step gives back
the loss that was noted, without a forward pass, and no optimizer moves anything, so its loaders, loops, schedulers and
counters go through the same motions in next to no time. Then whoever owns the tape puts the state back, and training
goes on. Another batch, another order or another draw than was noted ends the replay (Diverged): nothing is ever
continued that is not the same training.

Where the function looks at the weights themselves (looks.py) they are kept, and shown to it again in the replay.
"""

from __future__ import annotations

import contextlib
import functools
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from modelpress_runner.evaluators.optimizer_hooks import around, stepped_within
from modelpress_runner.evaluators.replay import looks, recorded
from modelpress_runner.evaluators.replay.draws import Draws, changed, checksum
from modelpress_runner.evaluators.replay.recorded import Recorded, digest
from modelpress_runner.process.stopping import Stopped

MOST_LOOKS = 10  # that are kept whatever the training's length; besides, one for every so many steps
STEPS_PER_LOOK = 10
_SCALED = ("step", "unscale_", "update")  # of a GradScaler


class Diverged(Stopped):
    """A training that was called again does not do what it did before; passes through training loops as Stopped.

    `everywhere`: whether all ranks know.
    """

    def __init__(self, why: str, everywhere: bool = False) -> None:
        super().__init__(why)
        self.everywhere = everywhere


@dataclass
class Past:
    """What a tape begins with when a training goes on.

    Attributes:
        events: all that was noted until the checkpoint, of this rank.
        weights: gives the kept weights number n, by name.
    """

    events: list[dict[str, Any]]
    weights: Callable[[int], dict[str, torch.Tensor]]


@dataclass
class Part:
    """What was noted since the last part, as plain data and tensors."""

    events: list[dict[str, Any]] = field(default_factory=list)
    weights: dict[int, dict[str, torch.Tensor]] = field(default_factory=dict)


class Tape:
    """Notes, or plays back, one call of a training function.

    Args:
        model: the bound model.
        draws: the random number generators.
        noting: False: steps are counted and nothing else is done.
        past: what to play back first.
        after_step: called after each step of an optimizer that was made, live ones only.
        before_loss: called before each live call of the training step.
        put_back: called when the past is played: puts back the state at its end.
        parts: whether the model's weights are there in parts only, so that what its code sees of them is not kept.

    Attributes:
        live: whether the training trains, in place of being played back.
        steps: steps of the first optimizer so far, those that a scaler skipped included.
        closed: why what comes from now on cannot be played back, if it cannot.
    """

    def __init__(
        self,
        model: nn.Module,
        draws: Draws | None = None,
        *,
        noting: bool = False,
        past: Past | None = None,
        after_step: Callable[[], None] = lambda: None,
        before_loss: Callable[[], None] = lambda: None,
        put_back: Callable[[], None] = lambda: None,
        parts: bool = False,
    ) -> None:
        self._model, self._draws, self._noting = model, draws, noting and draws is not None
        self._parts = parts
        self._past, self._played = past, 0
        self._after_step, self._before_loss, self._put_back = after_step, before_loss, put_back
        self.live = past is None
        self.steps = 0
        self.closed: str | None = None
        self._noted: list[dict[str, Any]] = []
        self._taken = 0 if past is None else len(past.events)
        self._seen: dict[str, Any] | None = None  # the generators when the last event was over
        self._inside = 0
        self._weights: dict[int, dict[str, torch.Tensor]] = {}
        self._looks, self._shown, self._fresh = 0, -1, True
        self._moved = 0  # optimizer steps of all optimizers
        self._scaled: dict[str, Any] = {}  # the event of the GradScaler.step() that is under way
        self._known: set[int] = set()
        self._in_closure = False  # of a step that is played back

    @property
    def position(self) -> int:
        """How many events there are so far."""
        return self._taken + len(self._noted)

    def take(self) -> Part:
        """What was noted since it was last asked, which need not be kept here any longer."""
        events = [_saved(event) for event in self._noted]
        part = Part(events, self._weights)
        self._taken += len(events)
        self._noted, self._weights = [], {}
        return part

    def close(self, why: str) -> None:
        """Notes nothing any more."""
        if self.closed is None and self._noting:
            self.closed = why
            self._weights = {}

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """What happens inside is none of the user's doing."""
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1

    @contextlib.contextmanager
    def running(
        self, models: Sequence[nn.Module], optimizers: Sequence[Any], framework: str | None = None
    ) -> Iterator[None]:
        """Around the call of the training function.

        Args:
            models: the model as the function gets it, and what is inside of it.
            optimizers: as the function gets them.
            framework: folder of a framework's code, which may walk over parameters.
        """
        with contextlib.ExitStack() as undone:
            for number, optimizer in enumerate(optimizers):
                undone.enter_context(around(optimizer, functools.partial(self._step_of, number)))
            undone.enter_context(self._scalers())
            if self._noting:
                self._known = {id(each) for one in optimizers for each in (one, *stepped_within(one))}
                handle = register_optimizer_step_pre_hook(self._foreign)
                undone.callback(handle.remove)
                undone.enter_context(looks.watched(list(models), self._look, framework))
            yield
        if not self.live:
            raise Diverged("it ended before the step that it was to go on at")

    # Events -----------------------------------------------------------------------------------------------------------

    def loss(self, batch: Any, compute: Callable[[], Any]) -> Any:
        """One call of the training step: what `compute` gives, or gave."""
        if not self.live:
            event = self._next("loss")
            if event["digest"] != recorded.checksum(digest(batch)):
                raise Diverged("it sees other data")
            with self._leaving():
                return Recorded.rebuilt(event["output"], self._fill)
        self._before_loss()
        if not self._noted_now():
            return compute()
        event = self._enter("loss")
        event["digest"] = digest(batch)
        self._inside += 1  # as aside does, at less cost
        try:
            output = compute()
        finally:
            self._inside -= 1
        event["output"] = Recorded(output)
        self._leave()
        self._fresh = False
        return output

    def step(self, made: Callable[[], Any], note: Callable[[], Any], play: Callable[[Any], None]) -> Any:
        """A step of the first optimizer that a framework makes: what `made` gives; nothing, where it is played back.

        Args:
            made: makes it.
            note: plain data to keep of it, asked for once it is made.
            play: gets that when the step is played back.
        """
        return self._step(0, made, (), {}, (note, play))

    def _step_of(self, number: int, made: Callable[..., Any]) -> Callable[..., Any]:
        """What stands in place of the step() of optimizer `number`."""

        def step(*args: Any, **kwargs: Any) -> Any:
            return self._step(number, made, args, kwargs)

        step.number = number  # type: ignore[attr-defined]
        return step

    def _step(
        self,
        number: int,
        made: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        beside: tuple[Callable[[], Any], Callable[[Any], None]] | None = None,
    ) -> Any:
        closure = kwargs.get("closure", args[0] if args and callable(args[0]) else None)
        self._scaled["made"] = True
        if not self.live:
            event = self._next("step")
            if event["optimizer"] != number:
                raise Diverged("it steps another optimizer")
            results = []
            self._in_closure = True
            for _ in range(event["closures"]):
                if closure is None:
                    raise Diverged("it gives a step no closure")
                with torch.enable_grad():
                    results.append(closure())
            self._in_closure = False
            self._count(number)
            if beside is not None:
                beside[1](event["beside"])
            with self._leaving():
                return results[0] if results else None
        if not self._noted_now():
            result = made(*args, **kwargs)
            self._count(number)
            self._after_step()
            return result
        event = self._enter("step")
        event |= {"optimizer": number, "closures": 0}
        if closure is not None:

            def counted() -> Any:
                event["closures"] += 1
                inside, self._inside = self._inside, 0
                try:
                    return closure()
                finally:
                    self._inside = inside

            args = (counted, *args[1:]) if "closure" not in kwargs else args
            kwargs = {**kwargs, "closure": counted} if "closure" in kwargs else kwargs
        with self.aside():
            result = made(*args, **kwargs)
        if beside is not None:
            event["beside"] = beside[0]()
        self._leave()
        self._fresh = False
        self._count(number)
        with self.aside():
            self._after_step()
        return result

    def _count(self, number: int) -> None:
        self._moved += 1
        if number == 0:
            self.steps += 1

    def _look(self) -> None:
        """The user's code is about to see the weights."""
        if self._inside or self.closed is not None:
            return
        if not self.live:
            event = self._next("look", boundary=False)
            number = event["weights"]
            if number != self._shown and number >= 0:
                assert self._past is not None
                with self.aside():
                    _set_weights(self._model, self._past.weights(number))
            self._shown = number
            self._looks = max(self._looks, number + 1)
            return
        if self._parts:
            self.close("training_func looks at weights of which each process has a part only")
            return
        if not self._fresh and self._looks >= MOST_LOOKS + self._moved // STEPS_PER_LOOK:
            self.close("training_func looks at the weights after nearly every step (as an average of weights does)")
            return
        if not self._fresh:
            with self.aside():
                self._weights[self._looks] = _weights(self._model)
            self._shown, self._looks, self._fresh = self._looks, self._looks + 1, True
        self._noted.append({"kind": "look", "weights": self._shown})

    def _foreign(self, optimizer: Any, *args: Any) -> None:
        if id(optimizer) not in self._known and not self._inside:
            self.close(
                f"training_func steps a {type(optimizer).__name__} of its own, whose state is in no checkpoint; give "
                "it to the evaluator"
            )

    # Mixed precision --------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _scalers(self) -> Iterator[None]:
        """Lets the methods of every GradScaler be noted, and played back without gradients."""
        kind = torch.amp.GradScaler
        originals = {name: getattr(kind, name) for name in _SCALED}
        tape = self

        def step(self: Any, optimizer: Any, *args: Any, **kwargs: Any) -> Any:
            return tape._scaled_step(originals["step"], self, optimizer, args, kwargs)

        def unscale_(self: Any, optimizer: Any) -> Any:
            return originals["unscale_"](self, optimizer) if tape.live or not self._enabled else None

        def update(self: Any, new_scale: Any = None) -> Any:
            return tape._update(originals["update"], self, new_scale)

        for name, own in {"step": step, "unscale_": unscale_, "update": update}.items():
            setattr(kind, name, own)
        try:
            yield
        finally:
            for name, original in originals.items():
                setattr(kind, name, original)

    def _scaled_step(self, original: Any, scaler: Any, optimizer: Any, args: Any, kwargs: Any) -> Any:
        if not scaler._enabled:
            return original(scaler, optimizer, *args, **kwargs)
        moved = self._moved
        if self.live:
            self._scaled = {"kind": "scaled", "made": False}
            if self._noted_now() and not self._inside:
                self._noted.append(self._scaled)
            result = original(scaler, optimizer, *args, **kwargs)
            if self._moved == moved and self._is_first(optimizer):
                self.steps += 1  # skipped
            return result
        event = self._next("scaled", boundary=False)
        result = optimizer.step(*args, **kwargs) if event["made"] else None
        if not event["made"] and self._is_first(optimizer):
            self.steps += 1
        # What the scaler would know by now, for an update() that may be the first that is live.
        state = scaler._per_optimizer_states[id(optimizer)]
        device = scaler._scale.device if scaler._scale is not None else torch.device("cpu")
        state["stage"] = torch.amp.grad_scaler.OptState.STEPPED
        state["found_inf_per_device"] = {device: torch.full((), float(not event["made"]), device=device)}
        return result

    def _is_first(self, optimizer: Any) -> bool:
        return getattr(optimizer.step, "number", None) == 0

    def _update(self, original: Any, scaler: Any, new_scale: Any) -> Any:
        if not scaler._enabled:
            return original(scaler, new_scale)
        if self.live:
            result = original(scaler, new_scale)
            if self._noted_now() and not self._inside:
                values = [scaler._scale.detach().clone(), scaler._growth_tracker.detach().clone()]
                self._noted.append({"kind": "scale", "values": values})
            return result
        event = self._next("scale", boundary=False)
        scale, tracker = event["values"]
        scaler._scale.fill_(scale)
        scaler._growth_tracker.fill_(int(tracker))
        scaler._per_optimizer_states = defaultdict(torch.amp.grad_scaler._refresh_per_optimizer_state)
        return None

    # Notes ------------------------------------------------------------------------------------------------------------

    def _noted_now(self) -> bool:
        return self._noting and self.closed is None

    def _enter(self, kind: str) -> dict[str, Any]:
        """A new event; what was drawn since the last one was drawn by the user's code."""
        assert self._draws is not None
        event: dict[str, Any] = {"kind": kind}
        now = self._draws.read()
        if self._seen is not None:
            names = changed(self._seen, now)
            if names:
                event["before"] = {name: self._seen[name] for name in names if name in self._seen}
                event["drawn"] = [names, checksum(now, names)]
        self._seen = now
        self._noted.append(event)
        return event

    def _leave(self) -> None:
        assert self._draws is not None
        self._seen = self._draws.read()

    def _next(self, kind: str, boundary: bool = True) -> dict[str, Any]:
        assert self._past is not None
        assert self._draws is not None
        if self._played >= len(self._past.events):
            raise Diverged("it goes on otherwise")
        event = self._past.events[self._played]
        if event["kind"] != kind:
            raise Diverged(f"it does something else (a {kind} where there was a {event['kind']})")
        if boundary and "drawn" in event:
            names, expected = event["drawn"]
            if checksum(self._draws.read(), names) != expected:
                raise Diverged("it draws other random numbers")
        self._played += 1
        if boundary:
            self._prepare_draws()
        elif self._played == len(self._past.events):
            raise Diverged("its notes end where no optimizer steps")
        return event

    def _prepare_draws(self) -> None:
        """Gives the user's code the generators with which it will draw next, if it will."""
        assert self._past is not None
        assert self._draws is not None
        for event in self._past.events[self._played :]:
            if event["kind"] in ("loss", "step"):
                if "before" in event:
                    self._draws.put(event["before"])
                return

    @contextlib.contextmanager
    def _leaving(self) -> Iterator[None]:
        """The end of an event that is played back; of the last one, the end of the playing."""
        yield
        assert self._past is not None
        if self._played == len(self._past.events) and not self._in_closure:
            self._past = None
            with self.aside():
                self._put_back()
            self.live = True
            if self._noting:
                self._leave()
            self._fresh = False

    def _fill(self) -> None:
        """Backward of a loss that is played back: gradients are there, and zero."""
        for parameter in _own_parameters(self._model):
            if parameter.requires_grad and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)


def _saved(event: dict[str, Any]) -> dict[str, Any]:
    """An event as plain data; nothing of it is on a device any more."""
    out = dict(event)
    if "digest" in out:
        out["digest"] = recorded.checksum(out["digest"])
    if "output" in out:
        out["output"] = out["output"].plain()
    if "values" in out:
        out["values"] = [float(value) for value in out["values"]]
    return out


def _own_parameters(model: nn.Module) -> Iterator[nn.Parameter]:
    for module in model.modules():
        yield from (parameter for parameter in module._parameters.values() if parameter is not None)


def _weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Copies of all parameters and buffers, in main memory."""
    named = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
    return {name: value.detach().to("cpu", copy=True) for name, value in named}


@torch.no_grad()
def _set_weights(model: nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    named = dict((*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)))
    for name, value in weights.items():
        if name in named and named[name].shape == value.shape:
            named[name].data.copy_(value)
