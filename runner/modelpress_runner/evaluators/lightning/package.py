"""Lightning under either of its names, `lightning.pytorch` or `pytorch_lightning`, as the user has imported it.

The two are packages of their own whose classes do not mix. Nothing here imports Lightning: which one it is, is read off
the user's own objects, so it is loaded already.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import signal
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelpress_runner.errors import InvalidModelError, RunnerError
from modelpress_runner.usercode.calling import user_code, user_line

_NAMES = ("lightning.pytorch", "pytorch_lightning")
_LOGGERS = (
    *("lightning", "lightning.pytorch", "lightning.fabric", "pytorch_lightning", "lightning_fabric"),
    *("lightning.pytorch.utilities.rank_zero", "pytorch_lightning.utilities.rank_zero"),
)
# Remarks that each fit would repeat.
_IDLE_REMARKS = (
    r".*`training_step` returned `None`.*",
    r".*`configure_optimizers` returned `None`.*",
    r"Checkpoint directory .* exists and is not empty",
    r"Trying to infer the `batch_size`.*",
    r"`isinstance\(treespec, LeafSpec\)` is deprecated.*",  # Lightning 2.6's own use of a newer torch
)


@dataclass(frozen=True)
class Package:
    """One of Lightning's two packages."""

    name: str

    def part(self, path: str) -> Any:
        """An attribute by its place in the package: "callbacks.Checkpoint"."""
        module, _, attribute = path.rpartition(".")
        return getattr(importlib.import_module(f"{self.name}.{module}" if module else self.name), attribute)


def package_of(value: Any, kind: str) -> Package | None:
    """The package whose class `kind` (Trainer, LightningModule, LightningDataModule) `value` is of; None if of none."""
    for each in type(value).__mro__:
        for name in _NAMES:
            if each.__name__ == kind and each.__module__.startswith(f"{name}."):
                return Package(name)
    return None


def is_a(value: Any, kind: str) -> bool:
    """Whether `value` is an instance of Lightning's class `kind`."""
    return package_of(value, kind) is not None


@contextlib.contextmanager
def quiet(package: Package) -> Iterator[None]:
    """Inside, Lightning says nothing but warnings about what the user's code does."""
    levels = []
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        if logger.level in (logging.NOTSET, logging.INFO):
            levels.append((logger, logger.level))
            logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", package.part("utilities.warnings.PossibleUserWarning"))
            for remark in _IDLE_REMARKS:
                warnings.filterwarnings("ignore", remark)
            yield
    finally:
        for logger, level in levels:
            logger.setLevel(level)


@contextlib.contextmanager
def lightning_code(package: Package, what: str) -> Iterator[None]:
    """Turns what Lightning and the user's code within it raise into errors with one sentence.

    Raises:
        InvalidModelError: Lightning refuses how it is used.
        UserCodeError: the user's code raised.
        KeyboardInterrupt: on Ctrl-C, of which Lightning makes an exit.
    """
    own = str(Path(importlib.import_module(package.name).__file__ or "").parent)
    interrupt = signal.getsignal(signal.SIGINT)
    with user_code(what):
        try:
            yield
        except RunnerError:
            raise
        except SystemExit as error:
            if isinstance(error.__context__, KeyboardInterrupt):
                signal.signal(signal.SIGINT, interrupt)  # Lightning ignores it from then on
                raise KeyboardInterrupt from error
            raise
        except Exception as error:
            frames = traceback.extract_tb(error.__traceback__)
            if user_line(error) is not None or not frames or not frames[-1].filename.startswith(own):
                raise
            raise InvalidModelError(f"{what}: Lightning says: {' '.join(str(error).split())}") from error
