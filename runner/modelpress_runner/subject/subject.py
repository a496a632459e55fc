"""What is compressed: a model with what trains and scores it, in the forms in which users give it."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from modelpress_runner.edits.wrappers import unwrapped
from modelpress_runner.errors import InvalidModelError, RunnerError
from modelpress_runner.evaluators.base import Evaluator
from modelpress_runner.evaluators.torch_evaluator import TorchEvaluator
from modelpress_runner.export.layout import Layout
from modelpress_runner.passes.forward import first_batch
from modelpress_runner.passes.frozen import scoring_passes
from modelpress_runner.process.stopping import Stopped
from modelpress_runner.runtime.example_inputs import as_call, batch_size, map_tensors, tensors, with_batch
from modelpress_runner.runtime.preserve import untouched


@dataclass
class Subject:
    """A model and everything that a compression may need of its user.

    Args:
        model: the dense model; it is taken out of DistributedDataParallel and torch.compile, inside it too.
        evaluator: an Evaluator, a function model -> number (or dict with the key 'default'), or None.
        example_inputs: as the model takes them: a tensor, or a tuple, list or dict; else the evaluator's dummy_input.
        calibration_data: batches for methods that need to see data, as the model takes them (each like
            example_inputs), without labels; a list or DataLoader, which can be gone through again. The same on every
            rank: each takes a share of the batches.
        layout: another library's layout, to be written into the artifact too.
        teacher: a model that a distill stage may learn from; it is called as `model` is.

    Raises:
        InvalidModelError: the model is no torch.nn.Module, or the evaluator neither an Evaluator nor a function.
    """

    model: nn.Module
    evaluator: Evaluator | None = None
    example_inputs: Any = None
    calibration_data: Iterable[Any] | None = None
    layout: Layout | None = None
    teacher: nn.Module | None = None
    # What stages name besides, by its field: files on this machine, and the models that stages have made of them.
    sources: dict[str, Path] = field(default_factory=dict, init=False, repr=False)
    teachers: dict[str, nn.Module] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.model, nn.Module):
            raise InvalidModelError(f"the model is a {kind_of(self.model)}; it must be a torch.nn.Module")
        if isinstance(self.model, torch.jit.ScriptModule):
            raise InvalidModelError(
                f"the model is a {kind_of(self.model)}, which hides its layers; give the torch.nn.Module that "
                "torch.jit made it from"
            )
        self.model = unwrapped(self.model)
        if self.teacher is not None:
            if not isinstance(self.teacher, nn.Module):
                raise InvalidModelError(f"the teacher is a {kind_of(self.teacher)}; it must be a torch.nn.Module")
            self.teacher = unwrapped(self.teacher)
            if self.teacher is self.model:
                raise InvalidModelError(
                    "the teacher is the model itself, which changes; leave it out, and the dense model teaches"
                )
        self.evaluator = as_evaluator(self.evaluator)
        if self.evaluator is not None:
            self.evaluator.attach_model(self.model)

    @property
    def dummy_input(self) -> Any:
        """Example inputs: the subject's own, else the evaluator's."""
        if self.example_inputs is not None or self.evaluator is None:
            return self.example_inputs
        return self.evaluator.dummy_input

    def find_inputs(self) -> None:
        """Where there are no example inputs, takes the first batch of the calibration data, else the inputs of the
        first call that scoring makes of the model, else those of the first that training makes. Model, optimizers and
        random numbers stay as they were."""
        if self.dummy_input is None and self.calibration_data is not None:
            self.example_inputs = few_rows(self.model, first_batch(self.calibration_data))
        if self.dummy_input is not None or self.evaluator is None:
            return
        found: list[Any] = []

        def look(module: nn.Module, args: Any, kwargs: Any) -> None:
            inputs = as_inputs(module, args, kwargs)
            if inputs is not None:
                found.append(inputs)
                raise _Seen

        for passes in (self._score_once, self._train_once):
            handle = self.model.register_forward_pre_hook(look, with_kwargs=True)
            try:
                with contextlib.suppress(_Seen):
                    passes()
            except RunnerError:
                if passes == self._score_once:
                    raise
                # What training lacks is said where a recipe asks for it.
            finally:
                handle.remove()
            if found:
                self.example_inputs = few_rows(self.model, found[0])
                return

    def _score_once(self) -> None:
        if self.evaluator is not None and self.evaluator.can_evaluate:
            self.evaluator.evaluate(self.model)

    def _train_once(self) -> None:
        if self.evaluator is not None and self.evaluator.can_train:
            self.evaluator.record_parameter_names(self.model)
            scoring_passes(self.model, self.evaluator, 1, before_step=lambda: None)


class _Seen(Stopped):
    """The first call is seen; passes through a user's code as Stopped does."""


def as_inputs(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """One call of a model as example inputs, detached; None: it holds no tensor, or has no such form."""
    if not tensors((args, kwargs)):
        return None
    args, kwargs = map_tensors((args, kwargs), lambda tensor: tensor.detach().clone())
    if args and kwargs:
        try:
            parameters = inspect.signature(model.forward).parameters
            bound = inspect.signature(model.forward).bind(*args, **kwargs)
        except (TypeError, ValueError):
            return None
        named = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
        return dict(bound.arguments) if all(parameters[name].kind in named for name in bound.arguments) else None
    if kwargs:
        return kwargs
    return args[0] if len(args) == 1 and isinstance(args[0], torch.Tensor) else args


def few_rows(model: nn.Module, inputs: Any) -> Any:
    """Two rows of example inputs, where the model runs on them; else all."""
    if batch_size(inputs) <= 2:
        return inputs
    few = with_batch(inputs, 2)
    args, kwargs = as_call(few)
    try:
        with untouched(model), torch.no_grad():
            model(*args, **kwargs)
    except Exception:
        return inputs
    return few


def as_evaluator(value: Any) -> Evaluator | None:
    """An evaluator, or one around a function model -> score.

    Raises:
        InvalidModelError: it is neither.
    """
    if value is None or isinstance(value, Evaluator):
        return value
    if isinstance(value, type | nn.Module) or not callable(value):
        raise InvalidModelError(
            f"the evaluator is a {kind_of(value)}; it must be an Evaluator (mp.TorchEvaluator) or a function "
            "model -> number"
        )
    return TorchEvaluator(evaluating_func=value)


def kind_of(value: Any) -> str:
    """What messages call a value that a user gave."""
    return f"class ({value.__name__})" if isinstance(value, type) else type(value).__name__
