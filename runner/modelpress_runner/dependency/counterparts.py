"""A masked model and its shrunk form, side by side, neither with weights of its own.

Both are copies of a model's structure. Their weights are made from the model's own when an operation uses them: real
ones, or drawn ones. So a proof in float64 needs no copy of the model in float64, nor any other.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from modelpress_runner.dependency.exact import FEW_BYTES, Seen, Weights, cache_limit, exactly, widened
from modelpress_runner.dependency.redraw import Draw
from modelpress_runner.edits.axes import AxisView, axis_of, cut, shrink_shared
from modelpress_runner.edits.base import Edit
from modelpress_runner.edits.bypass import Bypass, Bypassed
from modelpress_runner.edits.cuts import Cut
from modelpress_runner.edits.rescale import Rescale
from modelpress_runner.errors import CompressionError, InvalidModelError
from modelpress_runner.runtime.graph import call, map_tensors
from modelpress_runner.runtime.unfused import unfused


class UnprovableError(CompressionError):
    """No shrink of this model can be proven, whatever is cut."""


@dataclass(frozen=True)
class Values:
    """Which weights both forms have: the model's own (`draw` None) or drawn ones.

    Attributes:
        draw: how they are drawn.
        factors: of parameters by name, as `Counterparts.calibrated` found them.
        jitter: relative size of a disturbance of all weights, as rounding would cause it; 0: none.
        number: of the disturbance.
    """

    draw: Draw | None = None
    factors: dict[str, float] = field(default_factory=dict)
    jitter: float = 0.0
    number: int = 0


class Counterparts:
    """The masked and the shrunk form of a model, which itself stays as it is.

    Args:
        model: the model, its masks applied.
        edits: what makes it small.

    Raises:
        CompressionError: it cannot be copied, a cut does not fit it, or one parts weights that two modules share.
    """

    def __init__(self, model: nn.Module, edits: Sequence[Edit]) -> None:
        shared = {id(parameter): parameter for parameter in model.parameters()}
        try:
            self.masked = copy.deepcopy(model, dict(shared)).eval()
            thin: dict[int, Any] = {id(p): _thin(p) for p in self.masked.parameters()}
            self.shrunk = copy.deepcopy(self.masked, thin)
        except Exception as error:
            raise UnprovableError(
                f"the model cannot be copied, so a shrink cannot be proven: {type(error).__name__}: {error}; "
                "set shrink: false"
            ) from error
        self._pieces: dict[str, list[tuple[AxisView, str, torch.Tensor]]] = defaultdict(list)
        self._masks: dict[str, torch.Tensor] = {}
        self._places: dict[str, torch.Tensor] = {}
        self._rescaled: dict[str, Rescale] = {}
        self._kept_bytes = 0  # of masks and places
        for each in edits:
            if isinstance(each, Cut):
                self._cut(each)
            elif isinstance(each, Rescale):
                each.apply_epsilon(self.shrunk.get_submodule(each.module))
                where = f"{each.module}.{each.parameter}" if each.module else each.parameter
                self._rescaled[where] = each
            elif isinstance(each, Bypass):
                each.apply(self.shrunk)
                # What a block adds is masked by giving on what it takes; that it runs counts among the work.
                self.masked.get_submodule(each.module).register_forward_hook(_given_on(each), with_kwargs=True)
            else:
                each.apply(self.shrunk)
        parameters = dict(self.masked.named_parameters(remove_duplicate=False))
        small = dict(self.shrunk.named_parameters(remove_duplicate=False))
        self._names: dict[int, str] = {}  # of the masked form's parameters, the first of a shared one
        self._owners: dict[str, nn.Module] = {}
        for name, parameter in parameters.items():
            self._names.setdefault(id(parameter), name)
            self._owners[name] = self.masked.get_submodule(name.rpartition(".")[0])
        self._check_ties(parameters, small)
        self.sizes = (_count(parameters.values()), _count(small.values()))
        self._values = Values()
        self._both: dict[str, torch.Tensor] = {}  # weights that both forms begin with
        self._wide: torch.dtype | None = torch.float64
        self._limit = cache_limit(self.sizes[0])
        self._weights = {
            "masked": Weights({id(p): self._masked_weight(n, p) for n, p in parameters.items()}, self._limit),
            "shrunk": Weights(
                {id(small[n]): self._small_weight(n, p) for n, p in parameters.items() if n in small}, self._limit
            ),
        }
        self._buffers = {
            name: value
            for name, value in self.masked.named_buffers(remove_duplicate=False)
            if value.layout == torch.strided
        }
        self._left_buffers = {name for name, _ in self.shrunk.named_buffers(remove_duplicate=False)}

    def set(self, values: Values, wide: torch.dtype | None) -> None:
        """Takes these weights from now on, and the model's statistics or drawn ones; `wide` None: in its precision."""
        self._values, self._wide = values, wide
        self._both.clear()
        for weights in self._weights.values():
            weights.forget()
        for name, real in self._buffers.items():
            value = real.detach().clone()
            if real.is_floating_point():
                value = value if wide is None else value.to(wide)
                value = value if values.draw is None else values.draw.buffer(name, value)
            _place(self.masked, name, value)
            if name in self._left_buffers:
                _place(self.shrunk, name, self._small(name, value))

    def run(self, which: str, inputs: Any, seen: Seen | None = None, loose: bool = False) -> Any:
        """What the form "masked" or "shrunk" gives for `inputs`, which it may change; raises what its code raises."""
        model = self.masked if which == "masked" else self.shrunk
        with unfused(), exactly(self._weights[which], self._wide, seen or Seen(), loose):
            return call(model, map_tensors(inputs, lambda tensor: widened(tensor, self._wide)))

    def calibrated(self, inputs: Any, values: Values, wide: torch.dtype | None) -> Values:
        """The values with factors that give every linear layer outputs with a standard deviation of `draw.gain`."""
        assert values.draw is not None
        factors: dict[str, float] = {}
        gain, weights = values.draw.gain, self._weights["masked"]
        self.set(values, wide)

        def hook(module: nn.Module, given: Any, output: Any) -> Any:
            weight = module._parameters.get("weight")
            if not isinstance(output, torch.Tensor) or weight is None or weight.dim() < 2:
                return None
            prefix = self._names[id(weight)].rpartition(".")[0]
            own = [self._names[id(p)] for p in module._parameters.values() if p is not None]
            # What is shared, or a table, would change behind what has used it already.
            if any(n in factors or n.rpartition(".")[0] != prefix for n in own) or self._uses(weight) > 1:
                return None
            if isinstance(module, nn.Embedding | nn.EmbeddingBag) or not output.is_floating_point():
                return None
            alive = output[output != 0]
            spread = float(alive.std()) if alive.numel() > 1 else 0.0
            if not 0 < spread < float("inf"):
                return None
            factor = min(max(gain / spread, 1e-6), 1e6)
            factors.update(dict.fromkeys(own, factor))
            return output * factor

        leaves = [m for m in self.masked.modules() if not any(True for _ in m.children())]
        handles = [leaf.register_forward_hook(hook) for leaf in leaves]
        try:
            self.run("masked", inputs)
        finally:
            for handle in handles:
                handle.remove()
            weights.forget()
        return replace(values, factors=factors)

    def release(self) -> None:
        """Lets all weights go, for good. What makes them refers to this object, and so would keep itself alive until a
        garbage collection: several times the model in float64."""
        self._weights.clear()
        for kept in (self._both, self._masks, self._places, self._buffers):
            kept.clear()

    # ------------------------------------------------------------------------------------------------------------------

    def _cut(self, each: Cut) -> None:
        try:
            view = axis_of(self.shrunk, each.module, each.axis)
            if not each.kept or each.kept[-1] >= view.size:
                raise CompressionError(f"'{each.module}' has {view.size} {each.axis} channels; the cut keeps others")
            kept = torch.zeros(view.size, dtype=torch.bool)
            kept[list(each.kept)] = True
            names = {id(module): name for name, module in self.shrunk.named_modules()}
            views = shrink_shared(self.shrunk, view, kept)
        except CompressionError as error:
            raise InvalidModelError(f"{error}; the model is not the one that was shrunk") from error
        thin: dict[int, Any] = {}  # of one that is shared one
        for one in views:
            where = names[id(one.owner)]
            for tensor in one.tensors:
                self._pieces[f"{where}.{tensor}" if where else tensor].append((one, tensor, kept))
                parameter = one.owner._parameters.get(tensor)
                if parameter is not None:
                    setattr(one.owner, tensor, thin.setdefault(id(parameter), _thin(parameter)))

    def _masked_weight(self, name: str, parameter: nn.Parameter) -> Callable[[], torch.Tensor]:
        def make() -> torch.Tensor:
            value = self._drawn(name, parameter)
            return value.clone() if name in self._both else value

        return make

    def _drawn(self, name: str, parameter: nn.Parameter) -> torch.Tensor:
        """The weight as both forms begin with it, not to be written into; of a small model it is made once."""
        if name in self._both:
            return self._both[name]
        value = self._whole(name, parameter)
        if 8 * self.sizes[0] <= FEW_BYTES:
            self._both[name] = value
        return value

    def _small_weight(self, name: str, parameter: nn.Parameter) -> Callable[[], torch.Tensor]:
        def make() -> torch.Tensor:
            value = self._drawn(name, parameter)
            return self._small(name, value) if name in self._both or name in self._pieces else value

        return make

    def _small(self, name: str, whole: torch.Tensor) -> torch.Tensor:
        """What the cuts leave of a tensor of the masked form, copied."""
        if name not in self._pieces:
            return whole.clone()
        places = self._left(name, whole)
        small = whole.reshape(-1)[places.view(-1)].view(places.shape)
        return self._rescaled[name].scaled(small) if name in self._rescaled else small

    @torch.no_grad()
    def _whole(self, name: str, parameter: nn.Parameter) -> torch.Tensor:
        """The weight in the shape that the masked form has; drawn ones are zero where the cuts take something away."""
        first = self._names[id(parameter)]
        values = self._values
        real = parameter.detach()
        if not real.is_floating_point():
            return real.clone()
        wide = self._wide or real.dtype
        if values.draw is None:
            value = real.to(wide, copy=True)
        else:
            value = values.draw.weight(self._owners[first], first, real, wide)
            value.mul_(values.factors.get(first, 1.0))
            if name in self._pieces:
                value.masked_fill_(self._gone(name, real), 0.0)
        if values.jitter:
            value = Draw(values.number, 1.0).disturbed(first, value, values.jitter)
        return value

    def _gone(self, name: str, real: torch.Tensor) -> torch.Tensor:
        """Bool, shaped like the whole tensor: what the cuts take away of it."""
        if name in self._masks:
            return self._masks[name]
        mask = torch.ones(real.numel(), dtype=torch.bool, device=real.device)
        mask[self._left(name, real).view(-1)] = False
        return self._keep(self._masks, name, mask.view(real.shape))

    def _left(self, name: str, real: torch.Tensor) -> torch.Tensor:
        """Shaped like what the cuts leave of the tensor: where in the whole one, flattened, each entry is."""
        if name in self._places:
            return self._places[name]
        place = torch.arange(real.numel(), device=real.device).view(real.shape)
        for view, tensor, kept in self._pieces[name]:
            place = cut(view, tensor, place, kept)
        return self._keep(self._places, name, place.contiguous())

    def _keep(self, known: dict[str, torch.Tensor], name: str, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor, which is made anew for its next use only where all of them would take too much memory."""
        self._kept_bytes += tensor.nbytes
        if self._kept_bytes <= self._limit:
            known[name] = tensor
        else:
            self._kept_bytes -= tensor.nbytes
        return tensor

    def _uses(self, parameter: nn.Parameter) -> int:
        return sum(p is parameter for module in self.masked.modules() for p in module._parameters.values())

    def _check_ties(self, parameters: dict[str, nn.Parameter], small: dict[str, nn.Parameter]) -> None:
        for name, parameter in parameters.items():
            first = self._names[id(parameter)]
            if name in small and first in small and small[name] is not small[first]:
                raise CompressionError(f"the cut parts '{first}' and '{name}', which are one weight")


def _given_on(edit: Bypass) -> Callable[..., Any]:
    """A hook that puts what a block takes in the place of what it gives."""
    instead = Bypassed(edit.alone, edit.places)

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        return instead(*args, **kwargs)

    return hook


def _thin(parameter: nn.Parameter | None) -> nn.Parameter:
    """A parameter of the same shape, precision and device that takes no memory."""
    assert parameter is not None
    one = torch.zeros((), dtype=parameter.dtype, device=parameter.device)
    return nn.Parameter(one.expand(parameter.shape), requires_grad=parameter.requires_grad)


def _place(model: nn.Module, name: str, value: torch.Tensor) -> None:
    path, _, attribute = name.rpartition(".")
    model.get_submodule(path)._buffers[attribute] = value


def _count(parameters: Any) -> int:
    return sum(p.numel() for p in {id(p): p for p in parameters}.values())
