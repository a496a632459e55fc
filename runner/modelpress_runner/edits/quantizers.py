"""Small modules that stand before what is quantized: a weight, an input or an output.

Each gives floats that are integers of few bits behind a scale. An affine one's forward is exactly
torch.fake_quantize_per_tensor_affine or torch.fake_quantize_per_channel_affine, which exporters know how to turn into
QuantizeLinear and DequantizeLinear; gradients go straight through where a value is within the range.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

import modelpress_runner.edits.rounding_shapes  # noqa: F401 - torch.export needs them
from modelpress.api.stages.quantize import Numbers

KINDS = ("affine", "dynamic", "token", "dorefa", "sign")


@dataclass(frozen=True)
class QuantizerSpec:
    """What a quantizer is; plain data of an edit.

    Attributes:
        kind: affine: by a scale and a zero point that are kept. dynamic: by those of each call. token: by those of each
            token of a call. dorefa: of weights, a
            rounded tanh. sign: -1 and 1.
        numbers: the integers.
        axis: of a weight, whose entries have a scale each; None: one scale.
        group: so many entries of a row have a scale together.
    """

    kind: str
    numbers: Numbers
    axis: int | None = None
    group: int | None = None

    def to_plain(self) -> dict[str, Any]:
        """{"kind", "dtype", "scheme", "axis", "group"}"""
        numbers = self.numbers
        out = {"kind": self.kind, "bits": numbers.bits, "signed": numbers.signed, "scheme": numbers.scheme}
        return out | {"axis": self.axis, "group": self.group}

    @classmethod
    def from_plain(cls, plain: Any) -> QuantizerSpec:
        """The inverse of to_plain.

        Raises:
            ValueError: the data is damaged.
        """
        fits = isinstance(plain, dict) and plain.get("kind") in KINDS and plain.get("scheme") in ("affine", "symmetric")
        fits = fits and type(plain.get("bits")) is int and 1 <= plain["bits"] <= 8 and type(plain.get("signed")) is bool
        for name, least in (("axis", 0), ("group", 2)):
            value = plain.get(name) if isinstance(plain, dict) else 0
            fits = fits and (value is None or (type(value) is int and least <= value <= 65_536))
        if not fits:
            raise ValueError("a quantizer needs kind, bits, signed, scheme, axis and group")
        return cls(
            plain["kind"], Numbers(plain["bits"], plain["signed"], plain["scheme"]), plain["axis"], plain["group"]
        )


class Quantizer(nn.Module):
    """What all have. Attributes: dtype (`int8`), bits, qmin, qmax, axis, group; buffers: scale and zero_point.

    Args:
        spec: what it is.
        channels: how many scales; None: one, without a dimension.
        enabled: it is at work; else values go through as they are.
    """

    keeps_zero: ClassVar[bool] = True

    def __init__(self, spec: QuantizerSpec, channels: int | None = None) -> None:
        super().__init__()
        self.spec, self.enabled = spec, True
        self.dtype, self.bits = spec.numbers.dtype, spec.numbers.bits
        self.qmin, self.qmax = spec.numbers.range
        self.axis, self.group = spec.axis, spec.group
        shape = () if channels is None else (channels,)
        self.register_buffer("scale", torch.ones(shape))
        # What a scheme says of all zero points need not be kept.
        middle = torch.full(shape, (self.qmin + self.qmax + 1) // 2, dtype=torch.int32)
        self.register_buffer("zero_point", middle, persistent=spec.numbers.scheme == "affine")

    scale: torch.Tensor
    zero_point: torch.Tensor

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        """`value` rounded, of its shape and type; as it is, if not enabled."""
        return self.rounded(value) if self.enabled else value

    def rounded(self, value: torch.Tensor) -> torch.Tensor:
        """As forward, if enabled."""
        raise NotImplementedError

    def integers(self, weight: torch.Tensor) -> torch.Tensor:
        """The integers of a weight, int32, of its shape."""
        raise NotImplementedError

    def floats(self, integers: torch.Tensor) -> torch.Tensor:
        """What integers of a weight stand for, float32, of their shape."""
        if self.group is not None:
            rows = integers.reshape(-1, self.group).to(self.scale.dtype)
            flat = (rows - self.zero_point.unsqueeze(1)) * self.scale.unsqueeze(1)
            return flat.reshape(integers.shape)
        scale, zero = self.scale, self.zero_point
        if self.axis is not None:
            shape = [-1 if number == self.axis else 1 for number in range(integers.dim())]
            scale, zero = scale.view(shape), zero.view(shape)
        return (integers.to(scale.dtype) - zero) * scale

    def extra_repr(self) -> str:
        """Type, axis and group."""
        return f"{self.spec.kind}, {self.dtype}, axis={self.axis}, group={self.group}"


class AffineQuantizer(Quantizer):
    """Rounds to scale * (integer - zero_point)."""

    learned: torch.Tensor | None = None  # times `scale` while it trains; no part of the model

    def rounded(self, value: torch.Tensor) -> torch.Tensor:
        """As Quantizer.rounded."""
        if self.learned is not None:
            return self._learning(value, self.learned)
        if self.axis is None:
            return torch.fake_quantize_per_tensor_affine(value, self.scale, self.zero_point, self.qmin, self.qmax)
        if self.group is None:
            return torch.fake_quantize_per_channel_affine(
                value, self.scale, self.zero_point, self.axis, self.qmin, self.qmax
            )
        rows = value.reshape(-1, self.group)
        rows = torch.fake_quantize_per_channel_affine(rows, self.scale, self.zero_point, 0, self.qmin, self.qmax)
        return rows.reshape(value.shape)

    def _learning(self, value: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Learned step size quantization (Esser et al. 2019, arXiv 1902.08153), symmetric: the scale gets gradients,
        too, times 1 / sqrt(values of a scale * qmax).

        What learns is the scale in units of its first one, with gradients by that unit: a step of SGD is that of the
        paper, and one of Adam is a share of the scale, whatever its size.
        """
        shape, unit = value.shape, self.scale
        if self.group is not None:
            value, scale, unit = value.reshape(-1, self.group), scale.unsqueeze(1), unit.unsqueeze(1)
        elif self.axis is not None:
            places = [-1 if number == self.axis else 1 for number in range(value.dim())]
            scale, unit = scale.view(places), unit.view(places)
        # Of activations the values of one sample share a scale, whatever the batch.
        of_one = value[0].numel() if self.axis is None and value.dim() > 1 else value.numel() // max(1, scale.numel())
        factor = (max(1, of_one) * self.qmax) ** -0.5
        scale = (scale * unit).detach() + (scale - scale.detach()) * (factor / unit)
        scale = scale.to(value.dtype)
        inside = (value / scale).clamp(self.qmin, self.qmax)
        rounded = (inside.round() - inside).detach() + inside
        return (rounded * scale).reshape(shape)

    @torch.no_grad()
    def integers(self, weight: torch.Tensor) -> torch.Tensor:
        """As Quantizer.integers, by the same arithmetic as fake_quantize: round(w * (1 / scale)) + zero_point."""
        value = weight.detach().float()
        rows = value.reshape(-1, self.group) if self.group is not None else value
        scale, zero = self.scale, self.zero_point
        if self.axis is not None:
            axis = 0 if self.group is not None else self.axis
            shape = [-1 if number == axis else 1 for number in range(rows.dim())]
            scale, zero = scale.view(shape), zero.view(shape)
        found = torch.round(rows * (1.0 / scale) + zero).clamp(self.qmin, self.qmax)
        return found.to(torch.int32).reshape(weight.shape)


class DynamicQuantizer(Quantizer):
    """Rounds by the range of the values of each call, which includes zero."""

    def __init__(self, spec: QuantizerSpec, channels: int | None = None) -> None:
        super().__init__(spec, channels)
        del self.scale, self.zero_point

    def rounded(self, value: torch.Tensor) -> torch.Tensor:
        """As Quantizer.rounded."""
        low, high = torch.aminmax(value.detach().float())
        low, high = low.clamp(max=0.0), high.clamp(min=0.0)
        if self.spec.numbers.scheme == "symmetric":
            scale = torch.maximum(-low, high) / ((self.qmax - self.qmin) / 2)
            zero = torch.zeros_like(scale) + (self.qmin + self.qmax + 1) // 2
        else:
            scale = (high - low) / (self.qmax - self.qmin)
            zero = self.qmin - low / scale.clamp(min=torch.finfo(torch.float32).tiny)
        scale = scale.clamp(min=torch.finfo(torch.float32).tiny)
        zero = zero.round().clamp(self.qmin, self.qmax).to(torch.int32)
        return torch.fake_quantize_per_tensor_affine(value, scale, zero, self.qmin, self.qmax)


class TokenQuantizer(Quantizer):
    """Rounds each token by the largest of its values, as compressed-tensors does, whose numbers these are: -128 to 127
    with a scale of max|x| / 127.5. Dimensions behind the second belong to a token; where there are none, the values of
    a call have one scale."""

    def __init__(self, spec: QuantizerSpec, channels: int | None = None) -> None:
        super().__init__(spec, channels)
        self.qmin, self.qmax = -(2 ** (self.bits - 1)), 2 ** (self.bits - 1) - 1
        del self.scale, self.zero_point

    def rounded(self, value: torch.Tensor) -> torch.Tensor:
        """As Quantizer.rounded; gradients go straight through."""
        held = value.detach()
        most = held.abs().amax(tuple(range(2, held.dim())), keepdim=True) if held.dim() > 2 else held.abs().amax()
        scale = most / ((self.qmax - self.qmin) / 2)
        scale = torch.where(scale == 0, torch.finfo(scale.dtype).eps, scale)
        found = (held / scale).clamp(self.qmin, self.qmax).round() * scale
        return value + (found - value).detach()


class DorefaQuantizer(Quantizer):
    """Weights as DoReFa-Net has them (Zhou et al. 2016, arXiv 1606.06160): 2 Q(tanh w / (2 max|tanh w|) + 1/2) - 1,
    with Q rounding to multiples of 1 / (2^k - 1). None of them is zero."""

    keeps_zero = False

    def __init__(self, spec: QuantizerSpec, channels: int | None = None) -> None:
        super().__init__(spec, channels)
        self.register_buffer("scale", torch.tensor(2.0 / self.qmax), persistent=False)
        self.register_buffer("zero_point", torch.tensor(self.qmax / 2.0), persistent=False)

    def rounded(self, value: torch.Tensor) -> torch.Tensor:
        """As Quantizer.rounded; gradients go through the rounding, and through tanh and its maximum."""
        share = self._share(value)
        steps = share * self.qmax
        steps = (steps.round() - steps).detach() + steps
        return 2.0 * (steps / self.qmax) - 1.0

    @torch.no_grad()
    def integers(self, weight: torch.Tensor) -> torch.Tensor:
        """As Quantizer.integers."""
        return (self._share(weight.detach().float()) * self.qmax).round().to(torch.int32)

    @staticmethod
    def _share(value: torch.Tensor) -> torch.Tensor:
        squashed = torch.tanh(value)
        most = squashed.abs().amax().clamp(min=torch.finfo(value.dtype).tiny)
        return squashed / (2.0 * most) + 0.5


class SignQuantizer(Quantizer):
    """-1 below zero, else 1 (Courbariaux et al. 2016, arXiv 1602.02830); gradients go through where |x| <= 1."""

    keeps_zero = False

    def __init__(self, spec: QuantizerSpec, channels: int | None = None) -> None:
        super().__init__(spec, channels)
        self.qmin, self.qmax = 0, 1
        self.register_buffer("scale", torch.tensor(2.0), persistent=False)
        self.register_buffer("zero_point", torch.tensor(0.5), persistent=False)

    def rounded(self, value: torch.Tensor) -> torch.Tensor:
        """As Quantizer.rounded."""
        sign = torch.where(value >= 0, 1.0, -1.0).to(value.dtype)
        through = torch.where(value.abs() <= 1.0, value, value.detach())  # at 1, too, where clamped weights stand
        return (sign - through).detach() + through

    @torch.no_grad()
    def integers(self, weight: torch.Tensor) -> torch.Tensor:
        """As Quantizer.integers."""
        return (weight.detach() >= 0).to(torch.int32)


_CLASSES: dict[str, type[Quantizer]] = {
    "affine": AffineQuantizer,
    "dynamic": DynamicQuantizer,
    "token": TokenQuantizer,
    "dorefa": DorefaQuantizer,
    "sign": SignQuantizer,
}


def make(spec: QuantizerSpec, weight: torch.Tensor | None) -> Quantizer:
    """A quantizer, with a scale of 1.

    Args:
        spec: what it is.
        weight: what it is for; None: an input or an output.

    Raises:
        ValueError: its groups do not divide the weight, or it has no such axis; the message is a clause.
    """
    if weight is None or spec.axis is None:
        return _CLASSES[spec.kind](spec)
    if spec.axis >= weight.dim():
        raise ValueError(f"a weight of {weight.dim()} dimensions has no axis {spec.axis}")
    channels = weight.shape[spec.axis]
    if spec.group is not None:
        row = weight.numel() // max(1, channels)
        if spec.axis or not row or row % spec.group:
            raise ValueError(f"groups of {spec.group} do not divide its {row} weights of an output")
        channels = weight.numel() // spec.group
    return _CLASSES[spec.kind](spec, channels)


def packed(integers: torch.Tensor, quantizer: Quantizer) -> torch.Tensor:
    """Integers of a weight as they are kept: of 1, 2 and 4 bits several in a byte, row by row.

    Returns:
        int8 or uint8: of the shape of `integers`, or (bytes,).
    """
    bits, low = quantizer.bits, quantizer.qmin
    if 8 % bits or bits == 8:
        return integers.to(torch.int8 if low < 0 else torch.uint8)
    each = 8 // bits
    flat = (integers - low).flatten().to(torch.uint8)
    flat = torch.cat([flat, flat.new_zeros(-flat.numel() % each)]).view(-1, each)
    out = flat[:, 0].clone()
    for number in range(1, each):
        out |= flat[:, number] << (bits * number)
    return out


def unpacked(kept: torch.Tensor, quantizer: Quantizer, shape: torch.Size) -> torch.Tensor:
    """The inverse of `packed`, in an integer type that holds them."""
    bits, low = quantizer.bits, quantizer.qmin
    if 8 % bits or bits == 8:
        return kept
    parts = [torch.bitwise_right_shift(kept, bits * number) for number in range(8 // bits)]
    flat = torch.bitwise_and(torch.stack(parts, 1), 2**bits - 1).flatten()[: shape.numel()]
    return flat.view(shape).to(torch.int16) + low
