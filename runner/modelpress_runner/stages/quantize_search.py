"""A quantize stage whose bits are solved for a budget, or whose layers are chosen by scores."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from modelpress.api.v1alpha1 import DEFAULT_METRIC, Quantize
from modelpress_runner.errors import InvalidSpecError
from modelpress_runner.methods.context import StageContext
from modelpress_runner.methods.quantize.allocation import Layers, layer_options, solve
from modelpress_runner.methods.quantize.behind import carry_out, smoothed
from modelpress_runner.methods.quantize.effects import Effects, aside, effects, of_bits, with_bits
from modelpress_runner.methods.quantize.layerwise import LayerwiseMethod
from modelpress_runner.methods.quantize.protocol import QuantizeMethod, method
from modelpress_runner.methods.quantize.selection import Selection
from modelpress_runner.methods.quantize.tuning import settings_of, tune
from modelpress_runner.runtime import distributed as ranks


def _effects_of(
    context: StageContext,
    selection: Selection,
    block: Quantize,
    quantizing: QuantizeMethod,
    bits: Sequence[int] | None,
    path: str,
) -> Effects:
    def before(twin: StageContext) -> None:
        smoothed(twin, selection, block, quantizing, path)

    return effects(context, selection, block, quantizing, before, bits, path)


def allocated(
    context: StageContext, selection: Selection, block: Quantize, quantizing: QuantizeMethod, path: str
) -> Selection:
    """The selection with bits that are solved for the stage's budget, verified by the score where there is one.

    Raises:
        InvalidSpecError: the budget cannot be met.
    """
    budget = block.budget
    assert budget is not None
    model, where = context.model, f"{path}.budget"
    found = _effects_of(context, selection, block, quantizing, sorted(set(budget.bits)), path)
    named = {name: targets["weight"] for name, targets in selection.layers.items() if "weight" in targets}
    weights = {name: model.get_submodule(name).get_parameter("weight") for name in named}
    specs = {name: functools.partial(of_bits, spec) for name, spec in named.items()}
    layers = Layers.of(layer_options(weights, specs, found, budget.keep_float))
    count = sum(weight.numel() for weight in weights.values())
    whole = sum(weight.numel() * weight.element_size() for weight in weights.values()) * 8 / count

    def size(selected: Selection) -> float:
        twin = aside(context)
        plain = method("weight_only") if isinstance(quantizing, LayerwiseMethod) else quantizing
        if selected.layers:
            carry_out(twin, selected, block, plain, path)
        return measures.of("sizeBytes", [twin.model])[0]

    if budget.metric == "sizeBytes":
        if context.measures is None:
            raise InvalidSpecError("sizeBytes is measured, and nothing here measures it; write effectiveBits", where)
        measures = context.measures
        whole = ranks.on_rank_zero(lambda: measures.of("sizeBytes", [model])[0])

    def cost(steps: int) -> float:
        context.stop()
        if budget.metric == "effectiveBits":
            return layers.bytes(steps) * 8 / count
        return ranks.on_rank_zero(lambda: size(with_bits(selection, layers.bits(steps))))

    bits, value = solve(layers, budget, whole, cost, where)
    out = with_bits(selection, bits)
    if not out.layers:
        context.note("budget: it is met with nothing quantized")
    record: dict[str, Any] = {"metric": budget.metric, "before": whole, "after": value, "bits": bits, "effects": found}
    text = f"budget: {budget.metric} {whole:.6g} -> {value:.6g}"
    if context.score_of is not None and block.tune is None:
        twin = aside(context)
        if out.layers:
            carry_out(twin, out, block, quantizing, path)
        before, after = (dict(context.score_of(each)) for each in (model, twin.model))
        record |= {"scoreBefore": before, "scoreAfter": after}
        text += f", score {before[DEFAULT_METRIC]:.6g} -> {after[DEFAULT_METRIC]:.6g}"
    context.record["allocation"] = record
    context.report(text)
    context.note(text)
    return out


def tuned(
    context: StageContext, selection: Selection, block: Quantize, quantizing: QuantizeMethod, path: str
) -> tuple[Selection, Quantize]:
    """What tuning leaves of a selection, and the block with the observers that it took."""
    looks = "activations" in quantizing.facts.needs and not isinstance(quantizing, LayerwiseMethod)

    def worked_out() -> dict[str, float]:
        return {name: row[0] for name, row in _effects_of(context, selection, block, quantizing, None, path).items()}

    def work(twin: StageContext, selected: Selection, chosen: Quantize) -> None:
        carry_out(twin, selected, chosen, quantizing, path)

    return tune(context, selection, block, settings_of(block, looks), work, worked_out, path)
