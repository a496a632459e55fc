"""The first form of a model: model.pt2, a program that runs without the code it came from.

The batch (dimension 0 of the inputs) stays free. A model whose batch cannot be free is not portable: a program that
fails on the last, smaller batch of a data set would be worse than none. The file holds two graphs, one traced in eval
and one in train mode, over one set of weights, stored once; train and eval differ in more than dropout and BatchNorm
(stochastic depth, auxiliary outputs, attention), so both are traced and none is rewritten. Its parts are those of a PT2
archive, and `torch.export.load` of torch reads it too, with the eval graph as the program.
"""

from __future__ import annotations

import copy
import inspect
import io
import json
import re
import zipfile
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import Dim, ExportedProgram, ShapesCollection

from modelpress_runner.errors import ArtifactError, first_line
from modelpress_runner.export.pt2 import callees, graphcheck
from modelpress_runner.export.pt2.archive import (
    EVAL,
    HEADER,
    TRAIN,
    Archive,
    damaged,
    open_archive,
    write_archive,
)
from modelpress_runner.export.pt2.equivalence import NotPortableError, plain_output, prove, train_difference
from modelpress_runner.export.pt2.graph import Graph, read_graph
from modelpress_runner.export.pt2.module import Program
from modelpress_runner.export.pt2.quiet import quiet
from modelpress_runner.export.pt2.tensors import Payloads, check_entries, filled
from modelpress_runner.runtime.example_inputs import (
    as_call,
    batch_size,
    fitting,
    is_batched,
    map_tensors,
    on_device,
    tensors,
    with_batch,
)
from modelpress_runner.runtime.preserve import untouched

VERSION = 1
_CALLS, _BYTES_A_CALL = 4096, 512  # operators of any program, and one more for each so many bytes of its file
_PARTS_A_CALL = 64  # mappings of JSON; honest programs have 20 to 40
_EXPORT_BATCH = 2  # with a batch of 1 torch takes the dimension for a constant


@dataclass(frozen=True)
class Exported:
    """What is worth knowing about a program that was written."""

    trainable: bool
    notes: list[str] = field(default_factory=list)
    required_imports: list[str] = field(default_factory=list)
    operators: list[str] = field(default_factory=list)
    """Those that whoever opens the program has to name."""
    calls: int = 0
    """How many operators it calls."""


def export_program(
    model: nn.Module, dummy_input: Any, path: Path, free: Mapping[str, Collection[int]] | None = None
) -> Exported:
    """Writes `model` as a program and proves it.

    The file is opened again and must give what the model gives, for batches of 1, 2 and 3 in eval mode, and for one
    step in train mode with the same random numbers, buffers included. The model, its modes and the random number
    generators are left as they were. Same model, same bytes.

    Args:
        model: any module; what is not on the CPU is copied there.
        dummy_input: example inputs, see `benchmark.inputs`.
        path: of the file, ending in .pt2.
        free: axes, besides the batch, that stay free too, by the name of the input.

    Raises:
        NotPortableError: the model cannot be exported with a free batch, needs a pickle, or differs from the program.
        InvalidModelError: `dummy_input` is not one.
    """
    as_call(dummy_input)
    path = Path(path)
    model, dummy_input = on_cpu(model), on_device(dummy_input, "cpu")
    try:
        with untouched(model), quiet():
            _check_tensors(model)
            return _export(model, dummy_input, path, free)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def open_program(path: Path, operators: Collection[str] = (), max_calls: int | None = None) -> Program:
    """Opens a program, in eval mode, on the CPU.

    Opening runs, evaluates and unpickles nothing of the file: it is checked in full before any of it is used, see
    `archive` and `graphcheck`. Running the program calls its operators: those of the list in operators.txt, and those
    that the caller names.

    Args:
        path: of the file.
        operators: others that it may call, "namespace::name" each.
        max_calls: how many operators it may call; None: 4,096, and one more for each 512 bytes of the file.

    Raises:
        ArtifactError: the file is damaged, holds what no program holds, needs a newer torch or operators of a package
            that is not imported, or that are neither in the list nor named, or calls more of them than it may.
    """
    try:
        return _open_program(Path(path), operators, max_calls)
    except (MemoryError, RecursionError) as error:
        raise ArtifactError(f"{Path(path).name} needs more memory than there is to be opened") from error


def _open_program(path: Path, operators: Collection[str], max_calls: int | None) -> Program:
    with open_archive(path) as archive:
        left = _allowed(path) if max_calls is None else max_calls
        header = _header(archive)
        names = (EVAL, TRAIN) if header["train"] == "own" else (EVAL,)
        weights = archive.json(f"data/weights/{EVAL}_weights_config.json")
        graphcheck.check_payload(weights, "weights", "weight")
        listings: dict[str, Any] = {}
        for name in names:
            if archive.json(f"data/weights/{name}_weights_config.json") != weights:
                raise damaged(path, "its programs differ in weights")
            listings[name] = archive.json(f"data/constants/{name}_constants_config.json")
            graphcheck.check_payload(listings[name], f"{name} constants", "tensor")
        check_entries(archive, [("weights", weights), *(("constants", listing) for listing in listings.values())])
        graphs: dict[str, Graph] = {}
        try:
            for name in names:
                # First roughly, in the text, before time is spent on it; each weight is told of like an operator.
                text = archive.document(f"models/{name}.json")
                long = max(text.count(b'"target":') // 2, text.count(b"{") // _PARTS_A_CALL - len(weights["config"]))
                _check_length(path, long, max(left, _CALLS))
                document = archive.json(f"models/{name}.json")
                graphcheck.check_program(document, name)
                called = callees.counted(document)
                _check_length(path, called.total(), left)
                left -= called.total()
                _check_operators(callees.operators(called), header, operators)
                graphs[name] = read_graph(document)
            state = filled(archive, weights, "weights")
            constants = {name: filled(archive, listing, "constants") for name, listing in listings.items()}
            no_training = header["reason"] if header["train"] == "none" else None
            return Program(
                graphs[EVAL], graphs.get(TRAIN), state, constants[EVAL], constants.get(TRAIN, {}), no_training
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise damaged(path, first_line(error)) from error


def describe(path: Path) -> Exported:
    """What is known of a program that was written, without opening it.

    Raises:
        ArtifactError: it is none.
    """
    with open_archive(Path(path)) as archive:
        header = _header(archive)
    return _exported(header, Path(path))


def _export(model: nn.Module, dummy_input: Any, path: Path, free: Mapping[str, Collection[int]] | None) -> Exported:
    evaluated = trace(model, dummy_input, training=False, free=free)
    reason: str | None = None
    trained: ExportedProgram | None = None
    try:
        trained = trace(model, dummy_input, training=True, free=free)
    except NotPortableError as error:
        reason = error.reason
    written = _write(path, evaluated, trained, reason)
    program = _opened(path, written)
    prove(model, program, dummy_input)
    if reason is None:
        reason = train_difference(model, program, dummy_input)
        if reason is not None:
            return _write(path, evaluated, None, reason)
    return written


def _exported(header: Mapping[str, Any], path: Path) -> Exported:
    reason, operators, calls = header["reason"], header.get("operators", []), header.get("calls", 0)
    notes = [] if reason is None else [f"The program runs in eval mode only: {reason}."]
    if operators:
        named = ", ".join(repr(name) for name in operators)
        notes.append(f"The program calls operators that have to be named: mp.load(uri, operators=[{named}]).")
    if calls > _allowed(path):
        notes.append(f"The program is long for its file: mp.load(uri, max_calls={calls}).")
    packages = sorted(set(header["packages"].values()))
    return Exported(reason is None, notes, packages, operators, calls)


def _allowed(path: Path) -> int:
    """How many operators a program may call, unless the caller names a number: opening takes 0.3 ms for each."""
    return _CALLS + path.stat().st_size // _BYTES_A_CALL


def _check_length(path: Path, calls: int, left: int) -> None:
    if calls > left:
        raise ArtifactError(
            f"{path.name} is {calls} operators long, more than the {left} that a file of its size may be; if you trust "
            "it, allow more: mp.load(uri, max_calls=...); else load the weights with mp.load(uri, into=model)"
        )


def _opened(path: Path, written: Exported) -> Program:
    try:
        return open_program(path, written.operators, written.calls)
    except ArtifactError as error:
        raise NotPortableError(str(error).partition(";")[0]) from error


def on_cpu(model: nn.Module) -> nn.Module:
    """The model, or a copy of it on the CPU."""
    held = [*model.parameters(), *model.buffers()]
    return model if all(tensor.device.type == "cpu" for tensor in held) else copy.deepcopy(model).cpu()


def _check_tensors(model: nn.Module) -> None:
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        held = tensor.data
        if type(held) is not torch.Tensor or held.layout != torch.strided or held.is_quantized:
            kind = str(held.layout) if type(held) is torch.Tensor else type(held).__name__
            raise NotPortableError(f"{name} is a {kind}; only plain, dense tensors are written without a pickle")


def _batch_symbols(program: ExportedProgram) -> set[Any]:
    """What stands for the batch: the free first axes of inputs."""
    given = set(program.graph_signature.user_inputs)
    values = [node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder" and node.name in given]
    firsts: list[Any] = [value.shape[0] for value in values if isinstance(value, torch.Tensor) and value.dim()]
    return {first.node.expr for first in firsts if isinstance(first, torch.SymInt)}


def trace(
    model: nn.Module, dummy_input: Any, *, training: bool, free: Mapping[str, Collection[int]] | None = None
) -> ExportedProgram:
    """What torch.export makes of a module whose batch stays free.

    Args:
        model: on the CPU.
        dummy_input: example inputs, on the CPU.
        training: in which mode.
        free: axes, besides the batch, that stay free too, by the name of the input.

    Raises:
        NotPortableError: it cannot be exported so.
    """
    batched = map_tensors(fitting(model, dummy_input, _EXPORT_BATCH), lambda tensor: tensor.clone())
    args, kwargs = as_call(batched)
    if unknown := sorted((free or {}).keys() - {name for name, _, _ in named_arguments(model, batched)}):
        raise NotPortableError(
            f"export.dynamicAxes names the input {unknown[0]!r}, which is not among the example inputs: "
            f"{', '.join(name for name, _, _ in named_arguments(model, batched))}"
        )
    shapes = ShapesCollection()
    rows = [tensor for tensor in tensors(batched) if is_batched(tensor, _EXPORT_BATCH)]
    if not rows:
        raise NotPortableError("no tensor in dummy_input has a batch dimension")
    if (state := _state(model, dummy_input)) is not None:
        raise NotPortableError(f"the batch of the input {state} is dimension 1; a program's batch is dimension 0")
    for tensor in tensors(batched):
        axes = {0} if is_batched(tensor, _EXPORT_BATCH) else set()
        axes |= _named_axes(model, batched, tensor, free or {})
        if axes:
            shapes[tensor] = dict.fromkeys(sorted(axes), Dim.DYNAMIC)
    model.train(training)
    hook = model.register_forward_hook(lambda module, inputs, output: plain_output(output))
    try:
        program = torch.export.export(model, args, kwargs, dynamic_shapes=shapes, strict=False)
    except NotPortableError:
        raise
    except Exception as error:
        raise NotPortableError(_reason(error)) from error
    finally:
        hook.remove()
        model.eval()
    batches = _batch_symbols(program)
    for symbol, limits in program.range_constraints.items():
        if free and symbol not in batches:
            continue  # another axis that is free, and may have a longest: positions that are looked up
        if limits.lower > _EXPORT_BATCH or limits.upper < 2**31:
            raise NotPortableError(f"it takes only batches of {limits.lower} to {limits.upper}")
    return program


def named_arguments(model: nn.Module, dummy_input: Any) -> list[tuple[str, bool, Any]]:
    """(name, whether it is taken by name alone, value) of each argument of a call, in order of forward's parameters.

    Behind a parameter that the call leaves out, arguments have no place any more, only a name.
    """
    args, kwargs = as_call(dummy_input)
    parameters = list(inspect.signature(model.forward).parameters.values())
    plain = [each.name for each in parameters if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)]
    names = [plain[index] if index < len(plain) else f"args_{index}" for index in range(len(args))]
    order = {each.name: index for index, each in enumerate(parameters)}
    named = sorted(kwargs.items(), key=lambda item: order.get(item[0], len(order)))
    found = [(name, False, value) for name, value in zip(names, args, strict=True)]
    for name, value in named:
        placed = len(found) < len(plain) and plain[len(found)] == name and not any(by_name for _, by_name, _ in found)
        found.append((name, not placed, value))
    return found


def _named_axes(model: nn.Module, batched: Any, tensor: torch.Tensor, free: Mapping[str, Collection[int]]) -> set[int]:
    owners = [name for name, _, value in named_arguments(model, batched) if any(t is tensor for t in tensors(value))]
    axes = set(free.get(owners[0], ())) if owners else set()
    if wrong := sorted(axis for axis in axes if axis >= tensor.ndim):
        raise NotPortableError(f"the input {owners[0]!r} has {tensor.ndim} axes, and there is no axis {wrong[0]}")
    return axes


def _state(model: nn.Module, dummy_input: Any) -> str | None:
    """The name or number of an input whose batch is dimension 1, as of a state of recurrent layers."""
    size = next(size for size in (3, 4) if size != batch_size(dummy_input))
    calls = [as_call(inputs) for inputs in (fitting(model, dummy_input, size), with_batch(dummy_input, size))]
    names = list(inspect.signature(model.forward).parameters)
    fits, plain = ([*enumerate(args), *kwargs.items()] for args, kwargs in calls)
    for (name, value), (_, other) in zip(fits, plain, strict=True):
        if [each.shape for each in tensors(value)] != [each.shape for each in tensors(other)]:
            return repr(names[name] if isinstance(name, int) and name < len(names) else name)
    return None


def _reason(error: Exception) -> str:
    text = str(error)
    fixed = re.search(r"You marked L\['?([\w.]+)'?\]\S* as dynamic but your code specialized it to be a constant", text)
    if fixed:
        return f"its code fixes the batch size of the input {fixed.group(1)!r}; use -1 or x.shape[0] for it"
    shape = re.search(r"shape '[^']*' is invalid for input of size .*s\d+", text)
    if shape:
        return f"its code fixes the batch size ({shape.group()}); use -1 or x.shape[0] for it"
    where = re.findall(r'File "([^"]+)", line (\d+), in \w+\n\s*(\S[^\n]*)', text)
    own = [place for place in where if "/site-packages/" not in place[0]]
    reason = first_line(error).rstrip(".;")
    if own:
        file, line, code = own[-1]
        reason = f"{reason} (line {line} of {Path(file).name}: {code.strip()[:96]})"
    return reason


def _write(path: Path, evaluated: ExportedProgram, trained: ExportedProgram | None, reason: str | None) -> Exported:
    documents: dict[str, Any] = {}
    payloads = Payloads()
    weights = payloads.add(evaluated.state_dict, "weight")
    train_document = None if trained is None else _document(trained)
    eval_document = _document(evaluated)
    same = trained is not None and train_document == eval_document and not trained.constants
    programs = {EVAL: (evaluated, eval_document)}
    if trained is not None and not same:
        programs[TRAIN] = (trained, train_document)
    for name, (program, document) in programs.items():
        documents[f"models/{name}.json"] = document
        documents[f"data/weights/{name}_weights_config.json"] = weights
        documents[f"data/constants/{name}_constants_config.json"] = payloads.add(program.constants, "tensor")
        payloads.entries[f"data/sample_inputs/{name}.pt"] = b""  # other readers expect the entry
    called = sum((callees.counted(document) for _, document in programs.values()), Counter[str]())
    names = callees.operators(called)
    packages = {
        operator: _package(operator)
        for operator in sorted(names)
        if operator.partition(".")[0] not in callees.BUILTIN_NAMESPACES
    }
    own = sorted({callees.spelled(name) for name in callees.unlisted(names)})
    documents[HEADER] = {
        "version": VERSION,
        "torch": torch.__version__,
        "train": "none" if reason is not None else "same" if same else "own",
        "reason": reason,
        "packages": packages,
        "operators": own,
        "calls": called.total(),
    }
    write_archive(path, documents, payloads.entries)
    return _exported(documents[HEADER], path)


def _document(program: ExportedProgram) -> Any:
    """The graph as torch writes it, without what tells of the machine that wrote it (paths, stack traces)."""
    slim = copy.copy(program)
    slim.example_inputs = None
    slim._state_dict = {name: _no_numbers(tensor) for name, tensor in program.state_dict.items()}
    slim._constants = {name: _no_numbers(tensor) for name, tensor in program.constants.items()}
    buffer = io.BytesIO()
    try:
        torch.export.save(slim, buffer)
    except Exception as error:
        raise NotPortableError(f"its graph cannot be written: {first_line(error)}") from error
    with zipfile.ZipFile(buffer) as written:
        found = [name for name in written.namelist() if name.endswith(f"/models/{EVAL}.json")]
        document = json.loads(written.read(found[0]))
    document["guards_code"] = []  # code; what it says is proven by running the program instead
    return _without_metadata(document)


def _no_numbers(value: Any) -> torch.Tensor:
    if not isinstance(value, torch.Tensor):
        raise NotPortableError(f"it holds an object of the type {type(value).__name__}, which only a pickle could keep")
    empty = torch.empty(0, dtype=value.dtype)
    return nn.Parameter(empty, requires_grad=value.requires_grad) if isinstance(value, nn.Parameter) else empty


def _without_metadata(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: {} if key == "metadata" else _without_metadata(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_metadata(item) for item in value]
    return value


def _package(operator: str) -> str:
    """The module whose import registers an operator; its namespace where that cannot be told."""
    namespace, name = operator.split(".")[:2]
    from torch._library.custom_ops import OPDEFS

    definition = OPDEFS.get(f"{namespace}::{name}")
    module = getattr(getattr(definition, "_init_fn", None), "__module__", None)
    if module is None or module == "__main__":
        return namespace
    return str(module)


def _header(archive: Archive) -> dict[str, Any]:
    header = archive.json(HEADER)
    if not isinstance(header, dict):
        raise damaged(archive.path, HEADER)
    if header.get("version") != VERSION:
        raise ArtifactError(
            f"{archive.path.name} is of version {str(header.get('version'))[:16]}, this modelpress reads {VERSION}; "
            "use the modelpress that wrote it"
        )
    named = header.get("operators", [])
    texts = [header.get("torch"), header.get("reason") or "", *_pairs(header.get("packages"))]
    texts += named if isinstance(named, list) else [None]
    if header.get("train") not in ("own", "same", "none") or any(not isinstance(text, str) for text in texts):
        raise damaged(archive.path, HEADER)
    written, here = _release(header["torch"]), _release(torch.__version__)
    if written > here:
        raise ArtifactError(
            f"{archive.path.name} was written with torch {header['torch'][:32]} and this is torch {torch.__version__}; "
            f"install torch {'.'.join(str(part) for part in written)} or later"
        )
    return header


def _pairs(packages: Any) -> list[Any]:
    return [*packages.keys(), *packages.values()] if isinstance(packages, dict) else [None]


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d{1,6}", version.partition("+")[0])[:2])


def _check_operators(names: Collection[str], header: Mapping[str, Any], named: Collection[str]) -> None:
    missing = sorted(callees.missing_operators(names))
    unlisted = sorted({callees.spelled(name) for name in callees.unlisted(names, named)})
    naming = f"mp.load(uri, operators=[{', '.join(repr(name) for name in unlisted)}])"
    if missing:
        packages = sorted({header["packages"].get(name, name.partition(".")[0]) for name in missing})
        known = [name for name in packages if name != "aten"]
        if not known:
            raise ArtifactError(
                f"the program needs the operator {missing[0]}, which torch {torch.__version__} does not have"
            )
        more = f", and name its operators if you trust the file: {naming}" if unlisted else ""
        raise ArtifactError(
            f"the program needs the operator {missing[0]} of {known[0]}; run 'import {', '.join(known)}' before "
            f"loading it{more}"
        )
    if unlisted:
        raise ArtifactError(
            f"the program calls the operator {unlisted[0]}, which is not in the list of those that every program may "
            f"call; if you trust the file, name it: {naming}; else load the weights with mp.load(uri, into=model)"
        )
