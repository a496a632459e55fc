"""Trainers made again from what the user gave, within the limits of a training and without files and noise."""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import os
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from modelpress_runner.errors import InvalidModelError
from modelpress_runner.evaluators.lightning.package import Package, is_a, package_of
from modelpress_runner.evaluators.trace import RecordedCall, Traced, call_of, parts_of
from modelpress_runner.runtime import distributed as ranks

Arguments = dict[str, Any]

# Callbacks whose work spans a whole fit: they freeze, average or swap weights at its begin and end.
_WHOLE_FIT = ("BaseFinetuning", "StochasticWeightAveraging", "WeightAveraging")
# Callbacks that fit the model on their own, from its first weights.
_OWN_FITS = ("LearningRateFinder", "BatchSizeFinder")
_LOGGING = ("LearningRateMonitor", "DeviceStatsMonitor")
_SHARDING = ("fsdp", "deepspeed", "model_parallel", "xla")
_STARTING = ("spawn", "fork", "notebook")
_SHOWN = {"enable_checkpointing": "Checkpoint", "enable_progress_bar": "ProgressBar"}
_SHOWN |= {"enable_model_summary": "ModelSummary"}


class LightningTrainerSource:
    """How a Trainer comes about: a recorded constructor call, or a function () -> Trainer.

    Args:
        given: what the user gave.
        resumable: whether a fit may be ended for a checkpoint, and go on in another.

    Raises:
        InvalidModelError: it is neither, or uses what cannot work here.
    """

    def __init__(self, given: Any, resumable: bool) -> None:
        self._given, self._resumable = given, resumable
        self._call: RecordedCall | None = call_of(given)
        self.package: Package | None = package_of(given, "Trainer")
        if self.package is not None:
            if self._call is None:
                kind = type(given).__name__
                raise InvalidModelError(
                    f"the {kind} was not traced, so it cannot be made again for each part of the training; make it "
                    f"with mp.trace({kind})(...) or give a function () -> Trainer"
                )
        elif self._call is not None or isinstance(given, type | Traced | nn.Module) or not callable(given):
            raise InvalidModelError(
                f"trainer is {described(given)}; give mp.trace(Trainer)(...), with its arguments, or a function "
                "() -> Trainer"
            )
        callbacks = [] if self.package is None else list(given.callbacks)
        self.callback_states = states_of(callbacks)
        if self._call is not None:
            self._check(self._call.kwargs)

    def rng_roots(self) -> dict[str, Any]:
        """What random number generators may be behind."""
        return {"trainer": parts_of(self._given)}

    def for_training(self, package: Package, max_steps: int | None, max_epochs: int | None) -> Any:
        """A Trainer with these limits and no others; with neither, with the user's own."""

        def change(given: Arguments) -> Arguments:
            out = {**_quiet(given), **_placed(package, given), "num_sanity_val_steps": 0}
            if max_steps is not None or max_epochs is not None:
                out |= {"max_steps": -1 if max_steps is None else max_steps}
                out |= {"max_epochs": -1 if max_epochs is None else max_epochs}
                out |= {"min_steps": None, "min_epochs": None, "max_time": None}
            return out

        return self._make(package, change)

    def for_testing(self, package: Package, on_cpu: bool = False) -> Any:
        """A Trainer that tests on one device, all of the data in each process.

        Args:
            package: the model's.
            on_cpu: for what was exported on the CPU, in its own precision.
        """

        def change(given: Arguments) -> Arguments:
            callbacks = [each for each in _listed(given.get("callbacks")) if not is_a(each, "Checkpoint")]
            out = {**_quiet(given), **_placed(package, given, alone=True), "callbacks": callbacks}
            out |= dict.fromkeys(_SHOWN, False)
            out |= {"inference_mode": False, "profiler": None, "max_time": None}
            if on_cpu:
                plugins = [each for each in _listed(out.get("plugins")) if not is_a(each, "Precision")]
                out |= {"accelerator": "cpu", "devices": 1, "strategy": "auto", "precision": None, "plugins": plugins}
            return out

        return self._make(package, change)

    def _make(self, package: Package, change: Callable[[Arguments], Arguments]) -> Any:
        def checked(given: Arguments) -> Arguments:
            self._check(given)
            return change(given)

        with _arguments(package, checked) as begun:
            if self._call is None:
                made = self._given()
            else:
                made = self._call.factory(*self._call.args, **_own_strategy(self._call.kwargs))
        if package_of(made, "Trainer") != package:
            raise InvalidModelError(
                f"the trainer is {described(made)} while the model is a LightningModule of {package.name}; make both "
                f"with {package.name}"
            )
        if not any(made is each for each in begun):
            raise InvalidModelError(
                "the trainer function returned a Trainer that was there before; let it make a new one at each call"
            )
        # SIGTERM is the run's: it saves and ends between two steps, on all ranks alike.
        made._signal_connector.register_signal_handlers = lambda: None
        return made

    def _check(self, given: Arguments) -> None:
        if given.get("fast_dev_run"):
            raise InvalidModelError(
                "the Trainer has fast_dev_run, which trains for a few batches whatever the recipe says; use "
                "limit_train_batches and limit_test_batches instead"
            )
        name = _strategy_name(given.get("strategy"))
        if any(each in name for each in _SHARDING):
            raise InvalidModelError(
                f"the Trainer's strategy {name!r} spreads parameters over processes, which cannot be pruned here; use "
                "'auto' or 'ddp', or DeepSpeed with mp.DeepspeedTorchEvaluator"
            )
        if not ranks.is_distributed():
            wanted = {"devices": _count(given.get("devices")), "num_nodes": int(given.get("num_nodes") or 1)}
            for argument, count in wanted.items():
                if count > 1:
                    field = "processesPerNode" if argument == "devices" else "nodes"
                    raise InvalidModelError(
                        f"the Trainer has {argument}={count}, but processes are started by the recipe; set "
                        f"spec.runner.{field}: {count} and leave {argument} out"
                    )
        for each in _listed(given.get("callbacks")):
            self._check_callback(each, given)

    def _check_callback(self, callback: Any, given: Arguments) -> None:
        name = type(callback).__name__
        if _is_one_of(callback, _WHOLE_FIT) and self._resumable:
            raise InvalidModelError(
                f"the callback {name} needs a whole fit, but one is ended for checkpoints; give LightningEvaluator "
                "resumable=False, or leave it out"
            )
        if _is_one_of(callback, _OWN_FITS):
            raise InvalidModelError(
                f"the callback {name} fits the model itself, from its first weights; leave it out and set what it finds"
            )
        if _is_one_of(callback, _LOGGING) and given.get("logger") is None:
            raise InvalidModelError(
                f"the callback {name} needs a logger, which there is only where the Trainer's arguments name one; give "
                "the Trainer a logger, or leave the callback out"
            )


@contextlib.contextmanager
def _arguments(package: Package, change: Callable[[Arguments], Arguments]) -> Iterator[list[Any]]:
    """Inside, a Trainer is made with what `change` gives for the arguments that its maker gives; the Trainers made."""
    kind = package.part("Trainer")
    original = kind.__init__
    names = list(inspect.signature(original).parameters)[1:]
    begun: list[Any] = []

    @functools.wraps(original)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        begun.append(self)
        original(self, **change({**dict(zip(names, args, strict=False)), **kwargs}))

    kind.__init__ = init
    try:
        yield begun
    finally:
        kind.__init__ = original


def _quiet(given: Arguments) -> Arguments:
    """The arguments with logger, checkpoints, progress bar and summary off unless they were asked for."""
    out = dict(given)
    if out.get("logger") is None:
        out["logger"] = False
    for argument, callback in _SHOWN.items():
        if out.get(argument) is None:
            out[argument] = any(is_a(each, callback) for each in _listed(given.get("callbacks")))
    return out


def _placed(package: Package, given: Arguments, alone: bool = False) -> Arguments:
    """Where to run: one device per process, over the process group that is there; nothing starts other processes."""
    kind = package.part("plugins.environments.ClusterEnvironment")
    plugins = [each for each in _listed(given.get("plugins")) if not isinstance(each, kind)]
    local = int(os.environ.get("LOCAL_RANK") or 0)
    out: Arguments = {"plugins": [*plugins, _environment(kind)], "num_nodes": 1, "devices": 1, "strategy": "auto"}
    if ranks.is_distributed() and alone:
        if given.get("accelerator", "auto") != "cpu" and package.part("accelerators.CUDAAccelerator").is_available():
            out["devices"] = [local]
    elif ranks.is_distributed():
        beside = _beside()
        strategy = given.get("strategy", "auto")
        started = isinstance(strategy, str) and any(each in strategy for each in _STARTING)
        out["strategy"] = "ddp" if strategy in ("auto", None) or started else strategy
        out |= {"devices": beside, "num_nodes": ranks.world_size() // beside}
    else:
        devices, strategy = given.get("devices"), given.get("strategy")
        if isinstance(devices, list | tuple) or (isinstance(devices, str) and "," in devices):
            out["devices"] = devices  # which one it is
        if is_a(strategy, "Strategy") and not is_a(strategy, "ParallelStrategy"):
            out["strategy"] = strategy
    return out


def _beside() -> int:
    """How many of the processes are on this machine."""
    for name in ("LOCAL_WORLD_SIZE", "LOCAL_SIZE"):
        if os.environ.get(name, "").isdigit():
            return int(os.environ[name])
    return ranks.world_size()


def _environment(kind: type) -> Any:
    """Tells Lightning that all processes are there, whoever has started them."""
    local, beside = int(os.environ.get("LOCAL_RANK") or 0), _beside()
    methods = {
        "creates_processes_externally": property(lambda self: True),
        "main_address": property(lambda self: os.environ.get("MASTER_ADDR", "127.0.0.1")),
        "main_port": property(lambda self: int(os.environ.get("MASTER_PORT") or 0)),
        "detect": staticmethod(lambda: False),
        "world_size": lambda self: ranks.world_size(),
        "set_world_size": lambda self, size: None,
        "global_rank": lambda self: ranks.rank(),
        "set_global_rank": lambda self, rank: None,
        "local_rank": lambda self: local,
        "node_rank": lambda self: ranks.rank() // beside,
    }
    return type("RunnerEnvironment", (kind,), methods)()


def states_of(callbacks: list[Any]) -> dict[str, Any]:
    """Copies of the callbacks' states by their keys; those that need a whole fit have none that could go on."""
    lasting = [each for each in callbacks if not _is_one_of(each, _WHOLE_FIT)]
    return {each.state_key: copy.deepcopy(each.state_dict()) for each in lasting}


def _own_strategy(given: Arguments) -> Arguments:
    """A strategy object keeps the model that it was set up with: each Trainer gets a copy."""
    strategy = given.get("strategy")
    return given if strategy is None or isinstance(strategy, str) else {**given, "strategy": copy.deepcopy(strategy)}


def _strategy_name(strategy: Any) -> str:
    if isinstance(strategy, str):
        return strategy
    name = type(strategy).__name__.lower()
    return "model_parallel" if name == "modelparallelstrategy" else name


def _is_one_of(callback: Any, kinds: tuple[str, ...]) -> bool:
    return any(is_a(callback, kind) for kind in kinds)


def _count(devices: Any) -> int:
    if isinstance(devices, list | tuple):
        return len(devices)
    if isinstance(devices, str) and "," in devices:
        return len([each for each in devices.split(",") if each.strip()])
    return devices if isinstance(devices, int) else int(devices) if str(devices).isdigit() else 1


def _listed(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def described(value: Any) -> str:
    """What was given instead of what was expected, for messages."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(value, Traced):
        return f"{value!r}, not called"
    return f"a {type(value).__name__}"
