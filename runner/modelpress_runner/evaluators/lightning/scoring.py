"""The score of a model by the user's test_step: of a LightningModule, or of whatever runs in place of its forward."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from modelpress.api.v1alpha1 import DEFAULT_METRIC
from modelpress_runner.errors import InvalidModelError
from modelpress_runner.evaluators.base import Score
from modelpress_runner.evaluators.lightning.data import Data
from modelpress_runner.evaluators.lightning.fit import untouched
from modelpress_runner.evaluators.lightning.package import Package, lightning_code, quiet
from modelpress_runner.evaluators.lightning.trainer import LightningTrainerSource
from modelpress_runner.evaluators.score import numbers_in
from modelpress_runner.runtime import distributed as ranks
from modelpress_runner.runtime import rng
from modelpress_runner.runtime import user_rng as generators
from modelpress_runner.runtime.graph import call
from modelpress_runner.runtime.preserve import flags_restored

_INSTEAD = "call self(...) there, or measure the model itself with spec.target.format: eager"


def score(source: LightningTrainerSource, data: Data, package: Package, module: Any) -> Score:
    """What `module`'s test_step logs over the data module's test data, each number over the whole of them.

    Raises:
        InvalidModelError: there is no test_step, or it logs no finite number named `default`.
        UserCodeError: the user's code raised.
    """
    kind = type(module).__name__
    if not has(package, module, "test_step"):
        raise InvalidModelError(f"{kind} has no test_step; define it, and log the score with self.log('default', ...)")
    on_cpu = isinstance(module, _StandIn) and module.on_cpu
    with (
        lightning_code(package, f"testing {kind}"),
        untouched(module),
        quiet(package),
        rng.fork_rng(),
        generators.aside({"data": data.module(package)}),
        torch.no_grad(),
    ):
        trainer = source.for_testing(package, on_cpu)
        trainer.test(module, datamodule=data.module(package), verbose=False)
    logged = {name: value.detach().cpu() for name, value in trainer.callback_metrics.items()}
    return ranks.broadcast_object(_score_in(logged, kind))


def _score_in(logged: dict[str, torch.Tensor], kind: str) -> Score:
    if DEFAULT_METRIC not in logged:
        # Of several loaders each number has a name of its own.
        parts = [value.double() for name, value in logged.items() if name.startswith(f"{DEFAULT_METRIC}/dataloader_")]
        if not parts:
            names = ", ".join(map(repr, logged)) or "nothing"
            raise InvalidModelError(
                f"{kind}.test_step logged {names} but no 'default'; log the score with self.log('default', value)"
            )
        logged = {DEFAULT_METRIC: torch.stack(parts).mean(), **logged}
    return numbers_in(logged, f"{kind}.test_step", "logged")


def has(package: Package, module: Any, method: str) -> bool:
    """Whether the user's LightningModule defines this method."""
    own = getattr(type(module), method, None)
    return method in vars(module) or own is not getattr(package.part("LightningModule"), method)


class _StandIn:
    """Mixed into the class of the user's LightningModule: another module runs as its forward."""

    on_cpu: bool


@contextlib.contextmanager
def stand_in(reference: Any, other: nn.Module, dummy_input: Callable[[], Any]) -> Iterator[Any]:
    """A copy of the user's LightningModule whose forward is `other`: its test_step scores `other`.

    The modules that make up the reference's own forward are there for their attributes, but cannot be called, so that
    nothing but `other` is scored. Where forward does no more than call one of them, `other` takes its place, too.

    Raises:
        InvalidModelError: on leaving, test_step has not called `other`; or, from within, it has called a part of the
            model itself.
    """
    calls = 0

    def forward(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        return other(*args, **kwargs)

    kind = type(reference)
    twin = copy.copy(reference)
    twin.__class__ = type(kind.__name__, (kind, _StandIn), {"__module__": kind.__module__})
    whole = _whole_forward(reference, dummy_input)
    children = {
        name: _Running(forward) if child is whole else _silent(child, f"self.{name}")
        for name, child in reference.named_children()
    }
    vars(twin).update(_modules={**children, "_mp_other": other}, _parameters=dict(reference._parameters))
    vars(twin).update(_buffers=dict(reference._buffers), forward=forward)
    tensors = [*other.parameters(), *other.buffers()]
    twin.on_cpu = all(tensor.device.type == "cpu" for tensor in tensors)
    with flags_restored(other):
        yield twin
    if not calls:
        raise InvalidModelError(
            f"{kind.__name__}.test_step does not call self(...), so an exported program cannot be scored by it; "
            f"{_INSTEAD}"
        )


class _Running(nn.Module):
    """Calls a function."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        vars(self)["function"] = function

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return vars(self)["function"](*args, **kwargs)


def _silent(module: nn.Module, name: str) -> nn.Module:
    """A copy of a module with weights that must not be called; metrics and losses stay what they are."""
    if is_metric(module) or not any(True for _ in module.parameters()):
        return module

    def forward(*args: Any, **kwargs: Any) -> Any:
        raise InvalidModelError(
            f"test_step uses {name} itself, so an exported program cannot be scored by it; {_INSTEAD}"
        )

    twin = copy.copy(module)
    children = {key: _silent(child, f"{name}.{key}") for key, child in module.named_children()}
    vars(twin).update(_modules=children, forward=forward)
    return twin


def is_metric(module: nn.Module) -> bool:
    """Whether a module is a metric of torchmetrics, some of which have networks of their own."""
    return any(each.__module__.partition(".")[0] == "torchmetrics" for each in type(module).__mro__)


def _whole_forward(reference: Any, dummy_input: Callable[[], Any]) -> nn.Module | None:
    """The child that `forward` hands its arguments to as they are, and whose result it returns as it is."""
    seen: list[tuple[nn.Module, tuple[Any, ...], dict[str, Any], Any]] = []

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        seen.append((module, args, kwargs, output))

    parts = [reference, *reference.children()]
    handles = [part.register_forward_hook(note, with_kwargs=True) for part in parts]
    try:
        with flags_restored(reference), rng.fork_rng(), torch.no_grad():
            reference.eval()
            call(reference, dummy_input())
    except Exception:
        return None  # a forward of its own, or none: then test_step has to call self(...)
    finally:
        for handle in handles:
            handle.remove()
    if len(seen) != 2:
        return None
    (child, args, kwargs, output), (_, own_args, own_kwargs, own_output) = seen
    given, passed = [*own_args, *own_kwargs.values()], [*args, *kwargs.values()]
    same = len(given) == len(passed) and all(one is two for one, two in zip(given, passed, strict=True))
    return child if same and output is own_output else None
