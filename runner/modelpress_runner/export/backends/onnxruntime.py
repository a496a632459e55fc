"""model.onnx, quantized by ONNX Runtime's own tools."""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from modelpress.store import layout as names
from modelpress_runner.errors import ArtifactError, CompressionError, first_line
from modelpress_runner.export.backends.plan import Feed, Plan, Written, decibels, feeds
from modelpress_runner.export.onnx.places import Place, Places
from modelpress_runner.export.onnx.program import export_onnx
from modelpress_runner.serving import cpu
from modelpress_runner.serving.errors import CallError
from modelpress_runner.serving.ort import QUANTIZED, WIDE, OrtSession

_LAYERS = ("Conv", "MatMul", "Gemm", "Gather")
# They hand on what they get, or a part of it: where that is integers, they stay integers.
_PASSING = ("Relu", "Clip", "MaxPool", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Split")
_REDUCED = "modelpress.reduceRange"  # metadata: weights have seven bits, for the CPU that it was made on


def quantize(
    model: nn.Module, dummy_input: Any, folder: Path, plan: Plan, free: Mapping[str, Mapping[int, str]] | None
) -> Written:
    """Exports a model of floats, proves that, and has ONNX Runtime quantize it.

    Weights get seven bits in place of eight where products of bytes may overflow on this machine's CPU; the file says
    so in its metadata, and which CPU it was.

    Args:
        model: stays as it is.
        dummy_input: example inputs.
        folder: for model.onnx.
        plan: what is asked for.
        free: as of export_onnx.

    Raises:
        NotPortableError: the model has no form in ONNX.
        CompressionError: ONNX Runtime fails, or its result does.
    """
    places: Places = {}
    reduced = cpu.saturates()
    with tempfile.TemporaryDirectory(prefix="modelpress-floats-") as temporary:
        exact, path = Path(temporary) / names.ONNX, folder / names.ONNX
        export_onnx(model, dummy_input, exact, free, places)
        session = OrtSession(exact)
        given = feeds(session.signature, plan.calls)
        wanted = {name: places[name] for name in plan.layers if name in places}
        if not wanted:
            raise CompressionError("no selected layer is a node of the exported model that ONNX Runtime quantizes")
        chosen = [place for each in wanted.values() for place in each if place.operator in _LAYERS]
        with _quiet():
            try:
                _quantized(exact, path, plan, chosen, given, reduced)
            except Exception as error:  # its errors share no class with each other
                raise CompressionError(f"ONNX Runtime cannot quantize the model: {first_line(error)}") from error
        _describe(exact, path, reduced)
        try:
            opened = OrtSession(path)
            for feed in given[:1]:
                opened.run(feed)
        except (ArtifactError, CallError) as error:
            raise CompressionError(f"what ONNX Runtime has made does not run in it: {first_line(error)}") from error
        layers = _layers(exact, path, wanted, given[:4])
    left = [name for name in wanted if name not in layers]
    notes = [f"ONNX Runtime left as it was: {', '.join(left[:5])}"] if left else []
    if reduced:
        notes.append("Weights have seven bits: products of eight overflow on this CPU, x86_64 without VNNI")
    return Written([path], layers, tuple(notes))


def _quantized(
    exact: Path, path: Path, plan: Plan, chosen: Sequence[Place], given: Sequence[Feed], reduced: bool
) -> None:
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_dynamic, quantize_static

    names_of = [place.node for place in chosen]
    if plan.algorithm == "ptq_dynamic":
        quantize_dynamic(
            exact,
            path,
            op_types_to_quantize=sorted({place.operator for place in chosen}),
            nodes_to_quantize=names_of,
            per_channel=plan.per_channel,
            reduce_range=reduced,
            weight_type=QuantType.QInt8,
        )
        return
    methods = {"percentile": CalibrationMethod.Percentile, "kl": CalibrationMethod.Entropy}
    options: dict[str, Any] = {
        "ActivationSymmetric": plan.symmetric_inputs,
        "WeightSymmetric": True,
        "MatMulConstBOnly": True,
    }
    if plan.observer == "percentile":
        options |= {"CalibPercentile": plan.percentile, "CalibTensorRangeSymmetric": False}
    if plan.observer == "ema":
        options |= {"CalibMovingAverage": True, "CalibMovingAverageConstant": 0.1}
    quantize_static(
        exact,
        path,
        _reader(given),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=[*sorted({place.operator for place in chosen}), *_PASSING],
        nodes_to_quantize=[*names_of, *_passing(exact)],
        per_channel=plan.per_channel,
        reduce_range=reduced,
        activation_type=QuantType.QInt8 if plan.symmetric_inputs else QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=methods.get(plan.observer, CalibrationMethod.MinMax),
        extra_options=options,
    )


def _passing(path: Path) -> list[str]:
    import onnx

    return [node.name for node in onnx.load(str(path)).graph.node if node.op_type in _PASSING]


def _reader(given: Sequence[Feed]) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        """The feeds, one after another."""

        def __init__(self) -> None:
            self._left = iter(given)

        def get_next(self) -> Feed | None:
            return next(self._left, None)

        def __len__(self) -> int:
            return len(given)

    return Reader()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Its tools advise, by the root logger, what was done already."""
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(before)


def _describe(exact: Path, path: Path, reduced: bool) -> None:
    """The metadata of the exported model, and what became of it."""
    import onnx

    before, made = onnx.load(str(exact)), onnx.load(str(path))
    metadata = {each.key: each.value for each in before.metadata_props}
    kinds = {onnx.TensorProto.INT8: "int8", onnx.TensorProto.UINT8: "uint8"}
    tensors = [kinds[each.data_type] for each in made.graph.initializer if each.data_type in kinds and each.dims]
    metadata[QUANTIZED] = f"{' and '.join(sorted(set(tensors))) or 'activations'}, by ONNX Runtime"
    metadata[_REDUCED] = "yes" if reduced else "no"
    if not reduced:
        metadata[WIDE] = "yes"
    del made.metadata_props[:]
    onnx.helper.set_model_props(made, dict(sorted(metadata.items())))
    made.producer_name, made.producer_version, made.doc_string = "modelpress", "", ""
    onnx.save(made, str(path))


def _layers(exact: Path, path: Path, wanted: Places, given: Sequence[Feed]) -> dict[str, dict[str, Any]]:
    """Of layers whose weights are bytes now: the bytes, and the SQNR of outputs, errors before them included."""
    import onnx

    before, made = onnx.load(str(exact)), onnx.load(str(path))
    floats = {each.name: each for each in before.graph.initializer}
    left = {each.name for each in made.graph.initializer if each.data_type == onnx.TensorProto.FLOAT}
    outputs = {each for node in made.graph.node for each in node.output}
    shown = {
        name: next((place.result for place in each if place.result in outputs), None) for name, each in wanted.items()
    }
    pairs = _compared(before, made, [each for each in shown.values() if each is not None], given)
    found: dict[str, dict[str, Any]] = {}
    for name, each in wanted.items():
        weights = {place.weight for place in each}
        if weights & left:
            continue
        sizes = [int(np.prod(floats[weight].dims)) for weight in weights]
        channels = [int(floats[weight].dims[0]) for weight in weights]
        found[name] = {"bytesBefore": 4 * sum(sizes), "bytesAfter": sum(sizes) + 5 * sum(channels)}
        output = shown[name]
        ratio = decibels(pairs[output]) if output in pairs else None
        if ratio is not None:
            found[name]["sqnrDb"] = ratio
    return found


def _compared(
    before: Any, made: Any, outputs: Sequence[str], given: Sequence[Feed]
) -> dict[str, list[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]]:
    """What both models give at these places; nothing where a model of this size cannot be shown in parts."""
    if not given or not outputs:
        return {}
    import onnx
    import onnxruntime as ort

    sessions = []
    for document in (before, made):
        shown = {each.name for each in document.graph.output}
        extra = [onnx.ValueInfoProto(name=name) for name in dict.fromkeys(outputs) if name not in shown]
        document.graph.output.extend(extra)
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        sessions.append(ort.InferenceSession(document.SerializeToString(), options, ["CPUExecutionProvider"]))
    wanted = list(dict.fromkeys(outputs))
    pairs: dict[str, list[Any]] = {name: [] for name in wanted}
    for feed in given:
        both = [session.run(wanted, feed) for session in sessions]
        for name, exact, other in zip(wanted, *both, strict=True):
            pairs[name].append((exact, other))
    return pairs
