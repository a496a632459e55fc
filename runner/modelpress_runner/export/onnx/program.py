"""From an eager module to model.onnx, proven against it.

torch.export traces the module, as for model.pt2, and torch.onnx translates the graph. Fake quantization becomes
integers, see `quantized`. The file says in its metadata how it is called (`serving.signature`). Nothing of the machine
that wrote it is left in it: no path, no line of code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind, OutputKind, TensorArgument
from torch.utils import _pytree as pytree

from modelpress.store import layout as names
from modelpress_runner.edits.quantize import frozen_counts, thawed
from modelpress_runner.errors import ArtifactError, CompressionError, first_line
from modelpress_runner.export.onnx import quantized
from modelpress_runner.export.onnx.places import Places, places_of
from modelpress_runner.export.pt2.equivalence import NotPortableError, Tolerance, prove
from modelpress_runner.export.pt2.program import named_arguments, on_cpu, trace
from modelpress_runner.export.pt2.quiet import quiet
from modelpress_runner.export.runtime_module import RuntimeModule
from modelpress_runner.runtime.example_inputs import as_call, fitting, on_device, plain_containers, tensors
from modelpress_runner.runtime.preserve import untouched
from modelpress_runner.serving import cpu
from modelpress_runner.serving.ort import EXTRA, MEASURED_ON, QUANTIZED, WIDE
from modelpress_runner.serving.session import package
from modelpress_runner.serving.signature import KEY, Signature, TensorSpec, tree_of

OPSET = 21  # the first with integers of four bits, and with scales for blocks of a weight
LARGEST = 2**31 - 2**20  # bytes of one file of protobuf; what is larger keeps its tensors beside it

# Runtimes add in another order and round halves otherwise. A number on the edge of two levels then falls on the other.
QUANTIZED_TOLERANCE = Tolerance(relative_rms=0.05)
_EXAMPLE_BATCH = 2


def export_onnx(
    model: nn.Module,
    dummy_input: Any,
    path: Path,
    free: Mapping[str, Mapping[int, str]] | None = None,
    places: Places | None = None,
) -> list[Path]:
    """Writes `model` as an ONNX file, opens it by ONNX Runtime and compares what both give.

    Compared are outputs for batches of 1, 2 and 3 in eval mode: within 1e-3 relative or 1e-4 absolute, of models with
    fake quantization within 5 % of the outputs' root mean square. The model is left as it was. Same model, same bytes.

    Args:
        model: any module; what is not on the CPU is copied there.
        dummy_input: example inputs.
        path: of the file, ending in .onnx.
        free: names of axes, besides the batch, that stay free, by input and axis.
        places: gets, by the name of a module, the nodes that compute with its weight.

    Returns:
        The files that were written: `path`, and where the model takes 2 GB or more, its tensors beside it.

    Raises:
        MissingRuntimeError: a package of the extra onnx is not installed.
        NotPortableError: the model cannot be written so, or the file gives something else.
    """
    for name in ("onnx", "onnxscript", "onnxruntime"):
        package(name, EXTRA)
    as_call(dummy_input)
    model, dummy_input = _with_floats(on_cpu(model)), on_device(dummy_input, "cpu")
    files = [path]
    try:
        with untouched(model), quiet():
            traced = trace(model, dummy_input, training=False, free=free)
            returned = [spec.arg for spec in traced.graph_signature.output_specs if spec.kind == OutputKind.USER_OUTPUT]
            document, changed = _translated(traced, {} if places is None else places)
            signature = _signature(model, dummy_input, traced, returned, document, free or {})
            document.metadata_props[KEY] = signature.to_json()
            document.metadata_props[MEASURED_ON] = cpu.described()
            if changed:
                document.metadata_props[QUANTIZED] = changed
                if quantized.is_wide(document):
                    document.metadata_props[WIDE] = "yes"
            files = _save(document, path)
            try:
                module = RuntimeModule(path)
            except ArtifactError as error:
                raise NotPortableError(first_line(error).rstrip(".")) from error
            prove(model, module, dummy_input, QUANTIZED_TOLERANCE if changed else None)
    except BaseException:
        for file in (path, path.with_name(names.ONNX_DATA)):
            file.unlink(missing_ok=True)
        raise
    return files


def _with_floats(model: nn.Module) -> nn.Module:
    """The model; one whose weights are integers already, with floats and quantizers before them."""
    if not frozen_counts(model)[0]:
        return model
    try:
        return thawed(model)
    except CompressionError as error:
        raise NotPortableError(first_line(error).rstrip(".")) from error


def _translated(traced: ExportedProgram, places: Places) -> tuple[Any, str]:
    """The graph as ONNX, and a description of its integers; "" where it has none. `places` as of export_onnx."""
    traced, found = quantized.marked(traced)
    _drop_constants(traced)
    try:
        program = torch.onnx.export(traced, dynamo=True, opset_version=OPSET, verbose=False, optimize=True)
    except Exception as error:
        raise NotPortableError(_reason(error)) from error
    assert program is not None
    document = program.model
    if found:
        quantized.lower(document)
    places.update(places_of(document.graph))
    _forget_machine(document)
    return document, quantized.described(document) if found else ""


def _drop_constants(traced: ExportedProgram) -> None:
    """Puts None for the numbers among the graph's outputs: torch.onnx leaves the one out and fails on the others."""
    node = traced.graph.output_node()
    values: list[Any] = list(node.args[0])
    for index, spec in enumerate(traced.graph_signature.output_specs):
        if isinstance(spec.arg, ConstantArgument):
            values[index] = None
            spec.arg = ConstantArgument(name="", value=None)
    node.args = (tuple(values),)


def _signature(
    model: nn.Module,
    dummy_input: Any,
    traced: ExportedProgram,
    returned: Sequence[Any],
    document: Any,
    free: Mapping[str, Mapping[int, str]],
) -> Signature:
    """How the file is called; names its tensors and axes."""
    example = fitting(model, dummy_input, _EXAMPLE_BATCH)
    args, kwargs = as_call(example)
    leaves, _ = pytree.tree_flatten((args, kwargs))
    specs = [spec.arg for spec in traced.graph_signature.input_specs if spec.kind == InputKind.USER_INPUT]
    inputs = iter(document.graph.inputs)
    # Tensors in order of the graph; a number or None is no input of the file.
    known = [
        (leaf, next(inputs)) for leaf, spec in zip(leaves, specs, strict=True) if not isinstance(spec, ConstantArgument)
    ]
    arguments = named_arguments(model, example)
    called = {
        id(leaf): "_".join(map(str, place))
        for leaf, place in _places(plain_containers({n: v for n, _, v in arguments}))
    }
    given_names = _distinct([called[id(leaf)] for leaf, _ in known], set())
    for (_, value), name in zip(known, given_names, strict=True):
        _set_name(document.graph, value, name)
    by_identity = {id(leaf): value.name for leaf, value in known}
    axes = {
        id(leaf): given
        for name, _, value in arguments
        for leaf in tensors(value)
        if (given := free.get(name)) is not None
    }
    _name_axes([(value, axes.get(id(leaf), {})) for leaf, value in known], document)
    try:
        parameters = tuple(
            (name, named, tree_of(plain_containers(value), lambda leaf: by_identity.get(id(leaf))))
            for name, named, value in arguments
        )
        outputs, output_names = _outputs(traced, returned, document, {value.name for _, value in known})
    except TypeError as error:
        raise NotPortableError(str(error)) from error
    described = tuple(_described(value, leaf) for leaf, value in known)
    return Signature(parameters, described, outputs, tuple(output_names))


def _outputs(
    traced: ExportedProgram, specs: Sequence[Any], document: Any, taken: set[str]
) -> tuple[dict[str, Any], list[str]]:
    """The tree of the outputs, whose tensors get the names of their places in it."""
    if any(not isinstance(spec, ConstantArgument | TensorArgument) for spec in specs):
        raise NotPortableError(
            "forward() returns a number that depends on the shape of its inputs; return a tensor of it"
        )
    changed = [
        spec
        for spec in traced.graph_signature.output_specs
        if spec.kind.name in ("BUFFER_MUTATION", "USER_INPUT_MUTATION")
    ]
    if changed:
        raise NotPortableError(
            f"forward() changes {changed[0].target!r} in eval mode, and a file of a runtime keeps nothing"
        )
    out_spec = traced.call_spec.out_spec
    assert out_spec is not None
    values = list(document.graph.outputs)
    markers: list[Any] = []
    for spec in specs:
        markers.append(
            spec.value
            if isinstance(spec, ConstantArgument)
            else _Marker(len([m for m in markers if isinstance(m, _Marker)]))
        )
    nested = pytree.tree_unflatten(markers, out_spec)
    places = {marker.number: place for marker, place in _places(nested) if isinstance(marker, _Marker)}
    wanted = ["_".join(map(str, places[number])) or "output" for number in range(len(values))]
    given = _distinct([f"output_{name}" if name[0].isdigit() else name for name in wanted], taken)
    _rename_outputs(document, given)
    return tree_of(nested, lambda leaf: given[leaf.number] if isinstance(leaf, _Marker) else None), given


class _Marker:
    """Stands for a tensor among outputs."""

    def __init__(self, number: int) -> None:
        self.number = number


def _places(nested: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, tuple[Any, ...]]]:
    """The leaves of plain containers, each with its place: the keys and numbers that lead to it."""
    if not isinstance(nested, dict | list | tuple):
        return [(nested, path)]
    items = nested.items() if isinstance(nested, dict) else enumerate(nested)
    return [found for key, value in items for found in _places(value, (*path, key))]


def _distinct(wanted: Sequence[str], taken: set[str]) -> list[str]:
    """The names, with a number behind those that are taken."""
    given: list[str] = []
    for name in wanted:
        free, number = name, 1
        while free in taken or free in given:
            free, number = f"{name}_{number}", number + 1
        given.append(free)
    return given


def _set_name(graph: Any, value: Any, name: str) -> None:
    """Gives a value a name, and whatever else is called so another one."""
    others = [*graph.inputs, *graph.initializers.values(), *(each for node in graph for each in node.outputs)]
    for other in others:
        if other is not value and other.name == name:
            other.name = f"{name}_inner"
    value.name = name


def _rename_outputs(document: Any, given: Sequence[str]) -> None:
    """Gives the outputs their names; one that is an input, a constant or another output gets a value of its own."""
    import onnx_ir as ir

    graph = document.graph
    seen: set[int] = set()
    for index, (value, name) in enumerate(zip(list(graph.outputs), given, strict=True)):
        own = value
        if value.producer() is None or id(value) in seen:
            node = ir.node("Identity", [value])
            graph.append(node)
            own = node.outputs[0]
            own.type, own.shape = value.type, value.shape
            graph.outputs[index] = own
        seen.add(id(own))
        _set_name(graph, own, name)


def _name_axes(inputs: Sequence[tuple[Any, Mapping[int, str]]], document: Any) -> None:
    """Names the free axes of inputs and of all that hangs on them."""
    import onnx_ir as ir

    known: dict[str, str] = {}
    for value, given in inputs:
        for axis, size in enumerate(value.shape):
            if isinstance(size, int):
                continue
            known.setdefault(str(size.value), given.get(axis, "batch" if axis == 0 else f"{value.name}_{axis}"))
    values = [*document.graph.inputs, *(value for node in document.graph for value in node.outputs)]
    for value in {id(each): each for each in [*values, *document.graph.outputs]}.values():
        if value.shape is None or not any(not isinstance(size, int) for size in value.shape):
            continue
        value.shape = ir.Shape([size if isinstance(size, int) else known.get(str(size.value)) for size in value.shape])


def _described(value: Any, leaf: torch.Tensor) -> TensorSpec:
    shape = tuple(size if isinstance(size, int) else str(size.value) for size in value.shape)
    low, high = (float(leaf.min()), float(leaf.max())) if leaf.numel() and not leaf.is_complex() else (0.0, 1.0)
    return TensorSpec(value.name, str(leaf.dtype).removeprefix("torch."), shape, low, high)


def _forget_machine(document: Any) -> None:
    """Takes out what torch writes about where the graph came from: names of files, lines of code."""
    for graph in (document.graph, *document.functions.values()):
        graph.metadata_props.clear()
        for node in graph:
            node.metadata_props.clear()
            node.doc_string = None
            for value in node.outputs:
                value.metadata_props.clear()
    for value in (*document.graph.inputs, *document.graph.initializers.values()):
        value.metadata_props.clear()
        value.doc_string = None
    document.metadata_props.clear()
    document.doc_string = None


def _save(document: Any, path: Path) -> list[Path]:
    import onnx_ir as ir

    total = sum(
        value.const_value.nbytes for value in document.graph.initializers.values() if value.const_value is not None
    )
    if total < LARGEST:
        ir.save(document, path)
        return [path]
    data = path.with_name(names.ONNX_DATA)
    ir.save(document, path, external_data=data.name)
    return [path, data]


def _reason(error: Exception) -> str:
    """What torch.onnx cannot translate, out of its chain of causes."""
    inner: BaseException = error
    while inner.__cause__ is not None:
        inner = inner.__cause__
    return f"torch.onnx cannot translate it: {first_line(inner).rstrip('.;')}"
