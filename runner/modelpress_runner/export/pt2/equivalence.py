"""What can be written as a program, and the proof that a program does what its model does."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from modelpress_runner.errors import RunnerError, first_line
from modelpress_runner.runtime.example_inputs import as_call, batch_size, fitting, map_tensors
from modelpress_runner.runtime.unfused import unfused

PROVEN_BATCHES = (1, 2, 3)
_TRAIN_BATCH = 4


class NotPortableError(RunnerError):
    """A model cannot be written as a program; `reason` is one sentence without a full stop."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"the model cannot be exported as a program: {reason}; it can still be loaded with mp.load(uri, into=model)"
        )
        self.reason = reason


def plain_output(value: Any) -> Any:
    """Outputs as a program gives them: mappings and dataclasses as dicts, named tuples as tuples.

    Fields of a dataclass that are None are left out.

    Raises:
        NotPortableError: there is something else in it, neither tensor nor number nor None.
    """
    if value is None or isinstance(value, torch.Tensor | int | float | bool):
        return value
    if isinstance(value, Mapping):
        return {key: plain_output(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(plain_output(item) for item in value)
    if isinstance(value, list):
        return [plain_output(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        named = {item.name: getattr(value, item.name) for item in dataclasses.fields(value)}
        return {key: plain_output(item) for key, item in named.items() if item is not None}
    raise NotPortableError(
        f"forward() returns a {type(value).__name__}; tensors, tuples, lists, dicts and dataclasses of tensors can be "
        "exported"
    )


@dataclasses.dataclass(frozen=True)
class Tolerance:
    """What still counts as equal outputs: each element within `atol + rtol * |expected|`.

    Attributes:
        rtol: relative.
        atol: absolute.
        relative_rms: if set, instead: the root mean square of the difference, at most so much of that of the outputs.
    """

    rtol: float = 1e-3
    atol: float = 1e-4
    relative_rms: float | None = None

    def holds(self, found: torch.Tensor, expected: torch.Tensor) -> bool:
        """Whether two tensors of one shape are equal."""
        if self.relative_rms is None or not expected.is_floating_point():
            return torch.allclose(found, expected, rtol=self.rtol, atol=self.atol, equal_nan=True)
        return float((found - expected).norm()) <= self.relative_rms * float(expected.norm()) + self.atol


def prove(model: nn.Module, program: nn.Module, dummy_input: Any, tolerance: Tolerance | None = None) -> None:
    """Runs both in eval mode with batches of 1, 2 and 3, as far as the model takes them.

    Args:
        model: what is right.
        program: what is compared with it.
        dummy_input: example inputs.
        tolerance: none: 1e-3 relative or 1e-4 absolute.

    Raises:
        NotPortableError: outputs differ, or the program fails where the model does not.
    """
    ran = 0
    for size in PROVEN_BATCHES:
        args, kwargs = as_call(fitting(model, dummy_input, size))
        try:
            expected = _run(model, args, kwargs)
        except NotPortableError:
            raise
        except Exception as error:
            if size == batch_size(dummy_input):
                raise NotPortableError(f"the model does not run on dummy_input: {first_line(error)}") from error
            continue  # the model takes no such batch, so the program need not
        ran += 1
        try:
            found = _run(program, args, kwargs)
        except Exception as error:
            raise NotPortableError(f"the program fails with a batch of {size}: {first_line(error)}") from error
        difference = _difference(found, expected, tolerance)
        if difference:
            raise NotPortableError(f"the program differs from the model with a batch of {size}: {difference}")
    if not ran:
        raise NotPortableError(f"the model runs on no batch of {', '.join(str(size) for size in PROVEN_BATCHES)}")


def train_difference(model: nn.Module, program: nn.Module, dummy_input: Any) -> str | None:
    """What the program does otherwise than the model in one step in train mode; None: nothing."""
    args, kwargs = as_call(fitting(model, dummy_input, _TRAIN_BATCH))
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model.train()
    try:
        expected = _run(model, args, kwargs)
    except Exception as error:
        return f"in train mode the model does not run: {first_line(error)}"
    finally:
        model.eval()
        after = {name: buffer.clone() for name, buffer in model.named_buffers()}
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                buffer.copy_(before[name])
    program.train()
    try:
        found = _run(program, args, kwargs)
    except Exception as error:
        return f"in train mode the program fails: {first_line(error)}"
    finally:
        program.eval()
    buffers = dict(program.named_buffers())
    difference = _difference(found, expected) or _difference(
        {name: buffers[name] for name in after if name in buffers},
        {name: after[name] for name in after if name in buffers},
    )
    return f"in train mode the program differs from the model: {difference}" if difference else None


def _run(model: nn.Module, args: Any, kwargs: Any) -> Any:
    args, kwargs = map_tensors((args, kwargs), lambda tensor: tensor.clone())
    # The fused encoder layer gives zeros at padded positions, which the program, like the layer in training, computes.
    with torch.random.fork_rng(devices=[]), torch.no_grad(), unfused():
        torch.manual_seed(0)
        return plain_output(model(*args, **kwargs))


def _difference(found: Any, expected: Any, tolerance: Tolerance | None = None) -> str | None:
    flat, spec = pytree.tree_flatten(found)
    wanted, wanted_spec = pytree.tree_flatten(expected)
    if spec != wanted_spec:
        return "its outputs are nested otherwise"
    for index, (a, b) in enumerate(zip(flat, wanted, strict=True)):
        if isinstance(a, torch.Tensor) != isinstance(b, torch.Tensor) or (not isinstance(b, torch.Tensor) and a != b):
            return f"output {index} is {a!r}, not {b!r}"[:200]
        if not isinstance(b, torch.Tensor):
            continue
        if a.shape != b.shape or a.dtype != b.dtype:
            return f"output {index} is of shape {tuple(a.shape)} and {a.dtype}, not {tuple(b.shape)} and {b.dtype}"
        # Same kernels, but the model may have taken a fused one (attention) that the exporter takes apart.
        loose = b.dtype in (torch.float16, torch.bfloat16)
        allowed = tolerance or (Tolerance(1e-2, 1e-2) if loose else Tolerance())
        a, b = (a, b) if b.is_complex() else (a.double(), b.double())
        if not allowed.holds(a, b):
            return f"output {index} is off by up to {float((a - b).abs().max()):.3g}"
    return None
