"""Quantization of Neural Compressor 1.x and 2.x: a quantize stage."""

from __future__ import annotations

from typing import Any

from modelpress.convert.drafts import Draft
from modelpress.convert.notes import Field
from modelpress.convert.scripts import ARGUMENTS, CALL, OF

from . import parts

_CALL = (CALL, ARGUMENTS, OF)
_APPROACHES = {
    "post_training_static_quant": "ptq_static",
    "post_training_dynamic_quant": "ptq_dynamic",
    "post_training_auto_quant": "ptq_static",
    "quant_aware_training": "qat",
    "static": "ptq_static",
    "dynamic": "ptq_dynamic",
    "auto": "ptq_static",
    "weight_only": "weight_only",
}
_OBSERVERS = {"minmax": "minMax", "kl": "kl"}
_SCHEMES = {"sym": "symmetric", "asym": "affine"}
_GRANULARITIES = {"per_channel": "channel", "per_tensor": "tensor"}
_RECIPES = "recipes of graphs have no counterpart"
_LEFT = {
    "recipes": _RECIPES,
    "backend": "what runs the result is the stage's backend: torch if nothing is said",
    "domain": "settings for a domain have no counterpart",
    "quant_format": "the form of the result is target.format",
    "quant_level": "a training is no trial; a CompressionSweep searches",
    "reduce_range": "write quantBits: 7 for weights where kernels need it",
    "example_inputs": "the model's example inputs say that",
    "inputs": "the model's example inputs say that",
    "outputs": "the model's example inputs say that",
    "device": "runner: {gpus: 1} asks a cluster for a GPU",
    "diagnosis": "the model card shows what each stage did",
    "excluded_precisions": "a layer has the bits that its entry says",
    "model_name": "it is the recipe's name",
    "dataloader": "data.calibration, or what the entrypoint gives as calibration data",
    "optimizer": "the model's evaluator, which its entrypoint or script gives, does that",
    "train": "the model's evaluator, which its entrypoint or script gives, does that",
}


def of_yaml(block: Field) -> dict[str, Any]:
    """The stage, of `quantization` in 1.x."""
    stage = _stage(block, block.take("approach"), "ptq_static")
    calibration = block.take("calibration")
    if calibration is not None and calibration.mapping():
        _sampled(calibration.take("sampling_size"))
        calibration.leave(_LEFT)
    if (wise := block.take("model_wise")) is not None and wise.mapping():
        _settings(stage["quantize"], wise, stage["quantize"])
        wise.leave(_LEFT)
    _entries(stage["quantize"], block.take("op_wise"), "opNames")
    block.leave(_LEFT)
    return stage


def of_config(draft: Draft, call: Field, name: str) -> dict[str, Any]:
    """The stage, of PostTrainingQuantConfig(...) and QuantizationAwareTrainingConfig(...) in 2.x."""
    along = name.startswith("Quantization")
    stage = _stage(call, None if along else call.take("approach"), "qat" if along else "ptq_static")
    _sampled(call.take("calibration_sampling_size"))
    _entries(stage["quantize"], call.take("op_type_dict"), "opTypes")
    _entries(stage["quantize"], call.take("op_name_dict"), "opNames")
    block = None if along else stage["quantize"]
    if block is not None:
        parts.level(block, call.take("quant_level"))
    if (tuning := call.take("tuning_criterion")) is not None and tuning.mapping():
        parts.timeout(draft, block, tuning.take("timeout"))
        parts.trials(block, tuning.take("max_trials"))
        if block is not None:
            parts.strategy(block, tuning.take("strategy"))
        tuning.leave(
            {
                "strategy": "one recipe is measured; a sweep searches",
                "strategy_kwargs": "strategies take no settings of their own",
                "objective": "of what holds the smallest is taken; a CompressionSweep has objectives",
            },
            _CALL,
        )
    criterion = call.take("accuracy_criterion")
    if criterion is not None and criterion.mapping():
        loss, kind = criterion.take("tolerable_loss"), criterion.take("criterion")
        absolute = kind is not None and kind.data == "absolute"
        loss = loss or Field(0.01, call.book, criterion.location)
        parts.accuracy(draft, block, criterion, None if absolute else loss, loss if absolute else None)
        criterion.leave({}, _CALL)
    elif criterion is None and block is not None:
        if "tune" in block:
            block["tune"]["criteria"] = [{"relative": 0.01}]
        else:
            draft.spec.setdefault("constraints", []).append({"metric": "default", "maxRelativeLoss": 0.01})
        call.say("translated", "what it leaves to Neural Compressor is written out: a relative loss of 1 % at most")
    call.leave(_LEFT, _CALL)
    return stage


def _stage(block: Field, approach: Field | None, default: str) -> dict[str, Any]:
    algorithm = default
    if approach is not None:
        found = _APPROACHES.get(str(approach.data))
        if found is None:
            approach.wrong(f"there is no counterpart to {approach.data}", f"write {' or '.join(_APPROACHES)}")
        elif found != approach.data:
            approach.say("translated", f"{approach.data} is algorithm: {found}")
        algorithm = found or default
    block.say(
        "changed", "operations are quantized layer by layer, and the result is a program of torch with backend: torch"
    )
    return {"quantize": {"algorithm": algorithm, "configList": [{"opTypes": ["default"]}]}}


def _sampled(size: Field | None) -> None:
    if size is not None:
        size.say(
            "missing", "samples of the calibration data: data.calibration.samples, or calibration.steps in batches"
        )


def _entries(block: dict[str, Any], given: Field | None, selector: str) -> None:
    """Settings of types or names of operations; those that stay in floats are excluded."""
    if given is None or not given.mapping():
        return
    for name, settings in given.members():
        if not settings.mapping():
            continue
        names = ["_ConvNd"] if (selector, name) == ("opTypes", "Conv") else [name]
        if any(_floats(settings.take(part)) for part in ("weight", "activation")):
            block["configList"].append({selector: names, "exclude": True})
            continue
        entry: dict[str, Any] = {selector: names}
        _settings(entry, settings, block)
        if len(entry) > 1:
            block["configList"].append(entry)


def _floats(part: Field | None) -> bool:
    dtype = part.take("dtype") if part is not None else None
    return dtype is not None and {"fp32", "bf16", "fp16"} >= set(dtype.names()) and bool(dtype.names())


def _settings(entry: dict[str, Any], settings: Field, block: dict[str, Any]) -> None:
    """Scheme, granularity and dtype of weights; scheme and range of activations, which are inputs here."""
    schemes: dict[str, Any] = {}
    dtypes: dict[str, Any] = {}
    for theirs, ours in (("weight", "weight"), ("activation", "input")):
        part = settings.take(theirs)
        if part is None or not part.mapping():
            continue
        scheme, granularity, dtype, observer = (part.take(k) for k in ("scheme", "granularity", "dtype", "algorithm"))
        if scheme is not None and (word := _SCHEMES.get(scheme.names()[0])) is not None:
            schemes[ours] = word
        if dtype is not None and (name := dtype.names()[0]) in ("int8", "uint8", "int4", "uint4"):
            dtypes[ours] = name
        if granularity is not None and ours == "weight":
            entry["granularity"] = _GRANULARITIES.get(granularity.names()[0], "channel")
        if observer is not None and ours == "input" and block["algorithm"] == "ptq_static":
            block["calibration"] = {"observer": _OBSERVERS.get(observer.names()[0], "minMax")}
        part.leave({"bits": "write quantBits"})
    if schemes:
        entry["scheme"] = schemes
    if dtypes:
        entry["quantDtype"] = dtypes
