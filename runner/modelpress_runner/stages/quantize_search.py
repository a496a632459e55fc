"""A quantize stage whose bits are solved for a budget, or whose layers are chosen by times or by scores."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from modelpress.api.v1alpha1 import DEFAULT_METRIC, Quantize
from modelpress_runner.errors import InvalidSpecError
from modelpress_runner.methods.context import Measures, StageContext
from modelpress_runner.methods.quantize.allocation import Layers, layer_options, solve
from modelpress_runner.methods.quantize.behind import carry_out, smoothed
from modelpress_runner.methods.quantize.effects import Effects, aside, effects, of_bits, with_bits
from modelpress_runner.methods.quantize.layerwise import LayerwiseMethod
from modelpress_runner.methods.quantize.protocol import QuantizeMethod, method
from modelpress_runner.methods.quantize.selection import Selection
from modelpress_runner.methods.quantize.times import Time, Times, layer_times, only_faster
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


def timed(
    context: StageContext, selection: Selection, block: Quantize, quantizing: QuantizeMethod, path: str
) -> tuple[Selection, dict[str, Time]]:
    """The selection, without what few bits do not make faster where the stage asks for that; and what layers take, as
    far as somebody wants to know it."""
    measures = context.measures
    if not block.keep_only_if_faster and (measures is None or not measures.times_layers or context.in_loop):
        return selection, {}
    table, unknown = layer_times(context, selection, block, quantizing, None, path)
    if block.keep_only_if_faster:
        selection = only_faster(context, selection, table, unknown)
    return selection, {name: row[0] for name, row in table.items()}


def allocated(
    context: StageContext, selection: Selection, block: Quantize, quantizing: QuantizeMethod, path: str
) -> tuple[Selection, dict[str, Time]]:
    """The selection with bits that are solved for the stage's budget, verified by the score where there is one; and
    what layers take with them, where that was of account.

    Raises:
        InvalidSpecError: the budget cannot be met.
    """
    budget = block.budget
    assert budget is not None
    model, where = context.model, f"{path}.budget"
    bits, by_time = sorted(set(budget.bits)), budget.metric == "latencyMs"
    found = _effects_of(context, selection, block, quantizing, bits, path)
    times: Times = {}
    if block.keep_only_if_faster or by_time:
        times, unknown = layer_times(context, selection, block, quantizing, bits, path)
        if unknown:
            name = next(iter(unknown))
            context.note(f"budget: {len(unknown)} layers were not timed, and stay; '{name}': {unknown[name]}")
    named = {name: targets["weight"] for name, targets in selection.layers.items() if "weight" in targets}
    weights = {name: model.get_submodule(name).get_parameter("weight") for name in named}
    specs = {name: functools.partial(of_bits, spec) for name, spec in named.items()}
    as_it_is = sum(next((time.before for time in row.values()), 0.0) for row in times.values())
    options = layer_options(weights, specs, found, budget.keep_float, times, not by_time, block.keep_only_if_faster)
    layers = Layers.of(options)
    count = sum(weight.numel() for weight in weights.values())

    def quantized(selected: Selection, by: QuantizeMethod) -> StageContext:
        twin = aside(context)
        if selected.layers:
            carry_out(twin, selected, block, by, path)
        return twin

    measures = _measures(context, budget.metric, where)
    if measures is None:
        whole = sum(weight.numel() * weight.element_size() for weight in weights.values()) * 8 / count
    else:
        models = [model, model] if by_time else [model]
        whole = ranks.on_rank_zero(lambda: measures.of(budget.metric, models)[0])

    def cost(steps: int) -> float:
        context.stop()
        if measures is None:
            return layers.cost(steps) * 8 / count
        if by_time:
            return whole - (as_it_is - layers.cost(steps))
        plain = method("weight_only") if isinstance(quantizing, LayerwiseMethod) else quantizing
        selected = with_bits(selection, layers.bits(steps))
        return ranks.on_rank_zero(lambda: measures.of("sizeBytes", [quantized(selected, plain).model])[0])

    chosen, value = solve(layers, budget, whole, cost, where)
    out = with_bits(selection, chosen)
    if not out.layers:
        context.note("budget: it is met with nothing quantized")
    record: dict[str, Any] = {
        "metric": budget.metric,
        "before": whole,
        "after": value,
        "bits": chosen,
        "effects": found,
    }
    text = f"budget: {budget.metric} {whole:.6g} -> {value:.6g}"
    last = None
    if by_time or (context.score_of is not None and block.tune is None):
        last = quantized(out, quantizing).model
    if last is not None and measures is not None and by_time:
        before, after = ranks.on_rank_zero(lambda: measures.of("latencyMs", [model, last]))
        record["measured"] = {"before": before, "after": after}
        record["times"] = {
            name: {str(each): [time.before, time.after] for each, time in row.items()} for name, row in times.items()
        }
        text += f" by the table, {before:.6g} -> {after:.6g} measured"
        bound = budget.max if budget.max is not None else (budget.max_ratio or 0.0) * before
        if after > bound:
            text += f", which is above the budget's {bound:.6g}: layers together take other times than each alone"
    if last is not None and context.score_of is not None and block.tune is None:
        one, other = (dict(context.score_of(each)) for each in (model, last))
        record |= {"scoreBefore": one, "scoreAfter": other}
        text += f", score {one[DEFAULT_METRIC]:.6g} -> {other[DEFAULT_METRIC]:.6g}"
    context.record["allocation"] = record
    context.report(text)
    context.note(text)
    own = {name: row[each] for name, row in times.items() if (each := chosen.get(name)) is not None and each in row}
    stayed = {name: row[min(row)] for name, row in times.items() if chosen.get(name) is None and row}
    return out, own | stayed


def _measures(context: StageContext, metric: str, path: str) -> Measures | None:
    """What measures the budget's metric; None: it is worked out."""
    if metric == "effectiveBits":
        return None
    if context.measures is None:
        raise InvalidSpecError(f"{metric} is measured, and nothing here measures it; write effectiveBits", path)
    return context.measures


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
