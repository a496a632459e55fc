"""Example inputs: how a model is called with them, and with any batch size.

A tensor is one positional argument, a tuple or list are the positional arguments, a mapping the keyword arguments;
each may nest further. The batch is dimension 0, of the state of recurrent layers dimension 1.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from modelpress_runner.errors import InvalidModelError
from modelpress_runner.runtime.preserve import untouched

ModelCall = tuple[tuple[Any, ...], dict[str, Any]]


def as_call(dummy_input: Any) -> ModelCall:
    """The positional and keyword arguments that `dummy_input` stands for.

    Raises:
        InvalidModelError: there is no tensor in it, or a keyword is not a string.
    """
    if isinstance(dummy_input, torch.Tensor):
        return (dummy_input,), {}
    plain = plain_containers(dummy_input)
    if not tensors(plain):
        raise InvalidModelError(
            f"dummy_input holds no tensor (it is a {type(dummy_input).__name__}); give a tensor, a tuple or list of "
            "the positional arguments, or a dict of the keyword arguments"
        )
    if isinstance(plain, dict):
        wrong = [key for key in plain if not isinstance(key, str)]
        if wrong:
            raise InvalidModelError(
                f"dummy_input is a dict with the key {wrong[0]!r}; the keys must be the names of forward()'s arguments"
            )
        return (), plain
    return tuple(plain), {}


def plain_containers(value: Any) -> Any:
    """`value` with every mapping as dict and every named tuple as tuple; leaves are the same objects."""
    if isinstance(value, Mapping):
        return {key: plain_containers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain_containers(item) for item in value]
    if isinstance(value, tuple):
        return tuple(plain_containers(item) for item in value)
    return value


def tensors(value: Any) -> list[torch.Tensor]:
    """All tensors in `value`, in order of mention."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, Mapping):
        return [tensor for item in value.values() for tensor in tensors(item)]
    if isinstance(value, list | tuple):
        return [tensor for item in value for tensor in tensors(item)]
    return []


def map_tensors(value: Any, change: Any) -> Any:
    """`value` with `change(tensor)` in place of each tensor, containers rebuilt as plain ones."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return {key: map_tensors(item, change) for key, item in value.items()}
    if isinstance(value, list):
        return [map_tensors(item, change) for item in value]
    if isinstance(value, tuple):
        return tuple(map_tensors(item, change) for item in value)
    return value


def batch_size(dummy_input: Any) -> int:
    """Size of dimension 0 of the first tensor that has one; 1 if no tensor has one."""
    return next((tensor.shape[0] for tensor in tensors(dummy_input) if tensor.ndim), 1)


def is_batched(tensor: torch.Tensor, batch: int) -> bool:
    """Whether dimension 0 of `tensor` is the batch: it is as large as the first tensor's."""
    return tensor.ndim > 0 and tensor.shape[0] == batch


def with_batch(dummy_input: Any, size: int) -> Any:
    """`dummy_input` with `size` rows: rows are repeated in turn, or left out. Other tensors stay as they are.

    Raises:
        InvalidModelError: the batch is empty.
    """
    batch = batch_size(dummy_input)
    if batch == 0:
        raise InvalidModelError("dummy_input has an empty batch (dimension 0 is 0); give at least one row")
    if batch == size:
        return map_tensors(dummy_input, lambda tensor: tensor)
    rows = torch.arange(size) % batch

    def change(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.index_select(0, rows.to(tensor.device)) if is_batched(tensor, batch) else tensor

    return map_tensors(dummy_input, change)


def with_rows(dummy_input: Any, size: int) -> Iterator[Any]:
    """Forms of `dummy_input` with `size` rows: as `with_batch` has it, then with the state of recurrent layers.

    That state is (layers, batch, hidden): of tensors behind the first one dimension 1 is taken for the batch where it
    is as large as the first tensor's dimension 0. Which form is right, the model knows.
    """
    yield with_batch(dummy_input, size)
    batch = batch_size(dummy_input)
    first = next((tensor for tensor in tensors(dummy_input) if tensor.ndim), None)
    rows = torch.arange(size) % max(batch, 1)

    def is_state(tensor: torch.Tensor) -> bool:
        return tensor is not first and tensor.ndim >= 3 and tensor.shape[1] == batch

    def change(tensor: torch.Tensor) -> torch.Tensor:
        if is_state(tensor):
            return tensor.index_select(1, rows.to(tensor.device))
        return tensor.index_select(0, rows.to(tensor.device)) if is_batched(tensor, batch) else tensor

    if batch != size and any(is_state(tensor) for tensor in tensors(dummy_input)):
        yield map_tensors(dummy_input, change)


def fitting(model: nn.Module, dummy_input: Any, size: int) -> Any:
    """The form of `with_rows` that the model runs on in eval mode; where it runs on none, the first.

    Model, mode and random number generators are left as they were.
    """
    forms = list(with_rows(dummy_input, size))
    for form in forms if len(forms) > 1 else ():
        device = next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
        args, kwargs = as_call(on_device(form, device))
        with contextlib.suppress(Exception), untouched(model), torch.no_grad():
            model(*args, **kwargs)
            return form
    return forms[0]


def on_device(dummy_input: Any, device: torch.device | str) -> Any:
    """`dummy_input` with all tensors on `device`."""
    return map_tensors(dummy_input, lambda tensor: tensor.detach().to(device))
