"""The user's LightningDataModule: made and set up once per binding, with loaders that go on from fit to fit."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import nn

from modelpress_runner.errors import InvalidModelError
from modelpress_runner.evaluators.lightning.package import Package, is_a, package_of
from modelpress_runner.evaluators.lightning.trainer import described
from modelpress_runner.evaluators.optimizer_state import plain
from modelpress_runner.evaluators.trace import RecordedCall, Traced, call_of, parts_of
from modelpress_runner.runtime import rng
from modelpress_runner.runtime import user_rng as generators

_GUARDED = ("prepare_data", "setup", "train_dataloader", "teardown", "on_exception")
_SEED = 0  # a random split in setup() is the same in every fit, stage and attempt


class DataModuleSource:
    """How a LightningDataModule comes about: a recorded constructor call, or a function () -> LightningDataModule.

    Raises:
        InvalidModelError: it is neither.
    """

    def __init__(self, given: Any) -> None:
        self._given = given
        self._call: RecordedCall | None = call_of(given)
        if is_a(given, "LightningDataModule"):
            if self._call is None:
                kind = type(given).__name__
                raise InvalidModelError(
                    f"the {kind} was not traced, so it cannot be made again for each stage; make it with "
                    f"mp.trace({kind})(...) or give a function () -> LightningDataModule"
                )
        elif self._call is not None or isinstance(given, type | Traced | nn.Module) or not callable(given):
            raise InvalidModelError(
                f"data is {described(given)}; give mp.trace(MyDataModule)(...), with its arguments, MyDataModule being "
                "a LightningDataModule, or a function that returns one"
            )

    def rng_roots(self) -> dict[str, Any]:
        """What random number generators may be behind."""
        return {"data": parts_of(self._given)}

    def make(self, package: Package) -> Any:
        """A new data module of the package that the model is of."""
        with rng.fork_rng(_SEED):
            made = self._given() if self._call is None else self._call.factory(*self._call.args, **self._call.kwargs)
        if package_of(made, "LightningDataModule") != package:
            raise InvalidModelError(
                f"data is {described(made)} while the model is a LightningModule of {package.name}; give a "
                f"{package.name}.LightningDataModule"
            )
        return made


class Data:
    """A data module at work, from its first use until `close`.

    prepare_data() and setup(stage) run once, teardown(stage) on close, each with the same random numbers at every time;
    so Lightning may ask for them in every fit. The training loaders are made once, or as often as
    reload_dataloaders_every_n_epochs says, so their shuffling goes on like in one long fit.
    """

    def __init__(self, source: DataModuleSource) -> None:
        self._source = source
        self._module: Any = None
        self._package: Package | None = None
        self._unguarded: dict[str, Any] = {}
        self._stages: list[str] = []
        self._loader: Any = None
        self._loaded_at, self._skip = 0, 0
        self._waiting: dict[str, Any] | None = None  # states of generators for loaders that are not there yet

    def module(self, package: Package) -> Any:
        """The data module."""
        if self._module is None:
            self._package, self._module = package, self._source.make(package)
            self._guard(self._module)
        return self._module

    def close(self) -> None:
        """Tears down what was set up; the next use makes a new data module."""
        module, stages, loader = self._module, self._stages, self._loader
        self._module = self._loader = self._waiting = None
        self._stages, self._loaded_at, self._skip = [], 0, 0
        if loader is not None:
            loader.let_go()
        if module is None:
            return
        for name in _GUARDED:
            vars(module).pop(name, None)
        vars(module).update(self._unguarded)
        with rng.fork_rng(_SEED):
            for stage in stages:
                module.teardown(stage)

    @property
    def loader(self) -> Any:
        """The training loaders as one; None before the first training."""
        return self._loader

    def first_batch(self, package: Package) -> Any:
        """The first batch for training; no random numbers are used up."""
        module = self.module(package)
        with rng.fork_rng(_SEED):
            module.prepare_data()
            module.setup("fit")
            loaders = module.train_dataloader()
            before = generators.save({"loader": self._loader.flattened})
            try:
                return next(iter(_first_of(loaders.iterables)))
            finally:
                self._loader.let_go()
                generators.restore({"loader": self._loader.flattened}, before)

    def go_on_behind(self, batches: int) -> None:
        """The next pass over the training data is the present one, behind its first `batches`."""
        self._skip = batches
        if self._loader is not None:
            self._settle()

    def state_dict(self, within: bool) -> dict[str, Any]:
        """Which loaders there are, and the states of random number generators behind the data.

        Args:
            within: whether a pass over the training data is to go on.
        """
        if self._waiting is not None:
            return self._waiting
        if self._loader is None:
            return {}
        return {
            "loadedAt": self._loaded_at,
            "generators": plain(generators.save(self._roots())),
            "began": self._loader.began if within else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes effect when the loaders are made, or at once."""
        if not state:
            return
        self._waiting, self._loaded_at = state, state["loadedAt"]
        if self._loader is not None:
            self._settle()

    def _roots(self) -> dict[str, Any]:
        return {"data": self._module, "loader": self._loader.flattened}

    def _settle(self) -> None:
        if self._waiting is not None:
            generators.restore(self._roots(), self._waiting["generators"])
            self._loader.began = self._waiting["began"]
            self._waiting = None
        self._loader.skip, self._skip = self._skip, 0

    def _guard(self, module: Any) -> None:
        """Puts methods on the data module, which is ours alone, that stand in front of the user's."""
        prepare, setup, loaders = module.prepare_data, module.setup, module.train_dataloader
        self._unguarded = {name: vars(module)[name] for name in _GUARDED if name in vars(module)}
        prepared = False

        @functools.wraps(prepare)
        def prepare_data() -> None:
            nonlocal prepared
            if not prepared:
                with rng.fork_rng(_SEED):
                    prepare()
                prepared = True

        @functools.wraps(setup)
        def set_up(stage: Any = None) -> None:
            name = str(getattr(stage, "value", stage))
            if name not in self._stages:
                with rng.fork_rng(_SEED):
                    setup(name)
                self._stages.append(name)

        @functools.wraps(loaders)
        def train_dataloader() -> Any:
            trainer = getattr(module, "trainer", None)
            every = trainer.reload_dataloaders_every_n_epochs if trainer is not None else 0
            epoch = trainer.current_epoch if trainer is not None else 0
            if self._loader is not None and every and epoch - self._loaded_at >= every:
                self._loader.let_go()
                self._loader, self._loaded_at = None, epoch
            if self._loader is None:
                with rng.fork_rng(rng.derive(_SEED, self._loaded_at)):
                    given = loaders()
                assert self._package is not None
                self._loader = _lasting(self._package)(given)
                self._settle()
            return self._loader

        module.prepare_data, module.setup, module.train_dataloader = prepare_data, set_up, train_dataloader
        module.teardown = lambda stage=None: None


@functools.lru_cache
def _lasting(package: Package) -> Any:
    """The class of loaders that can go on in the middle of a pass over the data, in this process or another."""
    combined = package.part("utilities.combined_loader.CombinedLoader")

    class LastingLoader(combined):  # type: ignore[misc, valid-type]
        """The user's loaders.

        Attributes:
            began: states of the random number generators when the present pass began.
            keep: whether the pass is to go on where it is when the next fit asks for it.
            skip: how many batches to leave out at the begin of the next pass, which is the one that has `began`.
        """

        def __init__(self, given: Any) -> None:
            if isinstance(given, combined):
                super().__init__(given.iterables, given._mode)
            else:
                super().__init__(given, "max_size_cycle")
            self.began: dict[str, Any] | None = None
            self.keep, self.skip = False, 0

        def __iter__(self) -> Any:
            if self.keep and self._iterator is not None:
                self.keep, self.skip = False, 0
                return self
            # Persistent workers would draw no random numbers for a second pass: one that is resumed has new ones.
            super().reset()
            skip, self.skip, self.keep = self.skip, 0, False
            if not skip or self.began is None:
                self.began = self._generators()
                return super().__iter__()
            now = self._generators()
            self._restore(self.began)
            super().__iter__()
            for _ in range(skip):
                next(self)
            self._restore(now)
            return self

        def reset(self) -> None:
            if not self.keep:
                super().reset()

        def let_go(self) -> None:
            """Ends worker processes."""
            self.keep = False
            super().reset()

        def _generators(self) -> dict[str, Any]:
            return {"global": rng.capture(), "own": plain(generators.save({"loader": self.flattened}))}

        def _restore(self, states: dict[str, Any]) -> None:
            rng.restore(states["global"])
            generators.restore({"loader": self.flattened}, states["own"])

    return LastingLoader


def _first_of(loaders: Any) -> Any:
    """The loaders of a structure, with a batch of each in its place."""
    if isinstance(loaders, dict):
        return _together(loaders.values(), lambda batches: dict(zip(loaders, batches, strict=True)))
    if isinstance(loaders, list | tuple):
        return _together(loaders, type(loaders))
    return loaders


def _together(loaders: Any, make: Callable[[Any], Any]) -> Any:
    """Batches of several loaders at once, in one structure."""
    return (make(batches) for batches in zip(*map(_first_of, loaders), strict=False))
