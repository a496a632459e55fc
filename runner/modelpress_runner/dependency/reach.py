"""What a forward pass in eval mode does not reach: layers that train mode alone runs, and what feeds them."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from modelpress_runner.dependency.groups import ChannelDependencies
from modelpress_runner.edits.cuts import Cut
from modelpress_runner.edits.replay import replay
from modelpress_runner.errors import CompressionError
from modelpress_runner.runtime.example_inputs import with_batch
from modelpress_runner.runtime.graph import call, map_tensors, tensors_in

UNREACHED = "The dummy input reaches "
_DEEPEST = 4  # operations between a weight and the one that uses it: a transpose, a view, a cast


def spare_unreached(dependencies: ChannelDependencies, model: nn.Module, dummy_input: Any) -> ChannelDependencies:
    """The coupling with everything frozen that feeds layers which train mode alone runs.

    Layers that neither mode runs are told in its notes: nobody knows what feeds them. `model` must be a copy whose
    parameters require gradients; it is left in train mode.
    """
    owners = {id(p): name for name, module in model.named_modules() for p in module._parameters.values()}
    unreached = _owning(model) - _reached(model, dummy_input, owners)
    if not unreached:
        return dependencies
    feeds = _feeds(model, dummy_input, unreached, owners, {axis.module for axis in dependencies.axes if axis.producer})
    frozen = dict(dependencies.frozen)
    for name, producers in feeds.items():
        for producer in producers:
            axis = dependencies.output(producer)
            for unit in () if axis is None else axis.units:
                frozen.setdefault(unit, f"they feed '{name}', which runs in train mode only")
    silent = sorted(unreached - feeds.keys())
    notes = list(dependencies.notes)
    if silent:
        named = ", ".join(f"'{name}'" for name in silent[:6]) + (f" and {len(silent) - 6} more" if silent[6:] else "")
        notes.append(
            f"{UNREACHED}{named} neither in eval nor in train mode. If your training uses that, exclude "
            "the layers that feed it"
        )
    return ChannelDependencies(dependencies.axes, frozen, notes=tuple(notes))


def check_train_mode(model: nn.Module, cuts: Sequence[Cut], dummy_input: Any) -> None:
    """Runs a copy of `model` once in train mode before and once after `cuts`.

    Raises:
        CompressionError: it runs before them, and does not after them, or gives outputs of other shapes.
    """
    twin = copy.deepcopy(model)
    try:
        before = [tuple(tensor.shape) for tensor in _train_pass(twin, dummy_input)]
    except Exception:  # it does not run on example inputs in train mode at all
        return
    replay(twin, cuts)
    try:
        after = [tuple(tensor.shape) for tensor in _train_pass(twin, dummy_input)]
    except Exception as error:
        raise CompressionError(
            f"in train mode the shrunk model does not run: {type(error).__name__}: {error}; exclude the layers that "
            "feed what only train mode runs"
        ) from error
    if before != after:
        raise CompressionError(f"the shrink changed the model's outputs in train mode: shapes {before} became {after}")


def _owning(model: nn.Module) -> set[str]:
    """Names of the modules that have parameters which autograd can follow."""
    return {
        name
        for name, module in model.named_modules()
        if any(p is not None and p.requires_grad for p in module._parameters.values())
    }


def _reached(model: nn.Module, dummy_input: Any, owners: dict[int, str]) -> set[str]:
    """Names of the modules a parameter of which has a part in the outputs of a pass in eval mode."""
    model.eval()
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        outputs = tensors_in(call(model, map_tensors(dummy_input, torch.clone)))
    seen: set[Any] = set()
    found: set[str] = set()
    todo = [tensor.grad_fn for tensor in outputs if tensor.grad_fn is not None]
    while todo:
        node = todo.pop()
        if node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)
        if variable is not None and id(variable) in owners:
            found.add(owners[id(variable)])
        todo += [each for each, _ in node.next_functions if each is not None]
    return found


def _feeds(
    model: nn.Module, dummy_input: Any, unreached: Iterable[str], owners: dict[int, str], producers: set[str]
) -> dict[str, set[str]]:
    """The producers right before each of these modules, of those that a pass in train mode runs."""
    feeds: dict[str, set[str]] = {}
    with contextlib.ExitStack() as hooks:
        for name in unreached:

            def look(module: nn.Module, args: Any, kwargs: Any, name: str = name) -> None:
                given = [tensor for tensor in tensors_in((args, kwargs)) if tensor.grad_fn is not None]
                feeds.setdefault(name, set()).update(*(_nearest(tensor.grad_fn, owners, producers) for tensor in given))

            handle = model.get_submodule(name).register_forward_pre_hook(look, with_kwargs=True)
            hooks.callback(handle.remove)
        with contextlib.suppress(Exception):  # then it is not known what they do in train mode
            _train_pass(model, dummy_input)
    return feeds


def _train_pass(model: nn.Module, dummy_input: Any) -> list[torch.Tensor]:
    """The outputs of one pass in train mode; with two rows, as statistics over a batch need."""
    model.train()
    devices = sorted({tensor.device.index or 0 for tensor in model.parameters() if tensor.is_cuda})
    with torch.random.fork_rng(devices=devices), torch.enable_grad(), _Undetached():
        torch.manual_seed(0)
        try:
            return tensors_in(call(model, map_tensors(dummy_input, torch.clone)))
        except Exception:
            return tensors_in(call(model, map_tensors(with_batch(dummy_input, 2), torch.clone)))


class _Undetached(torch.overrides.TorchFunctionMode):
    """Where a head is trained without gradients for the trunk, its input still comes from there."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.detach:
            return args[0]
        return func(*args, **(kwargs or {}))


def _nearest(node: Any, owners: dict[int, str], producers: set[str]) -> set[str]:
    """The first producers on every way back from an operation of autograd."""
    found: set[str] = set()
    seen: set[Any] = set()
    todo = [node]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        weights = {owner for owner in _weights(node, owners) if owner in producers}
        if weights:
            found |= weights
        else:
            todo += [each for each, _ in node.next_functions]
    return found


def _weights(node: Any, owners: dict[int, str]) -> Iterator[str]:
    """The modules whose parameters an operation takes, directly or through a transpose, a view or a cast."""
    for each, _ in node.next_functions:
        for _ in range(_DEEPEST):
            if each is None:
                break
            variable = getattr(each, "variable", None)
            if variable is not None:
                if id(variable) in owners:
                    yield owners[id(variable)]
                break
            if len(each.next_functions) != 1:
                break
            each = each.next_functions[0][0]
