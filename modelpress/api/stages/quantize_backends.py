"""What can be wrong with a quantize block and the backend that it asks for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from modelpress.api.errors import Problem
from modelpress.api.messages import in_words
from modelpress.api.v1alpha1 import Quantize, QuantizeEntry, algorithms, backends

# Backends that nothing makes -> why, and what to do.
_UNWIRED = {
    "torchao": (
        "results of quantize are not made for torchao",
        "write torch, whose programs torch.compile takes, or onnxruntime or openvino",
    )
}
_NUMBERS = (
    ("targets", "targets"),
    ("quant_dtype", "quantDtype"),
    ("quant_bits", "quantBits"),
    ("scheme", "scheme"),
    ("granularity", "granularity"),
    ("group_size", "groupSize"),
)


def known(block: Quantize) -> backends.Backend | None:
    """The block's backend; None: nothing makes results for it."""
    return None if block.backend in _UNWIRED else backends.backend(block.backend)


def row_of(block: Quantize) -> algorithms.Algorithm:
    """The block's method as its backend has it."""
    row, found = algorithms.algorithm("quantize", block.algorithm), known(block)
    way = None if found is None else found.way(row)
    return row if way is None else way.row(row)


def backend_problems(block: Quantize, path: str) -> Iterator[Problem]:
    """A backend that makes nothing of the method, or not with these numbers."""
    if block.backend in _UNWIRED:
        yield Problem(f"{path}.backend", *_UNWIRED[block.backend])
        return
    found, row = backends.backend(block.backend), algorithms.algorithm("quantize", block.algorithm)
    way = found.way(row)
    if way is None:
        others = in_words(other.name for other in algorithms.algorithms("quantize") if found.way(other) is not None)
        fix = f"use {others}, or backend torch"
        if block.backend in backends.RUNTIMES and block.backend in _torch_formats(row):
            fix += f" with target.format {block.backend}, which writes the same integers there"
        yield Problem(f"{path}.algorithm", f"{block.backend} makes nothing of {row.name}", fix)
        return
    if block.backend == "torch":
        return
    holders: list[tuple[Quantize | QuantizeEntry, str]] = [(block, path)]
    holders += [
        (entry, f"{path}.configList[{index}]") for index, entry in enumerate(block.config_list) if not entry.exclude
    ]
    for holder, where in holders:
        given = [alias for name, alias in _NUMBERS if getattr(holder, name) is not None]
        if isinstance(holder, QuantizeEntry) and given and not way.each:
            message = f"{block.backend} quantizes all layers that are selected alike"
            yield Problem(f"{where}.{given[0]}", message, "say it of the whole stage, beside algorithm")
            continue
        yield from _holder_problems(block, holder, where, way)
    observer = None if block.calibration is None else block.calibration.observer
    if observer is not None and way.observers and observer not in way.observers:
        yield Problem(
            f"{path}.calibration.observer",
            f"{block.backend} knows no {observer}",
            f"write {in_words(way.observers)}, or use backend torch",
        )
    if block.weight_observer != "minMax" and found.quantizes:
        yield Problem(f"{path}.weightObserver", f"{block.backend} finds the range of weights itself", "remove it")


def _holder_problems(
    block: Quantize, holder: Quantize | QuantizeEntry, where: str, way: backends.Way
) -> Iterator[Problem]:
    row = algorithms.algorithm("quantize", block.algorithm)
    if holder.targets is not None and set(holder.targets) != set(row.targets):
        message = f"{row.name} of {block.backend} quantizes {in_words(row.targets)}"
        yield Problem(f"{where}.targets", message, "remove it")
    for target, bits, schemes in (
        ("weight", way.weights, way.weight_schemes),
        ("input", way.inputs, way.input_schemes),
    ):
        if target not in row.targets:
            continue
        asked = _bits(holder, target)
        if asked is not None and asked not in bits:
            most = in_words([str(each) for each in bits])
            message = f"{block.backend} takes {most} bits for the {target} of {row.name}, not {asked}"
            alias = "quantBits" if holder.quant_dtype is None else "quantDtype"
            yield Problem(f"{where}.{alias}", message, f"write {most}" if alias == "quantBits" else "write int8")
            if not isinstance(getattr(holder, "quant_bits" if alias == "quantBits" else "quant_dtype"), Mapping):
                return  # one number for all
        scheme = _of(holder.scheme, target)
        dtype = _of(holder.quant_dtype, target)
        if scheme is None and isinstance(dtype, str) and dtype.startswith("u") and "affine" not in schemes:
            scheme = "affine"
        if scheme is not None and scheme not in schemes:
            message = f"{block.backend} takes {in_words(schemes)} numbers for the {target} of {row.name}"
            alias = "scheme" if _of(holder.scheme, target) is not None else "quantDtype"
            fix = f"write scheme {in_words(schemes)}" if alias == "scheme" else "write int8"
            if isinstance(holder.scheme, str) and "input" in row.targets:
                fix += f", or a map: {{{target}: {schemes[0]}}}"
            yield Problem(f"{where}.{alias}", message, fix)
    if holder.granularity is not None and holder.granularity not in way.granularities:
        message = f"{block.backend} has no scale for each {holder.granularity} of {row.name}"
        yield Problem(f"{where}.granularity", message, f"write {in_words(way.granularities)}")


def _bits(holder: Quantize | QuantizeEntry, target: str) -> int | None:
    dtype, bits = _of(holder.quant_dtype, target), _of(holder.quant_bits, target)
    if isinstance(dtype, str) and dtype[-1].isdigit():
        return int(dtype[-1])
    return bits if type(bits) is int else None


def _of(value: Any, target: str) -> Any:
    return value.get(target) if isinstance(value, Mapping) else value


def _torch_formats(row: algorithms.Algorithm) -> tuple[str, ...]:
    way = backends.backend("torch").way(row)
    return () if way is None else way.formats
