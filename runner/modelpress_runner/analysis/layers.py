"""What each layer of a model holds, and computes in one forward pass."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from modelpress_runner.edits.wrappers import unwrapped
from modelpress_runner.errors import InvalidModelError, first_line
from modelpress_runner.runtime.example_inputs import as_call, fitting, on_device
from modelpress_runner.runtime.flops import flops
from modelpress_runner.runtime.graph import tensors_in
from modelpress_runner.runtime.preserve import untouched
from modelpress_runner.runtime.unfused import unfused


@dataclass(frozen=True)
class Layer:
    """A module with parameters or work of its own; what its children hold and compute is theirs.

    Attributes:
        name: as in model.named_modules(), the first one of a module that has several; "" is the model itself.
        kind: name of its class.
        parameters: elements of its own parameters; those that an earlier layer has, too, count there.
        macs: multiply-accumulates of its own with a batch of 1, of all its calls together.
        calls: how often it is called.
        output: shape of what it gave in its last call; (): it was not called, or gave no tensor.
    """

    name: str
    kind: str
    parameters: int
    macs: int
    calls: int
    output: tuple[int, ...]


@dataclass
class _Tally:
    macs: int = 0
    calls: int = 0
    output: tuple[int, ...] = ()


@dataclass
class _Counting:
    """Which module is at work, and what each has done."""

    tallies: dict[int, _Tally]
    stack: list[int] = field(default_factory=list)

    def enter(self, module: nn.Module, args: Any) -> None:
        self.stack.append(id(module))
        self.tallies[id(module)].calls += 1

    def leave(self, module: nn.Module, args: Any, output: Any) -> None:
        self.stack.pop()
        found = tensors_in(output)
        if found:
            self.tallies[id(module)].output = tuple(found[0].shape)


class _Flops(TorchDispatchMode):
    """Puts what passes by down to the module that is at work."""

    def __init__(self, counting: _Counting) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch does not type it
        self._counting = counting

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # to say so would import the compiler

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if isinstance(func, torch._ops.OpOverload) and self._counting.stack:
            self._counting.tallies[self._counting.stack[-1]].macs += flops(func, args, kwargs, out) // 2
        return out


def layers(model: nn.Module, dummy_input: Any) -> list[Layer]:
    """The layers of a model, in order of their definition, as one forward pass in eval mode shows them.

    Counted are convolutions and matrix products, as the metric macs has them: the sum of all layers' is that metric.

    Args:
        model: stays as it is, as do all random number generators.
        dummy_input: example inputs, batch first.

    Raises:
        InvalidModelError: the model does not take `dummy_input` with a batch of 1.
    """
    model = unwrapped(model)
    device = next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
    args, kwargs = as_call(on_device(fitting(model, dummy_input, 1), device))
    counting = _Counting({id(module): _Tally() for module in model.modules()})
    handles = [module.register_forward_pre_hook(counting.enter) for module in model.modules()]
    handles += [module.register_forward_hook(counting.leave, always_call=True) for module in model.modules()]
    try:
        with untouched(model), torch.no_grad(), unfused(), _Flops(counting):
            model(*args, **kwargs)
    except Exception as error:
        raise InvalidModelError(
            f"the model does not run on dummy_input with a batch of 1 ({first_line(error)}); give a dummy_input that "
            "the model takes, batch first"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    found: list[Layer] = []
    seen: set[nn.Parameter] = set()
    for name, module in model.named_modules():
        own = [parameter for parameter in module.parameters(recurse=False) if parameter not in seen]
        seen.update(own)
        tally = counting.tallies[id(module)]
        if own or tally.macs or any(True for _ in module.parameters(recurse=False)):
            size = sum(parameter.numel() for parameter in own)
            found.append(Layer(name, type(module).__name__, size, tally.macs, tally.calls, tally.output))
    return found
