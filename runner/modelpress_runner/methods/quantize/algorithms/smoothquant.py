"""SmoothQuant (Xiao et al. 2022, arXiv 2211.10438): outliers of inputs become a part of the weights behind them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from modelpress_runner.edits.quantize import why_not
from modelpress_runner.methods.context import StageContext
from modelpress_runner.methods.quantize.moments import Taken
from modelpress_runner.methods.quantize.products import is_product, matrix
from modelpress_runner.methods.quantize.protocol import QuantizeMethod
from modelpress_runner.methods.quantize.smoothing import Smoothing, scale, smoothings
from modelpress_runner.passes.run import Sources, run_pass

_TINY = 1e-5


class SmoothQuant(QuantizeMethod):
    """As ptq_static, behind `smooth`."""

    name = "smoothquant"


def smooth(context: StageContext, layers: Sequence[str], alpha: float, steps: int | None, path: str) -> None:
    """Scales, in place, the layers that can be scaled with what is before them, by max|x|^a / max|w|^(1 - a).

    Args:
        context: the model, without quantizers, and data.
        layers: names of those that are quantized.
        alpha: how much of the outliers moves.
        steps: batches that are looked at, at most; None: all.
        path: of the stage.
    """
    model = context.model
    modules = {name: model.get_submodule(name) for name in layers}
    products = [name for name, module in modules.items() if why_not(module) is None and is_product(module)]
    found = smoothings(context, products, path)
    if found:
        wanted = [name for fold in found for name in fold.layers]

        def make(data: Any) -> dict[str, Taken]:
            return {name: Taken(name, modules[name], data, second=False) for name in wanted}

        sources = Sources(context.evaluator, context.calibration_data)
        kind = sources.kind({"activations"})
        assert kind is not None
        taken, _ = run_pass(model, sources, kind, make, batches=steps, seed=context.seed, stop=context.stop)
        for fold in found:
            for each in (taken[name] for name in fold.layers):
                each.compute()  # raises where numbers are not finite
            scale(model, fold, factors(context, fold, [taken[name].most for name in fold.layers], alpha))
    left = [name for name in layers if not any(name in fold.layers for fold in found)]
    text = f"smoothquant: {len(layers) - len(left)} of {len(layers)} layers are scaled with what is before them"
    context.note(f"{text}; not {', '.join(left[:5])}" if left else text)


@torch.no_grad()
def factors(context: StageContext, fold: Smoothing, most: Sequence[torch.Tensor], alpha: float) -> torch.Tensor:
    """The factors of one smoothing, (inputs,), float64."""
    inputs = torch.stack(list(most)).amax(0)
    weights = []
    for name in fold.layers:
        layer = context.model.get_submodule(name)
        weights.append(matrix(layer, layer.get_parameter("weight").detach()).abs().amax(0).double())
    largest = torch.stack(weights).amax(0).to(inputs.device)
    found = inputs.clamp(min=_TINY) ** alpha / largest.clamp(min=_TINY) ** (1 - alpha)
    return torch.where(inputs > 0, found, 1.0)  # what is never seen says nothing


METHOD = SmoothQuant()
