"""model.xml and model.bin, quantized by NNCF."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import numpy as np
from torch import nn

from modelpress.store import layout as names
from modelpress_runner.errors import CompressionError, first_line
from modelpress_runner.export.backends.plan import Feed, Plan, Written, decibels, feeds
from modelpress_runner.export.onnx.places import Places
from modelpress_runner.export.onnx.program import export_onnx
from modelpress_runner.serving import cpu
from modelpress_runner.serving.ort import QUANTIZED, WIDE, OrtSession
from modelpress_runner.serving.ov import EXTRA, OvSession, openvino, rt_path
from modelpress_runner.serving.session import package

_REDUCED = "modelpress.reduceRange"  # as of ONNX Runtime's
_FLOATS = {"INFERENCE_PRECISION_HINT": "f32", "LP_TRANSFORMS_MODE": "NO"}  # sums are floats
_AWAY = 0.05  # what integers may make of the same numbers: as files of torch's numbers are proven


def quantize(
    model: nn.Module, dummy_input: Any, folder: Path, plan: Plan, free: Mapping[str, Mapping[int, str]] | None
) -> Written:
    """Exports a model of floats, proves that, and has NNCF quantize it.

    Half the range of weights is used where products of bytes may overflow on this machine's CPU; the file says so in
    its metadata.

    Args:
        model: stays as it is.
        dummy_input: example inputs.
        folder: for model.xml and model.bin.
        plan: what is asked for.
        free: as of export_onnx.

    Raises:
        MissingRuntimeError: NNCF or OpenVINO is not installed.
        NotPortableError: the model has no form in ONNX.
        CompressionError: NNCF fails, or its result does.
    """
    nncf, ov = nncf_package(), openvino()
    places: Places = {}
    reduced = cpu.saturates() and plan.algorithm == "ptq_static"
    path = folder / names.OPENVINO
    with tempfile.TemporaryDirectory(prefix="modelpress-floats-") as temporary:
        exact = Path(temporary) / names.ONNX
        export_onnx(model, dummy_input, exact, free, places)
        session = OrtSession(exact)
        given = feeds(session.signature, plan.calls)
        metadata = dict(session.metadata)
        wanted = {name: places[name] for name in plan.layers if name in places}
        if not wanted:
            raise CompressionError("no selected layer is an operation of the exported model that NNCF quantizes")
        core = ov.Core()
        attends = _attends(core.read_model(str(exact))) and plan.algorithm == "ptq_static"
        kind = f"int{plan.bits}" if plan.symmetric_weights else f"uint{plan.bits}"
        metadata |= {QUANTIZED: f"{kind}, by NNCF", _REDUCED: "yes" if reduced else "no"}
        if plan.algorithm == "ptq_static" and not reduced:
            metadata[WIDE] = "yes"
        for smooth in (True, False) if attends else (False,):
            try:
                with _quiet():
                    made = _quantized(nncf, core.read_model(str(exact)), plan, places, given, reduced, attends, smooth)
            except Exception as error:  # its errors share no class with each other
                raise CompressionError(f"NNCF cannot quantize the model: {first_line(error)}") from error
            if plan.bits == 8:
                _round_tables(made, {place.weight for each in wanted.values() for place in each})
            for key, value in sorted(metadata.items()):
                made.set_rt_info(value, rt_path(key))
            ov.save_model(made, str(path), compress_to_fp16=False)
            away = _away(core, path, given[:4])
            if away <= _AWAY:
                break
        else:
            raise CompressionError(
                f"OpenVINO computes {away:.0%} away from what NNCF has put into the file; use backend torch, or "
                "exclude layers"
            )
        layers = _layers(core, exact, path, wanted, plan, given[:4])
    notes = ["NNCF smoothed activations before products (SmoothQuant)"] if smooth else []
    if attends and not smooth:
        notes.append("Without SmoothQuant: OpenVINO's integers computed something else with it")
    if reduced:
        notes.append("Weights use half their range: products of bytes overflow on this CPU, x86_64 without VNNI")
    return Written([path, path.with_suffix(".bin")], layers, tuple(notes))


def nncf_package() -> ModuleType:
    """NNCF, without the package by which it reports its use.

    Raises:
        MissingRuntimeError: it is not installed.
    """
    sys.modules.setdefault("openvino_telemetry", cast(ModuleType, None))
    with _quiet():
        return package("nncf", EXTRA)


def _quantized(
    nncf: Any,
    read: Any,
    plan: Plan,
    places: Places,
    given: Sequence[Feed],
    reduced: bool,
    attends: bool,
    smooth: bool,
) -> Any:
    """What NNCF makes of a model; `smooth`: by SmoothQuant, too."""
    left = {place.output for name, each in places.items() if name not in plan.layers for place in each}
    spared = _operations(read, left)
    if reduced:  # only weights use half their range, and two activations would overflow
        spared += [each.get_friendly_name() for each in read.get_ops() if _of_activations(each)]
    ignored = nncf.IgnoredScope(names=spared, validate=False)
    if plan.algorithm == "weight_only":
        symmetric = "SYM" if plan.symmetric_weights else "ASYM"
        more: dict[str, Any] = {}
        if plan.bits == 4:
            more = {"group_size": plan.group or -1, "ratio": 1.0, "all_layers": True}
        mode = getattr(nncf.CompressWeightsMode, f"INT{plan.bits}_{symmetric}")
        return nncf.compress_weights(read, mode=mode, ignored_scope=ignored, **more)
    alphas = {} if smooth else {"smooth_quant_alphas": nncf.AdvancedSmoothQuantParameters(matmul=-1, convolution=-1)}
    preset = nncf.QuantizationPreset.PERFORMANCE if plan.symmetric_inputs else nncf.QuantizationPreset.MIXED
    return nncf.quantize(
        read,
        nncf.Dataset(list(given)),
        preset=preset,
        subset_size=len(given),
        fast_bias_correction=True,
        model_type=nncf.ModelType.TRANSFORMER if attends else None,
        ignored_scope=ignored,
        advanced_parameters=nncf.AdvancedQuantizationParameters(
            overflow_fix=nncf.OverflowFix.ENABLE if reduced else nncf.OverflowFix.DISABLE, **alphas
        ),
    )


def _round_tables(made: Any, weights: set[str]) -> None:
    """Gives eight bits to those weights of selected layers that NNCF has left as floats, a scale for each row: tables
    that are looked up at places known beforehand (of positions, for one), which it takes for constants."""
    ops = openvino().opset13

    for held in made.get_ops():
        if held.get_type_name() != "Constant" or held.get_friendly_name() not in weights:
            continue
        if held.data.dtype != np.float32 or held.data.ndim != 2:
            continue
        users = held.output(0).get_target_inputs()
        if any(user.get_node().get_type_name() != "Gather" for user in users):
            continue
        values = np.array(held.data)
        scale = np.maximum(np.abs(values).max(1, keepdims=True) / 127, np.finfo(np.float32).tiny).astype(np.float32)
        integers = ops.constant(np.rint(values / scale).astype(np.int8))
        table = ops.multiply(ops.convert(integers, "f32"), ops.constant(scale))
        for user in users:
            user.replace_source_output(table.output(0))


def _attends(read: Any) -> bool:
    """Whether there is attention in a model."""
    return bool({"Softmax", "ScaledDotProductAttention"} & {each.get_type_name() for each in read.get_ops()})


def _away(core: Any, path: Path, given: Sequence[Feed]) -> float:
    """How far the outputs of a file as it is opened are from those with sums in floats, by their root mean squares."""
    opened = OvSession(path)
    exact = core.compile_model(str(path), "CPU", _FLOATS).create_infer_request()
    worst = 0.0
    for feed in given:
        exact.infer(feed)
        for number, found in enumerate(opened.run(feed)):
            wanted = np.array(exact.get_output_tensor(number).data, np.float64)
            scale = float(np.linalg.norm(wanted))
            away = float(np.linalg.norm(found.astype(np.float64) - wanted))
            worst = max(worst, away / scale if scale else away)
    return worst


def _operations(read: Any, outputs: set[str]) -> list[str]:
    """Names of the operations that give what ONNX calls so."""
    return sorted(
        operation.get_friendly_name()
        for operation in read.get_ops()
        if any(outputs & set(output.get_names()) for output in operation.outputs())
    )


def _of_activations(operation: Any) -> bool:
    return operation.get_type_name() == "MatMul" and not any(
        value.get_node().get_type_name() == "Constant" for value in operation.input_values()
    )


def _layers(
    core: Any, exact: Path, path: Path, wanted: Places, plan: Plan, given: Sequence[Feed]
) -> dict[str, dict[str, Any]]:
    """Of layers the bytes of the weight, and the SQNR of outputs, errors before them included."""
    import onnx

    outputs = {name: each[0].result for name, each in wanted.items()}
    pairs = _compared(core, core.read_model(str(exact)), core.read_model(str(path)), list(outputs.values()), given)
    floats = {each.name: int(np.prod(each.dims)) for each in onnx.load(str(exact)).graph.initializer}
    found: dict[str, dict[str, Any]] = {}
    for name, each in wanted.items():
        size = sum(floats[weight] for weight in {place.weight for place in each})
        found[name] = {"bytesBefore": 4 * size, "bytesAfter": -(-size * plan.bits // 8)}
        ratio = decibels(pairs[outputs[name]]) if outputs[name] in pairs else None
        if ratio is not None:
            found[name]["sqnrDb"] = ratio
    return found


def _compared(
    core: Any, before: Any, made: Any, outputs: Sequence[str], given: Sequence[Feed]
) -> dict[str, list[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]]:
    """What both models give at these places, as far as both have them."""
    if not given:
        return {}
    shown = [name for name in dict.fromkeys(outputs) if all(_has(model, name) for model in (before, made))]
    requests = []
    for model in (before, made):
        own = {name for each in model.outputs for name in each.get_names()}
        model.add_outputs([name for name in shown if name not in own])
        requests.append(core.compile_model(model, "CPU", _FLOATS).create_infer_request())
    pairs: dict[str, list[Any]] = {name: [] for name in shown}
    for feed in given:
        for request in requests:
            request.infer(feed)
        for name in shown:
            pairs[name].append(tuple(np.array(request.get_tensor(name).data) for request in requests))
    return pairs


def _has(model: Any, name: str) -> bool:
    return any(name in output.get_names() for operation in model.get_ops() for output in operation.outputs())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """It tells at length, by a logger of its own and by bars of progress, what it does."""
    logger = logging.getLogger("nncf")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(before)
