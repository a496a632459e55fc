"""Distillation, tuning, benchmark and evaluation of Neural Compressor 1.x and 2.x."""

from __future__ import annotations

from typing import Any

from modelpress.convert.drafts import Draft
from modelpress.convert.notes import Field
from modelpress.convert.scripts import ARGUMENTS, CALL, OF

_CALL = (CALL, ARGUMENTS, OF)
_COMPARISONS = ("CE", "KL", "MSE")
_LAYERS = {"MSE": "MSE", "L2": "MSE", "KL": "KL"}
_STRATEGIES = {
    **{name: name for name in ("basic", "mse", "bayesian", "random", "exhaustive")},
    "auto": "basic",
    "conservative": "basic",
    "mse_v2": "mse",
    "hawq_v2": "mse",
    "tpe": "bayesian",
    "sigopt": "bayesian",
}
_LEFT_OF_LOSS = {"features": "layers are looked at while the model runs"}


def knowledge(field: Field) -> dict[str, Any]:
    """The block of a distill stage, of KnowledgeDistillationLoss and its Config."""
    block: dict[str, Any] = {}
    temperature, types, weights = (field.take(key) for key in ("temperature", "loss_types", "loss_weights"))
    if temperature is not None and (value := temperature.number(0)) is not None:
        block["temperature"] = value
    named = types.names() if types is not None else ["CE", "CE"]
    if len(named) != 2 or named[1] not in _COMPARISONS:
        (types or field).wrong("must be two of CE, KL and MSE", "write [CE, KL]")
        named = ["CE", "KL"]
    if named[0] != "CE" and types is not None:
        types.say("changed", f"the first, {named[0]}, is the loss of the training itself, whatever that is")
    block["lossTypes"] = ["task", named[1]]
    if types is not None:
        types.say("translated", "the loss with the labels (CE) is that of the training itself, task")
    shares = [share.number(0) for share in weights.entries()] if weights is not None else [0.5, 0.5]
    if len(shares) != 2:
        (weights or field).wrong("must be two numbers", "write [0.5, 0.5]")
    else:
        block["lossWeights"] = shares
    if named[1] == "KL":
        block["reduction"] = "mean"
        (types or field).say("translated", "Neural Compressor takes the mean of KL over classes, too: reduction: mean")
    field.leave(_LEFT_OF_LOSS, _CALL)
    return block


def layers(field: Field, of_itself: bool) -> dict[str, Any]:
    """The block, of losses between inner layers; of the model's own deeper ones, if `of_itself`."""
    mappings, types, weights = (field.take(key) for key in ("layer_mappings", "loss_types", "loss_weights"))
    add, temperature = field.take("add_origin_loss"), field.take("temperature")
    pairs: list[tuple[str, str]] = []
    for mapping in mappings.entries() if mappings is not None and mappings.data else ():
        for pair in mapping.entries() if of_itself else [mapping]:
            names = [_first(item.data) for item in pair.entries()]
            if len(names) == 1:
                names *= 2
            if len(names) < 2 or not all(names):
                pair.wrong("must name a layer of the student and one of the teacher", "write [student, teacher]")
                continue
            pairs.append((str(names[0]), str(names[1])))
    if of_itself and not pairs:
        field.say(
            "changed",
            "it names no layers that could learn from deeper ones, so what is left is its teacher_model: the dense "
            "model teaches by its outputs",
        )
        field.leave(_LEFT_OF_LOSS, _CALL)
        return {"teacher": {"self": True}, "lossTypes": ["task", "CE"]}
    if not pairs:
        field.wrong("it maps no layers", "add layer_mappings: [[student, teacher]]")
    kinds = types.names() if types is not None and types.data else []
    shares = [share.number(0) for share in weights.entries()] if weights is not None and weights.data else []
    out: list[dict[str, Any]] = []
    for number, (student, teacher) in enumerate(pairs):
        kind = kinds[min(number, len(kinds) - 1)] if kinds else "MSE"
        if kind not in _LAYERS:
            (types or field).say("changed", f"there is no {kind} between inner layers; KL was taken")
        share = shares[number] if number < len(shares) else round(1 / len(pairs), 6)
        mapping_: dict[str, Any] = {"student": student, "lossType": _LAYERS.get(kind, "KL"), "weight": share}
        if teacher != student:
            mapping_["teacher"] = teacher
        out.append(mapping_)
    own = 1.0 if add is not None and add.boolean() else 0.0
    block: dict[str, Any] = {"lossWeights": [own, 0.0], "layerMappings": out}
    if of_itself:
        block["teacher"] = {"student": True}
    if temperature is not None and (value := temperature.number(0)) is not None:
        block["temperature"] = value
    field.leave(_LEFT_OF_LOSS, _CALL)
    return block


def _first(value: Any) -> Any:
    """The name of a layer, which may stand in a list with what becomes of its output."""
    return value[0] if isinstance(value, list) and value else value


def tuned(draft: Draft) -> dict[str, Any] | None:
    """The quantize block that tuning is of; None: there is none that could be tuned, as it trains or nothing does."""
    for stage in draft.stages:
        block = stage.get("quantize")
        if isinstance(block, dict) and block["algorithm"] != "qat":
            return block
    return None


def accuracy(
    draft: Draft, block: dict[str, Any] | None, criterion: Field, relative: Field | None, absolute: Field | None
) -> None:
    """The criterion of a block's tuning; without one a constraint on the score."""
    higher = criterion.take("higher_is_better")
    if higher is not None and not higher.boolean():
        draft.spec["metrics"] = {"default": {"goal": "minimize"}}
    for field, bound, own in ((relative, "maxRelativeLoss", "relative"), (absolute, "maxAbsoluteLoss", "absolute")):
        most = 1.0 if block is not None and own == "relative" else None
        if field is not None and (loss := field.number(0, most)) is not None:
            if block is not None:
                block.setdefault("tune", {})["criteria"] = [{own: loss}]
                field.say("changed", "layers stay as they are until it holds; the best is kept in any case")
                break
            draft.spec.setdefault("constraints", []).append({"metric": "default", bound: loss})
            field.say("changed", "the constraint is judged, and the result is kept with its numbers if it misses it")
            break


def strategy(block: dict[str, Any], field: Field | None) -> None:
    """In which order a block's tuning tries layers, of a name or of {name: ...}."""
    if field is None:
        return
    named = field.take("name") if isinstance(field.data, dict) else field
    if isinstance(field.data, dict):
        field.leave(dict.fromkeys(("accuracy_weights", "latency_weights"), "objectives are a CompressionSweep's"))
    text = named.text() if named is not None else None
    if text is None or named is None:
        return
    found = _STRATEGIES.get(text)
    if found is None:
        known = " or ".join(sorted(set(_STRATEGIES.values())))
        named.wrong(f"there is no counterpart to the strategy {text}", f"write {known}")
        return
    tune = block.setdefault("tune", {})
    tune["strategy"] = found
    if text == "conservative":
        tune["quantLevel"] = 0
    if found != text:
        named.say("translated", f"{text} is strategy: {found}" + (", quantLevel: 0" * (text == "conservative")))


def level(block: dict[str, Any], field: Field | None) -> None:
    """quant_level: 0, 1, or auto, which is left out here."""
    if field is not None and field.data != "auto" and (value := field.whole()) is not None:
        if value in (0, 1):
            block.setdefault("tune", {})["quantLevel"] = value
        else:
            field.wrong(f"there is no level {value}", "write 0, 1 or auto")


def trials(block: dict[str, Any] | None, field: Field | None) -> None:
    """What is said of max_trials."""
    if field is None or (count := field.whole(1)) is None:
        return
    if block is not None:
        block.setdefault("tune", {})["maxTrials"] = count
    else:
        field.say("changed", f"one recipe is measured, where up to {count} were tried; a CompressionSweep tries others")


def timeout(draft: Draft, block: dict[str, Any] | None, field: Field | None) -> None:
    """A time limit; 0 is none."""
    if field is None or (seconds := field.whole()) is None:
        return
    if block is not None:
        block.setdefault("tune", {})["timeout"] = seconds
        return
    if seconds:
        draft.spec["activeDeadlineSeconds"] = seconds
    else:
        field.say("changed", "0 ends the tuning at the first success there; here it is no limit, and was left out")


def benchmark(draft: Draft, field: Field) -> None:
    """BenchmarkConfig(...), and evaluation.performance of 1.x."""
    block: dict[str, Any] = draft.spec.setdefault("benchmark", {})
    configs, loader = field.take("configs"), field.take("dataloader")
    holder = configs if configs is not None else field
    for holder_, theirs, ours in (
        (field, "warmup", "warmup"),
        (field, "iteration", "iterations"),
        (holder, "cores_per_instance", "coresPerInstance"),
    ):
        value = holder_.take(theirs)
        if value is not None and value.data != -1 and (count := value.whole()) is not None:
            block[ours] = count
    if loader is not None:
        size = loader.take("batch_size")
        if size is not None and (count := size.whole(1)) is not None:
            block["batchSize"] = count
        loader.leave(dict.fromkeys(("dataset", "transform", "filter"), "inputs are the model's example inputs"))
    if (instances := holder.take("num_of_instance")) is not None and instances.data != 1:
        instances.say("missing", "one instance is timed")
    left = {
        "inter_num_of_threads": "threads are coresPerInstance",
        "intra_num_of_threads": "threads are coresPerInstance",
    }
    holder.leave(left, _CALL)
    field.leave(left, (*_CALL, "configs"))
    if not block:
        del draft.spec["benchmark"]
