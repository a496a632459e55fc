"""Notices when the user's code looks at the weights of the model that it trains, outside of a training step.

Best weights that are kept, an average of weights, a validation: a training that is called again to go on must see there
what it saw before. Noticed are forward passes, state_dict(), copies and pickles, and walks over parameters or buffers;
not that a single attribute is read (model.head.weight).
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

_MODULE = nn.modules.module.__file__
_PASSING = (_MODULE, nn.utils.clip_grad.__file__)  # walk over parameters for the sake of their gradients or modes
_OPTIMIZERS = torch.optim.Optimizer.__init__.__code__.co_filename.rpartition("/")[0]
_WALKS = ("parameters", "named_parameters", "buffers", "named_buffers")


class _Hook:
    """A forward hook that no copy and no pickle of the model carries along."""

    def __init__(self, call: Callable[[nn.Module], None]) -> None:
        self._call = call

    def __call__(self, module: nn.Module, *args: Any) -> None:
        self._call(module)

    def __deepcopy__(self, memo: Any) -> Any:
        return nothing

    def __reduce__(self) -> Any:
        return nothing.__reduce_ex__(2)


def nothing(*args: Any) -> None:
    """Stands where a hook was."""


@contextlib.contextmanager
def watched(models: list[nn.Module], look: Callable[[], None], framework: str | None = None) -> Iterator[None]:
    """Inside, `look` is called before the user's code gets to see weights of one of `models`, as a whole.

    Code in the folder `framework` may walk over parameters.
    """
    roots = {id(model) for model in models}
    originals = {name: getattr(nn.Module, name) for name in (*_WALKS, "state_dict")}
    handles = []

    def called(module: nn.Module) -> None:
        if id(module) in roots:
            look()

    def walk(name: str) -> Any:
        original = originals[name]

        def walked(self: nn.Module, *args: Any, **kwargs: Any) -> Iterator[Any]:
            items = original(self, *args, **kwargs)
            return _told(items, look, framework) if id(self) in roots else items

        return walked

    def state_dict(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        called(self)
        return originals["state_dict"](self, *args, **kwargs)

    def reduce_ex(self: nn.Module, protocol: Any) -> Any:
        called(self)
        return object.__reduce_ex__(self, protocol)

    try:
        handles = [model.register_forward_pre_hook(_Hook(called)) for model in models]
        for name in _WALKS:
            setattr(nn.Module, name, walk(name))
        nn.Module.state_dict = state_dict  # type: ignore[method-assign]
        nn.Module.__reduce_ex__ = reduce_ex  # type: ignore[method-assign, assignment]
        yield
    finally:
        for name, original in originals.items():
            setattr(nn.Module, name, original)
        if "__reduce_ex__" in vars(nn.Module):
            del nn.Module.__reduce_ex__
        for handle in handles:
            handle.remove()


def _told(items: Iterator[Any], look: Callable[[], None], framework: str | None) -> Iterator[Any]:
    """`items`; whoever takes the first one is looked at."""
    taker = sys._getframe(1).f_code.co_filename
    passes = taker in _PASSING or (framework is not None and taker.startswith(framework))
    if not passes and (not taker.startswith(_OPTIMIZERS) or taker.endswith("swa_utils.py")):
        look()
    yield from items
