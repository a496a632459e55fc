"""Passes that go forward only, over a model that stays as it is: calibration data, and the evaluator's evaluation."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn

from modelpress_runner.errors import CompressionError, InvalidModelError, RunnerError
from modelpress_runner.evaluators.base import Evaluator
from modelpress_runner.evaluators.hooks import BackwardHook, ForwardHook, Hook, module_called
from modelpress_runner.process.stopping import Stopped
from modelpress_runner.runtime import distributed as ranks
from modelpress_runner.runtime import rng
from modelpress_runner.runtime import user_rng as generators
from modelpress_runner.runtime.example_inputs import ModelCall, as_call, map_tensors, plain_containers, tensors
from modelpress_runner.runtime.preserve import untouched
from modelpress_runner.usercode.calling import describe, user_code

_EMPTY = "calibration_data has no batches; give at least one"


class _Over(Stopped):
    """Ends an evaluation whose further batches nobody looks at; passes through the user's code as Stopped does."""


class ForwardPass:
    """Calls of a model that is bound to nothing, as a pass (collectors.Pass)."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._hooks: list[Hook] = []

    def gradient(self, parameter: nn.Parameter) -> torch.Tensor | None:
        """There is none."""
        raise TypeError("a pass that goes forward only has no gradients; let the method's row need gradients")

    def register_forward_hook(self, module: str, hook: ForwardHook) -> None:
        """As Pass.register_forward_hook."""
        target = module_called(self._model, module)
        self._hooks.append(hook)
        hook.attach(target)

    def register_backward_hook(self, module: str, hook: BackwardHook) -> None:
        """There is no backward pass."""
        raise TypeError("a pass that goes forward only has no backward pass; let the method's row need gradients")

    def close(self) -> None:
        """The pass is over: its hooks go."""
        while self._hooks:
            self._hooks.pop().remove()


def check_calibration(data: Any) -> None:
    """Raises InvalidModelError where calibration data cannot be gone through, or only once."""
    try:
        once = iter(data) is data
    except TypeError:
        raise InvalidModelError(
            f"calibration_data is a {type(data).__name__}; give batches: a list, or a DataLoader"
        ) from None
    if once:
        raise InvalidModelError(
            f"calibration_data is a {type(data).__name__}, which can be gone through only once; give a list or a "
            "DataLoader"
        )


def first_batch(data: Iterable[Any]) -> Any:
    """The first batch of calibration data; all random number generators stay as they are.

    Raises:
        InvalidModelError: there is none, or it is none.
        UserCodeError: the data raised.
    """
    check_calibration(data)
    with generators.aside({"calibration_data": data}), rng.fork_rng():
        for batch in _raising(data):
            _call(batch, 1)
            return batch
    raise InvalidModelError(_EMPTY)


def over_calibration(
    model: nn.Module,
    data: Iterable[Any],
    batches: int | None,
    each: Callable[[], None],
    evaluator: Evaluator | None = None,
    stop: Callable[[], None] = lambda: None,
    call: Callable[..., object] | None = None,
) -> int:
    """Calls the model on batches of calibration data, without gradients; how many there were, on all ranks together.

    Every rank goes through all of the data, which are the same on each, and calls the model on its share of the
    batches: on every nth of them, n being the number of ranks.

    Args:
        model: stays as it is, as do all random number generators.
        data: batches as the model takes them, as example inputs are given.
        batches: so many from the beginning, at most; None: all.
        each: called behind each of this rank's.
        evaluator: says where the model can be called; None: where it is.
        stop: called before each batch; raises Stopped to end the run.
        call: called with a batch's arguments in place of the model.

    Raises:
        InvalidModelError: there are no batches, or the model does not take one.
        UserCodeError: the data raised.
        Stopped: `stop` raised it, on this rank or another.
    """
    count = 0

    def run() -> None:
        nonlocal count
        device = next((tensor.device for tensor in (*model.parameters(), *model.buffers())), torch.device("cpu"))
        for batch in _raising(data):
            if count == batches:
                break
            stop()
            if count % ranks.world_size() == ranks.rank():
                args, kwargs = _call(batch, count + 1)
                args, kwargs = map_tensors((args, kwargs), lambda tensor: tensor.to(device))
                try:
                    (call or model)(*args, **kwargs)
                except Exception as error:
                    raise InvalidModelError(_refused(count + 1, describe(error))) from error
                each()
            count += 1
        if not count:
            raise InvalidModelError(_EMPTY)

    place = contextlib.nullcontext() if evaluator is None else evaluator.placed(model)
    with generators.aside({"calibration_data": data}), rng.fork_rng(), untouched(model), place, torch.no_grad():
        _together(run)
    return count


def over_evaluation(
    model: nn.Module,
    evaluator: Evaluator,
    batches: int | None,
    each: Callable[[], None],
    enough: Callable[[], None] = lambda: None,
    stop: Callable[[], None] = lambda: None,
) -> int:
    """Has the evaluator evaluate the model, as for a score; how many batches this rank saw.

    A batch is a call of the model or, where the evaluation calls parts of it only, of the part that is called first.

    Args:
        model: stays as it is, as do all random number generators.
        evaluator: must be able to evaluate, and not be bound.
        batches: so many from the beginning, at most, on each rank; None: all.
        each: called behind each.
        enough: called when there were as many as asked for; where ranks evaluate together the evaluation goes on.
        stop: called before each batch; raises Stopped to end the run.

    Raises:
        CompressionError: the evaluation does not call the model.
        UserCodeError: the user's evaluation raised.
        Stopped: `stop` raised it, on this rank or another.
    """
    count = 0
    asked = False

    def begin() -> None:
        nonlocal asked
        alone = not ranks.is_distributed()
        try:
            stop()
        except Stopped:
            asked = True
            if alone:
                raise
        if count == batches:
            enough()
            if alone:
                raise _Over

    def end() -> None:
        nonlocal count
        if batches is None or count < batches:
            count += 1
            each()

    def run() -> None:
        with _batches(model, begin, end):
            evaluator.evaluate(model)
        if asked:
            raise Stopped
        if not count:
            raise CompressionError(
                "the evaluation does not call the model that it is given, so there is nothing to see; let it do so, or "
                "give calibration_data"
            )

    with rng.fork_rng(), untouched(model):
        _together(run)
    return count


def _together(run: Callable[[], None]) -> None:
    """Runs; what it raises on one rank, it raises on all, once all have run."""
    failed: RunnerError | None = None
    stopped = False
    try:
        run()
    except _Over:
        pass
    except Stopped:
        stopped = True
    except RunnerError as error:
        failed = error
    ranks.raise_together(failed)
    if ranks.any_rank(stopped):
        raise Stopped


@contextlib.contextmanager
def _batches(model: nn.Module, begin: Callable[[], None], end: Callable[[], None]) -> Iterator[None]:
    """Inside, `begin` and `end` are called around the batches that somebody calls the model on."""
    depth = 0
    first: nn.Module | None = None

    def enter(module: nn.Module, args: Any) -> None:
        nonlocal depth, first
        if not depth and (first is None or module is first):
            if first is not None:
                end()
            first = module
            begin()
        depth += 1

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        nonlocal depth
        depth -= 1

    with contextlib.ExitStack() as undone:
        for module in model.modules():
            undone.callback(module.register_forward_pre_hook(enter).remove)
            undone.callback(module.register_forward_hook(leave, always_call=True).remove)
        yield
        if first is not None:
            end()


def _raising(data: Iterable[Any]) -> Iterator[Any]:
    """The batches; what the user's data raise becomes a UserCodeError."""
    with user_code("calibration_data"):
        batches = iter(data)
    while True:
        with user_code("calibration_data"):
            try:
                batch = next(batches)
            except StopIteration:
                return
        yield batch


def _call(batch: Any, number: int) -> ModelCall:
    if not tensors(plain_containers(batch)):
        raise InvalidModelError(_refused(number, f"it holds no tensor (it is a {type(batch).__name__})"))
    return as_call(batch)


def _refused(number: int, why: str) -> str:
    return (
        f"the model does not take batch {number} of calibration_data: {why}; give batches as the model takes them, a "
        "tensor, a tuple of its arguments or a dict of them, without labels"
    )
