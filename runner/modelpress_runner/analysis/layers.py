"""What each layer of a model holds, and computes in one forward pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from modelpress_runner.edits.wrappers import unwrapped
from modelpress_runner.measure.counts import forward_once
from modelpress_runner.runtime.flops import FlopCount
from modelpress_runner.runtime.graph import tensors_in


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


class _Counting(FlopCount):
    """Puts what passes by down to the module that is at work."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.tallies = {id(module): _Tally() for module in model.modules()}
        self._stack: list[int] = []
        self._told = 0  # of the total

    def enter(self, module: nn.Module, args: Any) -> None:
        """`module` begins."""
        self._tell()
        self._stack.append(id(module))
        self.tallies[id(module)].calls += 1

    def leave(self, module: nn.Module, args: Any, output: Any) -> None:
        """`module` is through."""
        self._tell()
        self._stack.pop()
        found = tensors_in(output)
        if found:
            self.tallies[id(module)].output = tuple(found[0].shape)

    def _tell(self) -> None:
        if self._stack:
            self.tallies[self._stack[-1]].macs += (self.total - self._told) // 2
        self._told = self.total


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
    counting = _Counting(model)
    handles = [module.register_forward_pre_hook(counting.enter) for module in model.modules()]
    handles += [module.register_forward_hook(counting.leave, always_call=True) for module in model.modules()]
    try:
        forward_once(model, dummy_input, counting)
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
