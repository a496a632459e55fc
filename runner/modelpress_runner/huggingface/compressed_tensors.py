"""Quantized linear layers as compressed-tensors has them, which transformers and vLLM load.

Weights of layers whose inputs stay are packed into words of 32 bits (pack-quantized); those of layers with eight-bit
inputs are bytes (int-quantized). A layer's scales are kept in the type of its weights.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from modelpress_runner.edits.quantize import FrozenLayer, QuantizedLayer, dense_class, quantized_layers
from modelpress_runner.edits.quantizers import TokenQuantizer, unpacked
from modelpress_runner.export.layout import LayoutError

METHOD = "compressed-tensors"
BESIDE = ("weight_scale", "weight_shape")  # ends of names of what lies beside a weight


@dataclass(frozen=True)
class _Scheme:
    """How a layer is quantized: bits of its weight, values that share a scale (None: an output), eight-bit inputs."""

    bits: int
    group: int | None
    inputs: bool

    @property
    def format(self) -> str:
        return "int-quantized" if self.inputs else "pack-quantized"

    def plain(self, targets: list[str]) -> dict[str, Any]:
        """As config.json has it."""
        weights = {
            "num_bits": self.bits,
            "type": "int",
            "symmetric": True,
            "strategy": "channel" if self.group is None else "group",
            "group_size": self.group,
            "dynamic": False,
        }
        inputs = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
        return {
            "targets": targets,
            "weights": weights,
            "input_activations": inputs if self.inputs else None,
            "output_activations": None,
            "format": self.format,
        }


def configuration(model: nn.Module) -> dict[str, Any]:
    """The `quantization_config` of a model with quantized layers.

    Raises:
        LayoutError: compressed-tensors has no form of a layer.
    """
    schemes = {name: _scheme(name, layer) for name, layer in quantized_layers(model).items()}
    groups: dict[_Scheme, list[str]] = {}
    for name, scheme in schemes.items():
        groups.setdefault(scheme, []).append(name)
    others = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and name not in schemes]
    alone = len(groups) == 1
    formats = sorted({scheme.format for scheme in groups})
    return {
        "quant_method": METHOD,
        "format": formats[0] if len(formats) == 1 else "mixed-precision",
        "quantization_status": "compressed",
        "config_groups": {
            f"group_{number}": scheme.plain(["Linear"] if alone else names)
            for number, (scheme, names) in enumerate(groups.items())
        },
        "ignore": others if alone else [],
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
    }


def tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """The state of a model with quantized layers under the names of compressed-tensors; tied ones once."""
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    layers = quantized_layers(model)
    found: dict[str, torch.Tensor] = {}
    seen: set[tuple[int, int]] = set()
    for name, value in model.state_dict().items():
        if any(name.startswith(f"{layer}.") for layer in layers) and not name.endswith(".bias"):
            continue
        place = (value.untyped_storage().data_ptr(), value.storage_offset())
        if value.numel() and place in seen:
            continue
        seen.add(place)
        found[name] = value.detach().cpu().contiguous()
    for name, layer in layers.items():
        scheme = _scheme(name, layer)
        assert isinstance(layer, FrozenLayer)
        quantizer = layer.weight_quantizer
        assert quantizer is not None
        integers = unpacked(layer.weight_integers, quantizer, layer.weight_shape).to(torch.int8).cpu()
        scale = quantizer.scale.reshape(layer.weight_shape[0], -1)
        found[f"{name}.weight_scale"] = scale.to(layer.weight_dtype).cpu().contiguous()
        if scheme.inputs:
            found[f"{name}.weight"] = integers.contiguous()
        else:
            found[f"{name}.weight_packed"] = pack_to_int32(integers, scheme.bits).contiguous()
            found[f"{name}.weight_shape"] = torch.tensor(list(layer.weight_shape))
    return found


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """The floats of a model's layers, of those with few bits what their integers stand for, by their usual names."""
    layers = quantized_layers(model)
    found = {
        name: value
        for name, value in model.state_dict().items()
        if name.endswith(".bias") or not any(name.startswith(f"{layer}.") for layer in layers)
    }
    return found | {f"{name}.weight": layer.weight for name, layer in layers.items()}


def decompressed(model: Any) -> None:
    """Has a model that transformers loaded work out its weights now, as its first call would."""
    from compressed_tensors.compressors import ModelCompressor

    if getattr(model.config, "quantization_config", None) is not None:
        with silent():
            ModelCompressor.from_pretrained_model(model).decompress_model(model)


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """It shows bars of progress on stderr."""
    with contextlib.redirect_stderr(io.StringIO()):
        yield


def why_not(name: str, layer: QuantizedLayer) -> str | None:
    """Why compressed-tensors has no form of a layer, as a clause; None: it has one."""
    if not issubclass(dense_class(layer), nn.Linear):
        return f"'{name}' is a {dense_class(layer).__name__}, and compressed-tensors has linear layers only"
    quantizer = layer.weight_quantizer
    if not isinstance(layer, FrozenLayer) or quantizer is None:
        return f"the weight of '{name}' is not kept as integers"
    numbers = quantizer.spec.numbers
    if quantizer.spec.kind != "affine" or not numbers.signed or numbers.scheme != "symmetric" or quantizer.axis != 0:
        return f"the weight of '{name}' is no symmetric integers with a scale for each output or group"
    if layer.output_quantizer is not None:
        return f"the output of '{name}' is rounded"
    if layer.input_quantizer is not None and (
        not isinstance(layer.input_quantizer, TokenQuantizer) or numbers.bits != 8 or quantizer.group is not None
    ):
        return f"the input of '{name}' is rounded otherwise than by the range of each token"
    return None


def _scheme(name: str, layer: QuantizedLayer) -> _Scheme:
    reason = why_not(name, layer)
    if reason is not None:
        raise LayoutError(f"{reason}; quantize with backend compressed-tensors")
    assert layer.weight_quantizer is not None
    return _Scheme(layer.weight_quantizer.bits, layer.weight_quantizer.group, layer.input_quantizer is not None)
