"""A DeepSpeed engine around a model: its whole parameters and gradients, step hooks, state, and the way back."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from modelpress_runner.errors import InvalidModelError
from modelpress_runner.evaluators.deepspeed import group
from modelpress_runner.evaluators.footprint import Footprint
from modelpress_runner.evaluators.optimizer_state import load_optimizer, plain
from modelpress_runner.evaluators.parameter_groups import ParameterGroup, join
from modelpress_runner.evaluators.replay.tape import Tape
from modelpress_runner.runtime import distributed as ranks

FOREIGN = (
    "ds_",
    "_ds_",
    "_external_params",
    "_original_parameters",
    "all_parameters",
    "applied_pre_backward_ref_cnt",
    "post_bwd_fn",
    "pre_bwd_fn",
)
_COUNTERS = ("global_steps", "global_samples", "micro_steps", "skipped_steps")


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """A parameter or buffer as it was before the engine took it."""

    tensor: torch.Tensor
    dtype: torch.dtype


class EngineHandle:
    """What a compression needs of a DeepSpeedEngine, whatever its ZeRO stage.

    Stage 0 keeps everything on every rank. Stages 1 and 2 spread the optimizer over ranks, with a copy of the weights
    in float32 that the weights are made from after each step. Stage 3 spreads the weights, too: a parameter is empty
    but for the moments of its use.

    Args:
        model: as it was before `make`.
        make: gives the engine for it.
        footprint: of the model before.
    """

    def __init__(self, model: nn.Module, make: Callable[[], Any], footprint: Footprint) -> None:
        self.model, self._footprint = model, footprint
        self._before = [_Tensor(each, each.dtype) for each in (*model.parameters(), *model.buffers())]
        self._modules = [(module, module._parameters) for module in model.modules()]
        self._depth, self._modifying = 0, False
        self._before_step: list[Callable[[], None]] = []
        self._after_step: list[Callable[[], None]] = []
        self._step_hook: Any = None
        self.engine: Any = None
        try:
            self.engine = make()
        except BaseException:
            self.hand_back()
            raise
        self._stage3 = any(hasattr(parameter, "ds_id") for parameter in model.parameters())
        self._patch_step()

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The torch optimizer at the bottom; under ZeRO it holds this rank's part."""
        return torch_optimizer(self.engine)

    # Steps ------------------------------------------------------------------------------------------------------------

    def _patch_step(self) -> None:
        engine, optimizer = self.engine, self.engine.optimizer
        take = engine._take_model_step

        def hooked_take(*args: Any, **kwargs: Any) -> Any:
            # Before gradients are clipped: ZeRO clips within the optimizer's step, stage 0 before it.
            for hook in self._before_step:
                hook()
            return take(*args, **kwargs)

        engine._take_model_step = hooked_take
        if isinstance(optimizer, torch.optim.Optimizer):
            self._step_hook = optimizer.register_step_post_hook(lambda *_: self._stepped())
            return
        step = optimizer.step

        def hooked_step(*args: Any, **kwargs: Any) -> Any:
            result = step(*args, **kwargs)
            if not getattr(optimizer, "overflow", False):
                self._stepped()
            return result

        optimizer.step = hooked_step

    def _stepped(self) -> None:
        for hook in self._after_step:
            hook()

    def _unpatch_step(self) -> None:
        vars(self.engine).pop("_take_model_step", None)
        if self._step_hook is not None:
            self._step_hook.remove()
        else:
            vars(self.engine.optimizer).pop("step", None)

    @contextlib.contextmanager
    def recorded(self, tape: Tape) -> Iterator[None]:
        """Inside, the engine's steps are noted on `tape`, or played back: then it moves its counters and no weight."""
        engine = self.engine
        originals = {name: getattr(engine, name) for name in ("_take_model_step", "backward", "step")}
        take, back, whole = originals.values()

        def taken(lr_kwargs: Any) -> Any:
            def play(counters: dict[str, int]) -> None:
                skipped = counters["skipped_steps"] > engine.skipped_steps
                vars(engine).update(counters)
                self.optimizer._opt_called = True  # type: ignore[attr-defined] # schedulers warn without
                if engine.lr_scheduler is not None and not skipped:
                    engine.lr_scheduler.step(**(lr_kwargs or {}))

            return tape.step(lambda: take(lr_kwargs), self._counters, play)

        def backward(loss: torch.Tensor, retain_graph: bool = False, scale_wrt_gas: bool = True) -> Any:
            if not tape.live:
                return loss / engine.gradient_accumulation_steps() if scale_wrt_gas else loss
            with tape.aside():
                return back(loss, retain_graph=retain_graph, scale_wrt_gas=scale_wrt_gas)

        def step(lr_kwargs: Any = None) -> None:
            if tape.live:
                with tape.aside():
                    whole(lr_kwargs)
                return
            engine._running_engine_step = True
            try:
                if engine.is_gradient_accumulation_boundary():
                    engine._take_model_step(lr_kwargs)
            finally:
                engine._running_engine_step = False
            engine.micro_steps += 1

        vars(engine).update(_take_model_step=taken, backward=backward, step=step)
        try:
            yield
        finally:
            vars(engine).pop("backward")
            vars(engine).pop("step")
            engine._take_model_step = take

    def before_step(self, hook: Callable[[], None]) -> None:
        """Calls `hook` before each optimizer step: once per accumulated gradient, whatever ZeRO makes of it."""
        self._before_step.append(hook)

    def after_step(self, hook: Callable[[], None]) -> None:
        """Calls `hook` after each optimizer step that was not skipped for an overflow."""
        self._after_step.append(hook)

    def join(self, groups: Sequence[ParameterGroup], schedulers: Sequence[Any]) -> None:
        """Adds parameter groups to the optimizer.

        Raises:
            InvalidModelError: the engine spreads it over the ranks, or keeps copies of its weights.
        """
        if groups and self.engine.optimizer is not self.optimizer:
            raise InvalidModelError(
                "a method trains parameters of its own, and DeepSpeed takes none besides the model's into an optimizer "
                "that it spreads over processes, or that has weights of 16 bits; use ZeRO stage 0 in float32"
            )
        join(groups, self.optimizer, schedulers)

    # Parameters -------------------------------------------------------------------------------------------------------

    def gradient(self, parameter: nn.Parameter) -> torch.Tensor | None:
        """The whole gradient, averaged over ranks, within a hook before the step; all ranks must ask for it."""
        from deepspeed.utils import safe_get_full_grad

        with group.quiet():
            gradient: torch.Tensor | None = safe_get_full_grad(parameter)
        scale = float(getattr(self.engine.optimizer, "loss_scale", 1.0))
        return gradient if gradient is None or scale == 1.0 else gradient / scale

    @contextlib.contextmanager
    def whole_parameters(self, modify: bool = False) -> Iterator[None]:
        """As in the protocol: parameters are whole, and what changes goes into the weights that the optimizer keeps."""
        if self._depth and modify and not self._modifying:
            raise RuntimeError("whole_parameters(modify=True) within whole_parameters(): enter it with modify first")
        outermost = not self._depth
        self._depth += 1
        try:
            if not outermost:
                yield
            else:
                self._modifying = modify
                with group.quiet(), self._gathered(modify):
                    kept = self._kept() if modify else []
                    yield
                    for each in kept:
                        self._take_over(*each)
        finally:
            self._depth -= 1
            if outermost:
                self._modifying = False

    @contextlib.contextmanager
    def _gathered(self, modify: bool) -> Iterator[None]:
        if not self._stage3:
            yield
            return
        from deepspeed import zero

        with zero.GatheredParameters(list(self.model.parameters()), modifier_rank=0 if modify else None):
            yield

    def _kept(self) -> list[tuple[nn.Parameter, torch.Tensor, torch.Tensor]]:
        """Every parameter with its storage and a copy of its values."""
        return [(parameter, parameter.data, parameter.detach().clone()) for parameter in self.model.parameters()]

    @torch.no_grad()
    def _take_over(self, parameter: nn.Parameter, storage: torch.Tensor, values: torch.Tensor) -> None:
        """Puts what has changed into the float32 weights, too; what has not keeps its full precision."""
        if parameter.data.data_ptr() != storage.data_ptr() or parameter.dtype != storage.dtype:
            now = parameter.data
            parameter.data = storage
            parameter.data.copy_(now)
        changed = parameter.data != values
        if not bool(changed.any()):
            return
        from deepspeed.utils import safe_get_full_fp32_param, safe_set_full_fp32_param

        master = safe_get_full_fp32_param(parameter)
        if master is not None:
            safe_set_full_fp32_param(parameter, torch.where(changed, parameter.data.float(), master))

    @torch.no_grad()
    def exact_values(self) -> list[torch.Tensor]:
        """All parameters, whole, in the precision that the optimizer keeps them in."""
        from deepspeed.utils import safe_get_full_fp32_param

        values = []
        with self.whole_parameters():
            for parameter in self.model.parameters():
                master = None
                if parameter.requires_grad and parameter.dtype != torch.float32:
                    master = safe_get_full_fp32_param(parameter)
                values.append((parameter.data if master is None else master).detach().clone())
        return values

    @torch.no_grad()
    def set_values(self, values: list[torch.Tensor]) -> None:
        """Sets all parameters, whole, to what `exact_values` gave."""
        from deepspeed.utils import safe_set_full_fp32_param

        with self.whole_parameters(modify=True):
            for parameter, value in zip(self.model.parameters(), values, strict=True):
                parameter.data.copy_(value)
        for parameter, value in zip(self.model.parameters(), values, strict=True):
            if parameter.requires_grad:
                safe_set_full_fp32_param(parameter, value.float())

    # State ------------------------------------------------------------------------------------------------------------

    def _masters(self) -> list[torch.Tensor]:
        """This rank's part of the weights that the optimizer keeps."""
        optimizer = self.engine.optimizer
        for name in ("single_partition_of_fp32_groups", "fp32_partitioned_groups_flat", "fp32_groups_flat_partition"):
            if hasattr(optimizer, name):
                return list(getattr(optimizer, name))
        return []

    @contextlib.contextmanager
    def _filled(self) -> Iterator[torch.optim.Optimizer]:
        """The torch optimizer with its parameters, which stage 3 takes out of it between steps."""
        zero = self.engine.optimizer
        emptied = hasattr(zero, "_set_fp32_optimizer_param_groups")
        if emptied:
            zero._set_fp32_optimizer_param_groups()
        try:
            yield self.optimizer
        finally:
            if emptied:
                zero._clear_fp32_optimizer_param_groups()

    def _counters(self) -> dict[str, int]:
        return {name: int(getattr(self.engine, name)) for name in _COUNTERS}

    def state_dict(self) -> dict[str, Any]:
        """This rank's part: the optimizer, its weights, the loss scale, the counters."""
        scaler = getattr(self.engine.optimizer, "loss_scaler", None)
        with self._filled() as optimizer:
            state = plain(optimizer.state_dict())
        return {
            "optimizer": state,
            "masters": [master.detach().cpu().clone() for master in self._masters()],
            "scaler": plain(vars(scaler)) if scaler is not None else None,
            "counters": self._counters(),
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` gave on this rank."""
        with self._filled() as optimizer:
            load_optimizer(optimizer, state["optimizer"])
        for master, saved in zip(self._masters(), state["masters"], strict=True):
            master.data.copy_(saved)
        scaler = getattr(self.engine.optimizer, "loss_scaler", None)
        if scaler is not None and state["scaler"] is not None:
            vars(scaler).update(state["scaler"])
        for name, value in state["counters"].items():
            setattr(self.engine, name, value)

    def drop_gradients(self) -> None:
        """Forgets what was accumulated of a step that was not made."""
        engine = self.engine
        engine.micro_steps -= engine.micro_steps % engine.gradient_accumulation_steps()
        optimizer = engine.optimizer
        if hasattr(optimizer, "micro_step_id"):  # the first of the next step overwrites what is there
            optimizer.micro_step_id = 0 if self._stage3 else -1
        for name in ("all_grad_tensors", "averaged_gradients"):  # what stages 1 and 2 have summed up so far
            sums = getattr(optimizer, name, None)
            if isinstance(sums, dict) and not self._stage3:
                sums.update(dict.fromkeys(sums))
        (optimizer if hasattr(optimizer, "zero_grad") else engine).zero_grad()
        for parameter in self.model.parameters():
            parameter.grad = None

    def _lost_values(self) -> list[torch.Tensor]:
        """In place of the values: what is on this rank, and NaN for what was elsewhere."""
        return [
            torch.full(parameter.ds_shape, torch.nan, dtype=parameter.dtype, device=parameter.device)
            if hasattr(parameter, "ds_shape")
            else parameter.detach().clone()
            for parameter in self.model.parameters()
        ]

    # The way back -----------------------------------------------------------------------------------------------------

    def hand_back(self) -> None:
        """Ends the engine; the model is what it was, plain tensors with the trained values."""
        values = None
        if self.engine is not None:
            for parameter in self.model.parameters():  # of a forward or backward pass that was broken off
                getattr(parameter, "ds_active_sub_modules", set()).clear()
            try:
                values = self._lost_values() if _alone_in_trouble() else self.exact_values()
            finally:
                self._unpatch_step()
                with group.quiet():
                    self.engine.destroy()
                # An engine destroys itself once more when it is collected, and with it what the next one has put on
                # these parameters.
                self.engine.destroy = lambda: None
        with torch.no_grad():
            for module, own in self._modules:
                now = module._parameters
                if now is not own:
                    own.update(list(now.items()))
                    module._parameters = own
            for number, before in enumerate(self._before):
                tensor = before.tensor
                data = tensor.data if values is None or number >= len(values) else values[number]
                tensor.data = data.to(before.dtype).clone()
                tensor.grad = None
        self._footprint.erase()
        self.engine = None


def _alone_in_trouble() -> bool:
    """Whether an exception is on its way, so that the other ranks, without whom no model is whole, may not come by."""
    return sys.exc_info()[0] is not None and ranks.together()


def torch_optimizer(engine: Any) -> torch.optim.Optimizer:
    """The optimizer within an engine, without DeepSpeed's wrapping."""
    optimizer = engine.optimizer
    while not isinstance(optimizer, torch.optim.Optimizer) and hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    inner: torch.optim.Optimizer = optimizer
    return inner
