"""AWQ (Lin et al. 2023, arXiv 2306.00978): weights behind large inputs are scaled up before they are rounded."""

from __future__ import annotations

import math

import torch

from modelpress_runner.edits.quantizers import Quantizer
from modelpress_runner.methods.quantize.layerwise import Block, LayerwiseMethod, Settled
from modelpress_runner.methods.quantize.products import error, matrix, shaped
from modelpress_runner.methods.quantize.smoothing import Smoothing, scale

_STEPS = 20  # of the exponent, from 0 to 1


class Awq(LayerwiseMethod):
    """The exponent of the mean input that costs least is taken; 0 is rounding to the nearest."""

    name = "awq"
    scales = True

    def settle(self, block: Block) -> dict[str, Settled]:
        """As LayerwiseMethod.settle."""
        for fold in block.smoothings:
            factors = self.factors(block, fold)
            scale(block.model, fold, factors)
            for name in fold.layers:
                taken = block.taken[name]
                taken.products /= torch.outer(factors, factors).to(taken.products.device)
        out: dict[str, Settled] = {}
        for name, layer in block.layers.items():
            quantizer = layer.weight_quantizer
            if quantizer is None:
                continue
            self.start(quantizer, layer.get_parameter("weight"), block.settings)
            if name in block.taken:
                products = block.taken[name].products
                weight = matrix(layer, layer.get_parameter("weight").detach()).double().to(products.device)
                signal = float(error(weight, products).sum())
                rounded = matrix(layer, quantizer.rounded(layer.get_parameter("weight").detach().float())).double()
                noise = float(error(rounded.to(products.device) - weight, products).sum())
                out[name] = Settled(noise / signal if signal else math.nan)
        return out

    def factors(self, block: Block, fold: Smoothing) -> torch.Tensor:
        """The factors of one smoothing, (inputs,), float64: (mean|x|)^a, by the a of the least error."""
        sizes = torch.stack([block.taken[name].compute() for name in fold.layers]).mean(0).clamp(min=1e-4)
        best, found = math.inf, torch.ones_like(sizes)
        for number in range(_STEPS + 1):
            factors = sizes ** (number / _STEPS)
            factors = factors / (factors.max() * factors.min()).sqrt()
            cost = sum(self._cost(block, name, factors) for name in fold.layers)
            if cost < best:
                best, found = cost, factors
        return found

    def _cost(self, block: Block, name: str, factors: torch.Tensor) -> float:
        layer, products = block.layers[name], block.taken[name].products
        quantizer: Quantizer | None = layer.weight_quantizer
        if quantizer is None:
            return 0.0
        held = layer.get_parameter("weight").detach()
        weight = matrix(layer, held).double().to(products.device)
        scaled = (weight * factors).to(held.dtype)  # as it will be kept
        own = shaped(layer, scaled, held.shape).to(quantizer.scale.device)
        self.start(quantizer, own, block.settings)
        rounded = matrix(layer, quantizer.rounded(own.float())).double().to(products.device)
        return float(error(rounded / factors - weight, products).sum())


METHOD = Awq()
