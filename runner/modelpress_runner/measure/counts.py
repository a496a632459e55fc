"""What a model holds and what one forward pass computes, without a clock."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from modelpress_runner.edits.quantize import frozen_counts
from modelpress_runner.errors import InvalidModelError, first_line
from modelpress_runner.runtime.example_inputs import as_call, fitting, on_device
from modelpress_runner.runtime.flops import FlopCount
from modelpress_runner.runtime.preserve import untouched
from modelpress_runner.runtime.unfused import unfused


def parameters(model: nn.Module) -> int:
    """Elements of all parameters, weights that are kept as integers among them; a tied one counts once."""
    return sum(parameter.numel() for parameter in model.parameters()) + frozen_counts(model)[0]


def nonzero_parameters(model: nn.Module) -> int:
    """Elements of all parameters that are not zero; a tied one counts once."""
    own = sum(int(torch.count_nonzero(parameter.detach())) for parameter in model.parameters())
    return own + frozen_counts(model)[1]


def macs(model: nn.Module, dummy_input: Any) -> int:
    """Multiply-accumulates of one forward pass in eval mode with a batch of 1.

    Counted are convolutions and matrix products (linear, matmul, bmm, einsum, attention, recurrent layers); additions,
    norms and activations are not. Attention counts both products in full, masked or not. Model, mode and random number
    generators are left as they were.

    Raises:
        InvalidModelError: the model does not take `dummy_input` with a batch of 1.
    """
    counter = FlopCount()
    forward_once(model, dummy_input, counter)
    return counter.total // 2


def forward_once(model: nn.Module, dummy_input: Any, counter: FlopCount) -> None:
    """Lets `counter` see one forward pass in eval mode with a batch of 1, fused kernels off; nothing is changed by it.

    Raises:
        InvalidModelError: the model does not take `dummy_input` with a batch of 1.
    """
    device = next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
    args, kwargs = as_call(on_device(fitting(model, dummy_input, 1), device))
    with untouched(model), torch.no_grad(), unfused():
        try:
            with counter:
                model(*args, **kwargs)
        except Exception as error:
            raise InvalidModelError(
                f"the model does not run on dummy_input with a batch of 1 ({first_line(error)}); give a dummy_input "
                "that the model takes, batch first"
            ) from error
