"""Neural Compressor: YAML of its version 1.x, and the Config objects of 2.x in Python."""

from __future__ import annotations

from typing import Any

from modelpress.convert.drafts import Draft
from modelpress.convert.notes import Field
from modelpress.convert.scripts import ARGUMENTS, CALL, OF, Script

from . import parts, quantization
from .nesting import nested
from .pruning import is_computed, prune_block

_SECTIONS = ("quantization", "pruning", "distillation", "tuning", "mixed_precision", "evaluation", "graph_optimization")
_CONFIGS = (
    "PostTrainingQuantConfig",
    "QuantizationAwareTrainingConfig",
    "WeightPruningConfig",
    "DistillationConfig",
    "MixedPrecisionConfig",
    "BenchmarkConfig",
)
_CALL = (CALL, ARGUMENTS, OF)
_FRAMEWORKS = ("pytorch", "pytorch_fx", "pytorch_ipex")
_YOURS = "the model's evaluator, which its entrypoint or script gives, does that"
_LEFT = {
    "device": "runner: {gpus: 1} asks a cluster for a GPU",
    "graph_optimization": "graphs are optimised by what runs the model",
}


def detect(top: Field, script: Script | None) -> bool:
    """Whether a file is of Neural Compressor."""
    if script is not None:
        called = {call[CALL].rpartition(".")[2] for _, call in script.calls}
        named = any(_pruners(value) for value in script.names.values())
        return (
            bool(called & {*_CONFIGS}) or named or any("neural_compressor" in name for name in script.imports.values())
        )
    data = top.data
    if _pruners(data):
        return True
    return isinstance(data, dict) and bool({*_SECTIONS, "target_sparsity", "pruning_configs"} & data.keys())


def _pruners(value: Any) -> bool:
    keys = {"target_sparsity", "pruning_type", "pruning_scope", "pruning_op_types", "excluded_op_names", "pattern"}
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(item, dict) for item in value)
        and any(keys & item.keys() for item in value)
    )


def convert(top: Field, script: Script | None, model: dict[str, Any]) -> list[Draft]:
    """The recipes of a file.

    Args:
        top: the YAML, a dict or list of pruners, or what a script assigns.
        script: what else it says.
        model: the block `model`; empty: a training loop of the user's own in train.py, or model.py.
    """
    if script is not None:
        return _of_script(top, script, model)
    if isinstance(top.data, list) or top.has("target_sparsity", "pruning_configs"):
        draft = Draft("neural-compressor", dict(model))
        listed = top.take("pruning_configs") if isinstance(top.data, dict) else top
        common = Field({}, top.book) if isinstance(top.data, list) else top
        draft.stages.append({"prune": prune_block(common, listed.entries() if listed is not None else [])})
        return [_finished(draft, top)]
    return [_of_yaml(nested(top), model)]


def _finished(draft: Draft, top: Field) -> Draft:
    if not draft.model and draft.stages:
        draft.model = {"script": "train.py"}
        top.book.say(
            "todo", (), "the script, train.py: its training loop calls mp.prepare_compression(model).callbacks"
        )
    return draft


# 1.x ------------------------------------------------------------------------------------------------------------------


def _of_yaml(top: Field, model: dict[str, Any]) -> Draft:
    draft = Draft("neural-compressor", dict(model))
    if (block := top.take("model")) is not None and block.mapping():
        name, framework = block.take("name"), block.take("framework")
        draft.name = (name.text() if name is not None else None) or draft.name
        if framework is not None and framework.data not in _FRAMEWORKS:
            framework.say("missing", f"models of {framework.data}; the recipe is for the same model in PyTorch")
        block.leave(dict.fromkeys(("inputs", "outputs"), "the model's example inputs say that"))
    if (block := top.take("pruning")) is not None:
        _pruning(draft, block)
    if (block := top.take("distillation")) is not None:
        _distillation(draft, block)
    if (block := top.take("quantization")) is not None:
        _quantization(draft, block)
    if (block := top.take("mixed_precision")) is not None:
        draft.stages.append({"mixedPrecision": _mixed_precision(draft, block)})
    if (block := top.take("tuning")) is not None:
        _tuning(draft, block)
    if (block := top.take("evaluation")) is not None:
        _evaluation(draft, block)
    top.leave(_LEFT, ("version",))
    return _finished(draft, top)


def _pruning(draft: Draft, block: Field) -> None:
    approach = block.take("approach")
    settings = approach.take("weight_compression_pytorch", "weight_compression") if approach is not None else None
    if settings is None or not settings.mapping():
        block.wrong("there is no counterpart to this approach", "write approach: {weight_compression: {...}}")
        return
    own = settings.take("pruners")
    draft.stages.append({"prune": prune_block(settings, own.entries() if own is not None else [])})
    block.leave({"train": _YOURS})


def _distillation(draft: Draft, block: Field) -> None:
    train = block.take("train")
    if train is None or not train.mapping():
        block.wrong("it has no train", "add train: {end_epoch, criterion}")
        return
    criterion = train.take("criterion")
    distill: dict[str, Any] = {"lossTypes": ["task", "KL"]}
    for key, convert_ in (
        ("KnowledgeDistillationLoss", parts.knowledge),
        ("IntermediateLayersKnowledgeDistillationLoss", lambda field: parts.layers(field, False)),
        ("SelfKnowledgeDistillationLoss", lambda field: parts.layers(field, True)),
    ):
        field = criterion.take(key) if criterion is not None else None
        if field is not None:
            distill = convert_(field)
    begin, end, steps = train.take("start_epoch"), train.take("end_epoch"), train.take("iteration")
    first, last = (begin.whole() if begin is not None else 0) or 0, (end.whole(1) if end is not None else 1) or 1
    epochs, each = max(1, last - first), steps.whole(1) if steps is not None else None
    if each and steps is not None:
        distill["maxSteps"] = epochs * each
        steps.say("translated", f"{epochs} epochs of {each} steps are maxSteps: {epochs * each}")
    else:
        distill["epochs"] = epochs
    train.leave(
        {"dataloader": _YOURS, "optimizer": _YOURS, "dataset": _YOURS, "batch_size": _YOURS, "transform": _YOURS}
    )
    block.leave({"evaluation": _YOURS})
    draft.stages.append({"distill": distill})
    if not draft.model:
        _entrypoint(draft, block)
    block.say("todo", "the teacher: mp.Subject(..., teacher=MODEL) or teacher: {entrypoint: ...}; else the dense model")


def _quantization(draft: Draft, block: Field) -> None:
    draft.stages.append(quantization.of_yaml(block))
    if draft.stages[-1]["quantize"]["algorithm"] != "qat" and not draft.model:
        _entrypoint(draft, block)


def _entrypoint(draft: Draft, block: Field) -> None:
    draft.model = {"entrypoint": "model:create"}
    block.say("todo", "the model: a function create() in model.py that returns it with what trains and scores it")


def _mixed_precision(draft: Draft, block: Field) -> dict[str, Any]:
    """The block of a mixedPrecision stage."""
    dtype = "bf16"
    if (said := block.take("precisions", "precision")) is not None:
        known = [text for each in said.entries() if (text := each.text()) is not None]
        halves = [text for text in known if text in ("bf16", "fp16")]
        if halves:
            dtype = halves[0]
        else:
            said.say("missing", f"precisions other than bf16 and fp16; {dtype} was taken")
    block.say("translated", f"convolutions, linear layers and embeddings compute in {dtype}; norms and the rest do not")
    block.leave(None, _CALL)
    if not draft.model:
        _entrypoint(draft, block)
    return {"dtype": dtype}


def _tuning(draft: Draft, block: Field) -> None:
    tuned = parts.tuned(draft)
    if (criterion := block.take("accuracy_criterion")) is not None and criterion.mapping():
        parts.accuracy(draft, tuned, criterion, criterion.take("relative"), criterion.take("absolute"))
        criterion.leave()
    if (policy := block.take("exit_policy")) is not None and policy.mapping():
        parts.timeout(draft, tuned, policy.take("timeout"))
        parts.trials(tuned, policy.take("max_trials"))
        policy.leave()
    if tuned is not None:
        parts.strategy(tuned, block.take("strategy"))
    if (seed := block.take("random_seed")) is not None and (value := seed.whole()) is not None:
        draft.spec["seed"] = value
    block.leave(
        {
            "strategy": "one recipe is measured; a CompressionSweep searches",
            "objective": "a CompressionSweep has objectives",
            "workspace": "results lie in the store: store: {path: ...}",
        }
    )


def _evaluation(draft: Draft, block: Field) -> None:
    if (performance := block.take("performance")) is not None and performance.mapping():
        parts.benchmark(draft, performance)
    block.leave({"accuracy": _YOURS})


# 2.x ------------------------------------------------------------------------------------------------------------------


def _of_script(top: Field, script: Script, model: dict[str, Any]) -> list[Draft]:
    calls = [(Field(call, top.book, place), call[CALL].rpartition(".")[2]) for place, call in script.calls]
    draft = Draft("neural-compressor", dict(model))
    order = _order(calls)
    made = [(call, name) for call, name in calls if name in _CONFIGS]
    if order:
        made.sort(key=lambda pair: order.index(id(pair[0].data)) if id(pair[0].data) in order else -1)
    blocks: list[dict[str, Any]] = []
    pruned = [call for call, name in made if name == "WeightPruningConfig"]
    for call, name in made:
        if name == "WeightPruningConfig":
            if call is pruned[-1]:
                blocks.append({"prune": _weights(call)})
            else:
                call.say("changed", "a later WeightPruningConfig takes its place")
        elif name == "DistillationConfig":
            blocks.append({"distill": _distillation_config(call)})
        elif name in ("PostTrainingQuantConfig", "QuantizationAwareTrainingConfig"):
            blocks.append(quantization.of_config(draft, call, name))
            if name.startswith("Post") and not draft.model:
                _entrypoint(draft, call)
        elif name == "MixedPrecisionConfig":
            blocks.append({"mixedPrecision": _mixed_precision(draft, call)})
        else:
            parts.benchmark(draft, call)
    if not made:
        listed = next(((name, value) for name, value in script.names.items() if _pruners(value)), None)
        if listed is not None:
            field = Field(listed[1], top.book, (listed[0],))
            blocks.append({"prune": prune_block(Field({}, top.book, (listed[0],)), field.entries())})
    draft.stages = blocks if len(blocks) < 2 else [{"together": {"of": blocks}}]
    if len(blocks) > 1:
        top.book.say("translated", (), "what goes along with one training is a together, in the order of confs")
    return [_finished(draft, top)]


def _order(calls: list[tuple[Field, str]]) -> list[int]:
    """Identities of the configs in the order that prepare_compression is given them."""
    for call, name in calls:
        if name == "prepare_compression":
            arguments = call.data[ARGUMENTS]
            given = call.data.get("confs", arguments[1] if len(arguments) > 1 else None)
            return [id(item) for item in (given if isinstance(given, list) else [given])]
    return []


def _weights(call: Field) -> dict[str, Any]:
    arguments = Field(call.data[ARGUMENTS], call.book, call.location).entries() if call.data[ARGUMENTS] else []
    own = call.take("pruning_configs") or (arguments[0] if arguments else None)
    return prune_block(call, own.entries() if own is not None and isinstance(own.data, list) and own.data else [])


def _distillation_config(call: Field) -> dict[str, Any]:
    arguments = call.data[ARGUMENTS]
    teacher = call.take("teacher_model")
    criterion = call.take("criterion")
    if criterion is None and len(arguments) > 1:
        criterion = Field(arguments[1], call.book, (*call.location, 1))
    call.leave({"optimizer": _YOURS, "features": "layers are looked at while the model runs"}, _CALL)
    if is_computed(teacher) or arguments:
        call.say("todo", "the teacher: mp.prepare_compression(..., teacher=MODEL); left out, the dense model teaches")
    if criterion is None or not isinstance(criterion.data, dict):
        return {"lossTypes": ["task", "CE"]}
    name = str(criterion.data.get(CALL, ""))
    if name.startswith("Self"):
        return parts.layers(criterion, True)
    if name.startswith("Intermediate"):
        return parts.layers(criterion, False)
    return parts.knowledge(criterion)


__all__ = ["convert", "detect"]
