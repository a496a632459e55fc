"""Layers that compute with few bits: quantizers before their inputs, weights and outputs; weights kept as integers."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self, cast

import torch
import torch.nn.functional as F
from torch import nn

from modelpress_runner.edits.axes import CONV, is_conv1d
from modelpress_runner.edits.base import Edit, register
from modelpress_runner.edits.masks import Masks
from modelpress_runner.edits.quantizers import Quantizer, QuantizerSpec, make, packed, unpacked
from modelpress_runner.errors import CompressionError, InvalidModelError

TARGETS = ("weight", "input", "output")
_CONV_TRANSPOSED = nn.modules.conv._ConvTransposeNd


class QuantizedLayer(nn.Module):
    """A layer with quantizers. Mixed into the layer's own class, by `quantized_class`.

    Attributes:
        input_quantizer, weight_quantizer, output_quantizer: those that it has; others are None.
    """

    input_quantizer: Quantizer | None
    weight_quantizer: Quantizer | None
    output_quantizer: Quantizer | None

    def forward(self, input: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """As the layer's own."""
        if self.input_quantizer is not None:
            input = self.input_quantizer(input)
        weight = cast(torch.Tensor, self.weight)
        if self.weight_quantizer is not None and "weight" in self._parameters:
            weight = self.weight_quantizer(weight)
        output = _computed(self, input, weight, *args, **kwargs)
        return output if self.output_quantizer is None else self.output_quantizer(output)


class FrozenLayer(QuantizedLayer):
    """A layer whose weight is kept as integers, in the buffer `weight_integers`; `weight` is what they stand for."""

    weight_integers: torch.Tensor
    weight_shape: torch.Size
    weight_dtype: torch.dtype

    @property
    def weight(self) -> torch.Tensor:
        """Worked out anew each time."""
        quantizer = self.weight_quantizer
        assert quantizer is not None
        integers = unpacked(self.weight_integers, quantizer, self.weight_shape)
        return quantizer.floats(integers).to(self.weight_dtype)


_MADE: dict[tuple[type[nn.Module], bool], Any] = {}


def _class(layer: type[nn.Module], frozen: bool) -> Any:
    """The class of a layer with quantizers, the same each time."""
    if (layer, frozen) not in _MADE:
        _MADE[layer, frozen] = _made(layer, FrozenLayer if frozen else QuantizedLayer)
    return _MADE[layer, frozen]


def _made(layer: type[nn.Module], mixin: type[QuantizedLayer]) -> Any:
    frozen = mixin is FrozenLayer
    return type(f"{'Frozen' if frozen else 'Quantized'}{layer.__name__}", (mixin, layer), {"dense_class": layer})


def dense_class(module: nn.Module) -> type[nn.Module]:
    """The class of a layer as it was without quantizers."""
    return cast(type[nn.Module], getattr(type(module), "dense_class", type(module)))


def channel_axis(module: nn.Module) -> int:
    """The dimension of a layer's weight that counts its outputs; of an embedding the rows."""
    return 1 if isinstance(module, _CONV_TRANSPOSED) or is_conv1d(module) else 0


def why_not(module: nn.Module) -> str | None:
    """Why a layer cannot be quantized, as a clause; None: it can."""
    own = dense_class(module)
    if own.__name__ == "NonDynamicallyQuantizableLinear":
        return "is a part of nn.MultiheadAttention, which takes its weights without calling it"
    if isinstance(module, QuantizedLayer):
        return "is quantized already"
    kinds: tuple[type[nn.Module], ...] = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Embedding)
    kinds += (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    base = next((kind for kind in kinds if isinstance(module, kind)), None)
    if base is None and not is_conv1d(module):
        return f"is a {own.__name__}, which this version cannot quantize"
    if base is not None and own.forward is not base.forward:
        return f"is a {own.__name__} with a forward of its own"
    if isinstance(module, nn.Embedding) and module.max_norm is not None:
        return "changes its own weight (max_norm)"
    weight = module._parameters.get("weight")
    if weight is None or not weight.is_floating_point():
        return "has no weight of numbers"
    return None


def _computed(module: Any, input: torch.Tensor, weight: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """What the layer makes of an input with a weight that is not its own."""
    if isinstance(module, _CONV_TRANSPOSED):
        return _transposed(module, input, weight, *args, **kwargs)
    if isinstance(module, CONV):
        return cast(torch.Tensor, cast(Any, module)._conv_forward(input, weight, module.bias))
    if isinstance(module, nn.Linear):
        return F.linear(input, weight, module.bias)
    if isinstance(module, nn.Embedding):
        return F.embedding(
            input, weight, module.padding_idx, None, module.norm_type, module.scale_grad_by_freq, module.sparse
        )
    shape = (*input.shape[:-1], weight.shape[1])  # transformers' Conv1D
    return torch.addmm(module.bias, input.view(-1, input.shape[-1]), weight).view(shape)


def _transposed(
    module: Any, input: torch.Tensor, weight: torch.Tensor, output_size: list[int] | None = None
) -> torch.Tensor:
    dimensions = len(module.kernel_size)
    padding = module._output_padding(
        input, output_size, module.stride, module.padding, module.kernel_size, dimensions, module.dilation
    )
    function = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}[dimensions]
    return function(input, weight, module.bias, module.stride, module.padding, padding, module.groups, module.dilation)


@register
@dataclass(frozen=True)
class FakeQuantize(Edit):
    """A layer gets quantizers. Their scales are state, as weights are; its weight stays a parameter.

    Attributes:
        targets: of weight, input and output those that are quantized, with what they are.
    """

    kind: ClassVar[str] = "fake_quantize"

    module: str
    targets: tuple[tuple[str, QuantizerSpec], ...]

    def apply(self, model: nn.Module, masks: Masks | None = None) -> None:
        """As Edit.apply."""
        module = _layer(model, self.module)
        if (reason := why_not(module)) is not None:
            raise InvalidModelError(f"'{self.module}' {reason}; the model is not the one that was quantized")
        weight = cast(nn.Parameter, module._parameters["weight"])
        specs = dict(self.targets)
        made: dict[str, Quantizer | None] = {}
        for target in TARGETS:
            spec = specs.get(target)
            try:
                made[target] = None if spec is None else make(spec, weight if target == "weight" else None)
            except ValueError as error:
                raise InvalidModelError(f"'{self.module}' is not the layer that was quantized: {error}") from None
        module.__class__ = _class(type(module), False)
        for target, quantizer in made.items():
            if quantizer is not None:
                quantizer.to(weight.device).train(module.training)
            module._modules[f"{target}_quantizer"] = quantizer
        _keep_from_fused(model, module)

    def to_plain(self) -> dict[str, Any]:
        """{"module", "targets": {target: quantizer}}"""
        return {"module": self.module, "targets": {name: spec.to_plain() for name, spec in self.targets}}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Self:
        """As Edit.from_plain."""
        module, targets = plain.get("module"), plain.get("targets")
        if not isinstance(module, str) or not isinstance(targets, dict) or not targets or set(targets) - {*TARGETS}:
            raise ValueError("it needs module and targets (weight, input, output)")
        return cls(
            module, tuple((name, QuantizerSpec.from_plain(targets[name])) for name in TARGETS if name in targets)
        )


@register
@dataclass(frozen=True)
class FreezeWeights(Edit):
    """Weights of layers with quantizers become integers, kept in as few bytes as they need.

    Layers that share a weight, and are quantized alike, share its integers.
    """

    kind: ClassVar[str] = "freeze_weights"

    modules: tuple[str, ...]

    def apply(self, model: nn.Module, masks: Masks | None = None) -> None:
        """As Edit.apply. Masks stay: they hold for `weight` as before."""
        shared: dict[tuple[int, QuantizerSpec], FrozenLayer] = {}
        # By identity as all of them are there; of a large model one after another is let go.
        known = {name: id(_layer(model, name)._parameters.get("weight")) for name in self.modules}
        for name in self.modules:
            module = _layer(model, name)
            quantizer = module.weight_quantizer if isinstance(module, QuantizedLayer) else None
            if quantizer is None or isinstance(module, FrozenLayer):
                raise InvalidModelError(
                    f"'{name}' has no weight to be frozen; the model is not the one that was quantized"
                )
            weight = module._parameters.pop("weight")
            assert weight is not None
            own = dense_class(module)
            twin = shared.get((known[name], quantizer.spec))
            integers = packed(quantizer.integers(weight), quantizer) if twin is None else twin.weight_integers
            module.__class__ = _class(own, True)
            frozen = cast(FrozenLayer, module)
            frozen.weight_shape, frozen.weight_dtype = weight.shape, weight.dtype
            frozen.register_buffer("weight_integers", integers)
            quantizer.enabled = True
            if twin is not None:
                frozen._modules["weight_quantizer"] = twin.weight_quantizer
            shared[known[name], quantizer.spec] = frozen

    def to_plain(self) -> dict[str, Any]:
        """{"modules"}"""
        return {"modules": list(self.modules)}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Self:
        """As Edit.from_plain."""
        modules = plain.get("modules")
        if not isinstance(modules, list) or not modules or not all(isinstance(name, str) for name in modules):
            raise ValueError("it needs modules, a list of names")
        return cls(tuple(modules))


@register
@dataclass(frozen=True)
class FoldNorm(Edit):
    """A batch norm right behind a layer becomes part of its weight and bias; what is left in its place does nothing.

    Integers with a scale for each output stay what they are, but for their signs: the scales take the norm.
    """

    kind: ClassVar[str] = "fold_norm"

    layer: str
    norm: str

    def apply(self, model: nn.Module, masks: Masks | None = None) -> None:
        """As Edit.apply."""
        layer, norm = _layer(model, self.layer), _layer(model, self.norm)
        weight = getattr(layer, "weight", None)
        if (
            not isinstance(weight, torch.Tensor)
            or not folds(layer)
            or not isinstance(norm, nn.modules.batchnorm._BatchNorm)
            or norm.running_mean is None
            or norm.running_var is None
            or norm.num_features != weight.shape[0]
        ):
            raise InvalidModelError(
                f"'{self.norm}' is no norm of '{self.layer}'; the model is not the one that was quantized"
            )
        with torch.no_grad():
            factor = torch.rsqrt(norm.running_var.double() + norm.eps)
            factor = factor if norm.weight is None else factor * norm.weight.double()
            shift = -norm.running_mean.double() * factor
            shift = shift if norm.bias is None else shift + norm.bias.double()
            bias = layer._parameters.get("bias")
            if bias is not None:
                shift = shift + bias.double() * factor
            trains = weight.requires_grad
            if isinstance(layer, FrozenLayer):
                _fold_scales(layer, factor)
            else:
                folded = (weight.double() * factor.view(-1, *[1] * (weight.dim() - 1))).to(weight.dtype)
                layer._parameters["weight"] = nn.Parameter(folded, requires_grad=trains)
            layer._parameters["bias"] = nn.Parameter(shift.to(weight.dtype), requires_grad=trains)
        path, _, name = self.norm.rpartition(".")
        left = nn.Identity()
        left.train(norm.training)
        model.get_submodule(path)._modules[name] = left

    def to_plain(self) -> dict[str, Any]:
        """{"layer", "norm"}"""
        return {"layer": self.layer, "norm": self.norm}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Self:
        """As Edit.from_plain."""
        layer, norm = plain.get("layer"), plain.get("norm")
        if not isinstance(layer, str) or not isinstance(norm, str):
            raise ValueError("it needs layer and norm")
        return cls(layer, norm)


def folds(layer: nn.Module) -> bool:
    """Whether a norm behind a layer can become part of it: linear layers and convolutions; with quantizers only where
    weights are symmetric integers with a scale for each output, and outputs are not rounded."""
    if not isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return False
    if not isinstance(layer, QuantizedLayer):
        return True
    spec = None if layer.weight_quantizer is None else layer.weight_quantizer.spec
    if not isinstance(layer, FrozenLayer) or layer.output_quantizer is not None or spec is None:
        return False
    symmetric = spec.numbers.scheme == "symmetric" and spec.numbers.signed
    return spec.kind == "affine" and symmetric and spec.axis == 0


def _fold_scales(layer: FrozenLayer, factor: torch.Tensor) -> None:
    """Multiplies each output's weights by a factor, (outputs,), by way of their scales."""
    quantizer = layer.weight_quantizer
    assert quantizer is not None
    integers = unpacked(layer.weight_integers, quantizer, layer.weight_shape).to(torch.int32)
    integers = integers * factor.sign().to(torch.int32).view(-1, *[1] * (len(layer.weight_shape) - 1))
    layer.weight_integers.copy_(packed(integers, quantizer))
    each = factor.abs().repeat_interleave(quantizer.scale.numel() // factor.numel())
    scale = quantizer.scale.double() * each
    quantizer.scale.copy_(torch.where(scale > 0, scale, 1.0))


def thawed(model: nn.Module) -> nn.Module:
    """A copy of a quantized model for exporters: weights are floats again, with their quantizers before them.

    It computes the same, as rounding a rounded number changes nothing.

    Raises:
        CompressionError: weights have no zero point that is an integer (dorefa, bnn), so no exporter knows them.
    """
    out = copy.deepcopy(model)
    for name, module in out.named_modules():
        if isinstance(module, FrozenLayer):
            assert module.weight_quantizer is not None
            if not module.weight_quantizer.keeps_zero:
                raise CompressionError(
                    f"the weights of '{name}' have no form as QuantizeLinear; load them with mp.load"
                )
            weight = nn.Parameter(module.weight.detach(), requires_grad=False)
            del module._buffers["weight_integers"]
            module.__class__ = _class(dense_class(module), False)
            module._parameters["weight"] = weight
    return out


def quantized_layers(model: nn.Module) -> dict[str, QuantizedLayer]:
    """The layers with quantizers by name, in the model's order."""
    return {name: module for name, module in model.named_modules() if isinstance(module, QuantizedLayer)}


def frozen_counts(model: nn.Module) -> tuple[int, int]:
    """Weights that are kept as integers, and those of them that are not zero; shared ones count once."""
    seen: set[int] = set()
    total = nonzero = 0
    for module in model.modules():
        if isinstance(module, FrozenLayer) and id(module.weight_integers) not in seen:
            seen.add(id(module.weight_integers))
            total += module.weight_shape.numel()
            nonzero += int(torch.count_nonzero(module.weight))
    return total, nonzero


def _layer(model: nn.Module, name: str) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError:
        raise InvalidModelError(f"the model has no layer '{name}'; it is not the one that was quantized") from None


def _keep_from_fused(model: nn.Module, module: nn.Module) -> None:
    """torch's fused encoder layers take weights without calling the layers that hold them."""
    for each in model.modules():
        inside = any(inner is module for inner in each.modules())
        if inside and isinstance(each, nn.TransformerEncoderLayer):
            each.activation_relu_or_gelu = 0
        if inside and isinstance(each, nn.TransformerEncoder):
            each.use_nested_tensor = False
