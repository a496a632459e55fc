"""Which modules of a model its example inputs reach."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from modelpress_runner.errors import InvalidSpecError, first_line
from modelpress_runner.runtime.example_inputs import as_call, on_device
from modelpress_runner.runtime.preserve import untouched


@torch.no_grad()
def called_modules(model: nn.Module, dummy_input: Any) -> set[str]:
    """Names of the modules that are called on example inputs; the model stays as it is.

    Raises:
        InvalidSpecError: the model does not run on them.
    """
    seen: set[int] = set()
    hooks = [module.register_forward_hook(lambda module, *_: seen.add(id(module))) for module in model.modules()]
    try:
        device = next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
        args, kwargs = as_call(on_device(dummy_input, device))
        with untouched(model):
            model(*args, **kwargs)
    except Exception as error:
        raise InvalidSpecError(f"the model does not run on its example inputs: {first_line(error)}") from error
    finally:
        for hook in hooks:
            hook.remove()
    return {name for name, module in model.named_modules(remove_duplicate=False) if id(module) in seen}
