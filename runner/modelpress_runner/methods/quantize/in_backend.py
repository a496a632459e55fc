"""Quantization by a runtime's own tools: the model stays floats, and its file in that runtime gets few bits."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from torch import nn

from modelpress.api.stages.quantize import GROUP_SIZE, numbers
from modelpress.api.stages.quantize_backends import row_of
from modelpress.api.v1alpha1 import Calibration, Quantize
from modelpress_runner.edits.replay import replay
from modelpress_runner.errors import CompressionError, InvalidModelError, InvalidSpecError
from modelpress_runner.export.backends.plan import Call, Plan, Written
from modelpress_runner.export.made import Made
from modelpress_runner.export.pt2.equivalence import NotPortableError
from modelpress_runner.methods.context import StageContext
from modelpress_runner.methods.quantize.folding import foldable
from modelpress_runner.methods.quantize.selection import Selection, select
from modelpress_runner.passes.collectors import Collector
from modelpress_runner.passes.run import Kind, Sources, run_pass
from modelpress_runner.runtime import distributed as ranks
from modelpress_runner.runtime.example_inputs import map_tensors

BATCHES = 64  # that ranges are taken of, where calibration.steps says nothing: all of them are in memory


def selected_for_backend(context: StageContext, block: Quantize, path: str) -> Selection:
    """What a runtime's tools are to quantize.

    Raises:
        InvalidModelError: there is no example input.
        InvalidSpecError: nothing that was selected can be quantized.
    """
    if context.dummy_input is None:
        raise InvalidModelError(
            f"{block.backend} quantizes the exported model, and there is no example input to export it with; give the "
            "Subject example_inputs, or the evaluator a dummy_input",
            f"{path}.backend",
        )
    return select(context.model, block, path, context.dummy_input)


def quantize_in_backend(context: StageContext, selection: Selection, block: Quantize, path: str) -> None:
    """Has a runtime's tools quantize what the model is in it; the file is kept with the model.

    Raises:
        CompressionError: the model has no such form, or the tools fail.
    """
    context.note(*selection.notes)
    if block.fold_batch_norm:
        folds = foldable(context.model, selection.layers, context.dummy_input, context.masks)
        replay(context.model, folds, context.masks)
        context.edits += folds
    plan = planned(context, block, selection)
    made = Made(block.backend)
    free = None if context.measures is None else context.measures.free
    tools = importlib.import_module(f"modelpress_runner.export.backends.{block.backend}")
    try:
        written: Written = tools.quantize(context.model, context.dummy_input, made.folder, plan, free)
    except NotPortableError as error:
        message = f"the model has no form in {block.backend} ({error.reason}); make it exportable, or use backend torch"
        raise CompressionError(message, f"{path}.backend") from error
    except CompressionError as error:
        raise CompressionError(str(error).removeprefix(f"{error.path}: "), error.path or f"{path}.backend") from error
    made.attach(context.model)
    _report(context, selection, plan, written)


def planned(context: StageContext, block: Quantize, selection: Selection) -> Plan:
    """What the tools are asked for."""
    row = row_of(block)
    weight = numbers([block], "weight", row)
    inputs = numbers([block], "input", row)
    calibration = block.calibration or Calibration()
    calls: list[Call] = []
    needs = "activations" in row.needs
    if needs or _has_data(context):
        calls = _calls(context, (calibration.steps or BATCHES) if needs else 4, needs)
    group = (block.group_size or GROUP_SIZE) if block.granularity == "group" else None
    return Plan(
        block.backend,
        block.algorithm,
        tuple(selection.layers),
        weight.bits,
        block.granularity != "tensor",
        group,
        weight.scheme == "symmetric",
        inputs.scheme == "symmetric",
        calibration.observer,
        calibration.percentile,
        calls,
    )


def check_backend(block: Quantize, path: str) -> None:
    """Raises InvalidSpecError unless the backend's packages are installed."""
    if block.backend == "compressed-tensors":
        if importlib.util.find_spec("compressed_tensors") is None:
            message = "the package 'compressed_tensors' is not installed; install it with: pip install "
            raise InvalidSpecError(f"{message}'modelpress[compressed-tensors]'", f"{path}.backend")
        return
    from modelpress_runner.export.formats import format_of

    format_of(block.backend).check(None, f"{path}.backend")
    if block.backend == "openvino":
        from modelpress_runner.export.backends.openvino import nncf_package
        from modelpress_runner.serving.errors import MissingRuntimeError

        try:
            nncf_package()
        except MissingRuntimeError as error:
            raise InvalidSpecError(str(error), f"{path}.backend") from error


def _has_data(context: StageContext) -> bool:
    kind = Sources(context.evaluator, context.calibration_data).kind({"activations"})
    return kind in (Kind.CALIBRATION, Kind.EVALUATION)


def _calls(context: StageContext, batches: int, needed: bool) -> list[Call]:
    """Arguments of the model in a pass over data, of all processes together, on the CPU."""
    found: list[Call] = []

    def look(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if len(found) < batches:
            given = map_tensors((args, kwargs), lambda tensor: tensor.detach().to("cpu", copy=True))
            found.append(given)

    sources = Sources(context.evaluator, context.calibration_data)
    kind = sources.kind({"activations"})
    assert kind is not None
    if kind is Kind.TRAINING:
        if not needed:
            return []
        raise CompressionError(
            "there are neither calibration data nor an evaluation that ranges could be taken of; give data.calibration"
        )
    none: dict[str, Collector] = {}
    handle = context.model.register_forward_pre_hook(look, with_kwargs=True)
    try:
        run_pass(context.model, sources, kind, lambda data: none, batches=batches, seed=context.seed, stop=context.stop)
    finally:
        handle.remove()
    calls = [call for each in ranks.all_gather_object(found) for call in each][:batches]
    if needed and not calls:
        raise CompressionError(
            "the evaluation calls parts of the model, never the whole of it, so there is nothing that ranges could be "
            "taken of; give data.calibration"
        )
    return calls


def _report(context: StageContext, selection: Selection, plan: Plan, written: Written) -> None:
    """The record's layers: types, bytes, and the SQNR of outputs where all before them is quantized, too."""
    weight = f"{'' if plan.symmetric_weights else 'u'}int{plan.bits}"
    layers: list[dict[str, Any]] = []
    for name in selection.layers:
        known = written.layers.get(name)
        if known is None:
            continue
        entry: dict[str, Any] = {"name": name, "weight": weight}
        takes_numbers = not isinstance(context.model.get_submodule(name), nn.Embedding)
        if plan.algorithm != "weight_only" and takes_numbers:
            entry["input"] = "int8" if plan.symmetric_inputs else "uint8"
        layers.append(entry | known)
    context.record["layers"] = layers
    context.note(*written.notes)
    context.note(
        f"{plan.backend} quantized its own file; model.safetensors and model.pt2 hold the floats that it was made of"
    )
