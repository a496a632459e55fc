"""The evaluator for PyTorch Lightning: the user's LightningModule, Trainer and LightningDataModule as they are."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from modelpress_runner.errors import InvalidModelError
from modelpress_runner.evaluators.base import Evaluator, Score
from modelpress_runner.evaluators.lightning.data import Data, DataModuleSource
from modelpress_runner.evaluators.lightning.fit import Fit, LossPatch
from modelpress_runner.evaluators.lightning.package import Package, lightning_code, package_of, quiet
from modelpress_runner.evaluators.lightning.scoring import has, score, stand_in
from modelpress_runner.evaluators.lightning.trainer import LightningTrainerSource, described
from modelpress_runner.evaluators.optimizer_hooks import unscaled
from modelpress_runner.evaluators.parameter_groups import join
from modelpress_runner.usercode.calling import user_code


class LightningEvaluator(Evaluator):
    """Training and evaluation by a LightningModule, a Trainer and a LightningDataModule.

    The model is the LightningModule; `import lightning.pytorch` and `import pytorch_lightning` both work. It trains by
    its training_step and configure_optimizers, in any of the forms that Lightning knows; it is scored by test_step,
    which logs the score under the name 'default': self.log("default", accuracy). Other numbers that it logs are metrics
    besides.

    A training is one fit. For a checkpoint, or a score in between, it is ended and goes on in another one: that has a
    new Trainer, whose hooks on_fit_start to on_fit_end all run; optimizers, schedulers, callbacks, current_epoch,
    global_step and the order of the data go on. setup() and prepare_data() of the data module run once per stage,
    always with the same random numbers. The recipe's epochs or maxSteps take the place
    of the Trainer's own limits. There is no logger, checkpoint, progress bar or model summary unless the Trainer's
    arguments ask for it.

    Args:
        trainer: mp.trace(Trainer)(...), or a function () -> Trainer.
        data: mp.trace(MyDataModule)(...), or a function () -> LightningDataModule.
        dummy_input: an example input: a tensor, or a tuple, list or dict of what the model takes; without one, the
            first row of the first training batch, of which a model takes the first part where it is a tuple or list,
            and of a dict what its forward() names.
        resumable: False: a fit is never ended for a checkpoint; for callbacks that need a whole
            fit (StochasticWeightAveraging, BaseFinetuning).

    Raises:
        InvalidModelError: something is of the wrong kind, or cannot work on a model that changes.
    """

    train_needs = "training_step and configure_optimizers in the LightningModule"
    evaluate_needs = "test_step in the LightningModule"

    def __init__(self, trainer: Any, data: Any, dummy_input: Any = None, *, resumable: bool = True) -> None:
        self._trainers = LightningTrainerSource(trainer, resumable)
        self._source = DataModuleSource(data)
        self._data = Data(self._source)
        self._dummy_input = dummy_input
        self.resumable = resumable
        self._known: Any = None  # the LightningModule that was seen last
        self._fit: Fit | None = None
        self._length: tuple[int | None, int | None] = (None, None)

    @property
    def can_train(self) -> bool:
        return self._defines("training_step") and self._defines("configure_optimizers")

    @property
    def can_evaluate(self) -> bool:
        return self._defines("test_step")

    def _defines(self, method: str) -> bool:
        package = None if self._known is None else package_of(self._known, "LightningModule")
        return package is None or has(package, self._known, method)

    @property
    def dummy_input(self) -> Any:
        """An example input for the model.

        Raises:
            InvalidModelError: none was given, and the first batch does not tell.
        """
        if self._dummy_input is None and self._known is not None:
            package = self._package(self._known)
            with lightning_code(package, "the first training batch"), quiet(package):
                batch = self._data.first_batch(package)
            self._dummy_input = _input_in(batch, self._known)
        return self._dummy_input

    def attach_model(self, model: nn.Module) -> None:
        if package_of(model, "LightningModule") is not None:
            self._known = model

    def record_parameter_names(self, model: nn.Module) -> None:
        self.attach_model(model)

    def on_training_begin(self, max_steps: int | None, max_epochs: int | None) -> None:
        self._length = (max_steps, max_epochs)

    def rng_roots(self) -> dict[str, Any]:
        return {**self._trainers.rng_roots(), **self._source.rng_roots()}

    def _package(self, model: Any) -> Package:
        package = package_of(model, "LightningModule")
        if package is None:
            raise InvalidModelError(
                f"the model is {described(model)}; with a LightningEvaluator it must be a LightningModule"
            )
        own = self._trainers.package
        if own is not None and own != package:
            raise InvalidModelError(
                f"the Trainer is of {own.name} and the model a LightningModule of {package.name}; import both from the "
                "same package"
            )
        return package

    @property
    def model(self) -> nn.Module:
        model: nn.Module = self._bound.model
        return model

    @property
    def _bound(self) -> Fit:
        if self._fit is None:
            raise RuntimeError("the evaluator is not bound to a model")
        return self._fit

    def bind(self, model: nn.Module) -> None:
        if self._fit is not None:
            raise RuntimeError("the evaluator is already bound; unbind it first")
        package = self._package(model)
        self._known = model
        if not self.can_train:
            raise InvalidModelError(f"{type(model).__name__} cannot be trained; give it {self.train_needs}")
        try:
            self._fit = Fit(model, package, self._trainers, self._data, self._length)
            join(self.extra_groups, self._fit.optimizers[0], self._fit.schedulers)
        except BaseException:
            self._data.close()
            raise

    def unbind(self) -> None:
        super().unbind()
        fit, self._fit = self._fit, None
        self._length = (None, None)
        if fit is not None:
            fit.close()
        with user_code("teardown() of the data module"):
            self._data.close()

    def train(self, max_steps: int | None = None, max_epochs: int | None = None) -> None:
        self._bound.run(max_steps, max_epochs)

    def evaluate(self, model: nn.Module | None = None) -> Score:
        model = self.model if model is None else model
        if package_of(model, "LightningModule") is not None:
            self._known = self._known if self._known is not None else model
            return score(self._trainers, self._data, self._package(model), model)
        if self._known is None:
            self._package(model)
        package = self._package(self._known)
        with stand_in(self._known, model, lambda: self.dummy_input) as module:
            return score(self._trainers, self._data, package, module)

    def at_safe_points(self, hook: Callable[[], None], wanted: Callable[[], bool]) -> None:
        self._bound.at_safe_points(hook, wanted)

    @property
    def interruption(self) -> float:
        return 0.0 if self._fit is None else self._fit.interruption

    def optimizers(self) -> Iterator[torch.optim.Optimizer]:
        return iter(() if self._fit is None else self._fit.optimizers)

    def state_dict(self) -> dict[str, Any]:
        return self._bound.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._bound.load_state_dict(state)

    def patch_loss(self, patch: LossPatch) -> None:
        self._bound.patches.append(patch)

    def before_optimizer_step(self, hook: Callable[[], None]) -> None:
        self._bound.before_step.append(hook)

    def after_optimizer_step(self, hook: Callable[[], None]) -> None:
        self._bound.after_step(hook)

    def gradient(self, parameter: nn.Parameter) -> torch.Tensor | None:
        return unscaled(parameter, self.optimizers())


def _input_in(batch: Any, model: nn.Module) -> Any:
    """What the model takes of a batch, cut to one row."""
    given = batch
    if isinstance(batch, Mapping):
        parameters = inspect.signature(model.forward).parameters.values()
        named = {each.name for each in parameters if each.kind is not inspect.Parameter.VAR_KEYWORD}
        needed = {
            each.name
            for each in parameters
            if each.default is inspect.Parameter.empty
            and each.kind not in (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
        }
        given = {name: value for name, value in batch.items() if name in (needed or named)}
        if not given or needed - given.keys():
            keys = ", ".join(map(repr, batch))
            raise InvalidModelError(
                f"the first training batch has {keys}, which does not tell what {type(model).__name__}.forward takes; "
                "give LightningEvaluator a dummy_input"
            )
    elif isinstance(batch, tuple | list) and batch:
        given = batch[0]
    row = _row(given)
    if row is None:
        raise InvalidModelError(
            f"the first training batch is {described(batch)} from which no example input can be taken; give "
            "LightningEvaluator a dummy_input"
        )
    return row


def _row(value: Any) -> Any:
    """The first row of all tensors in a structure; None if there is anything else in it."""
    if isinstance(value, torch.Tensor):
        return value[:1].detach().clone() if value.dim() else None
    if isinstance(value, Mapping):
        rows = {name: _row(item) for name, item in value.items()}
        return rows if rows and all(row is not None for row in rows.values()) else None
    if isinstance(value, tuple | list):
        items = [_row(item) for item in value]
        return tuple(items) if items and all(item is not None for item in items) else None
    return None
