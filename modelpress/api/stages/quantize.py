"""The quantize stage: what can be wrong with its entries, its numbers and its algorithm."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic.alias_generators import to_camel

from modelpress.api.errors import Problem
from modelpress.api.messages import in_words
from modelpress.api.v1alpha1 import ApiModel, Quantize, QuantizeEntry, algorithms
from modelpress.api.v1alpha1.quantize import FP8, is_fp8

from . import length
from .base import StageRules
from .quantize_backends import backend_problems, row_of
from .selectors import selector_problems

TARGETS = ("weight", "input", "output")
GROUP_SIZE = 128
_DTYPE = re.compile(r"(u?)int([2-8])")
_SCHEMES = ("affine", "symmetric")
_WEIGHTS_ALONE = ("weight_only", "gptq", "awq", "hqq")
# Fields of one method alone.
_OWN = {"damping": "gptq", "act_order": "gptq", "alpha": "smoothquant"}
_SPARES_ZERO = in_words(row.name for row in algorithms.algorithms("quantize") if row.keeps_zero)


@dataclass(frozen=True)
class Numbers:
    """The integers that a target is rounded to.

    Attributes:
        bits: of each.
        signed: whether some are negative.
        scheme: affine or symmetric.
    """

    bits: int
    signed: bool
    scheme: str

    @property
    def dtype(self) -> str:
        """`int8`, `uint4`."""
        return f"{'' if self.signed else 'u'}int{self.bits}"

    @property
    def range(self) -> tuple[int, int]:
        """The least and the greatest: of symmetric signed ones as many below zero as above."""
        if not self.signed:
            return 0, 2**self.bits - 1
        most = 2 ** (self.bits - 1) - 1
        return (-most if self.scheme == "symmetric" and self.bits > 1 else -most - 1), most


def of_target(value: Any, target: str) -> Any:
    """What is said of one target: by a map its own entry, else the value; None: nothing."""
    return value.get(target) if isinstance(value, Mapping) else value


def numbers(holders: Sequence[Quantize | QuantizeEntry], target: str, algorithm: algorithms.Algorithm) -> Numbers:
    """What is asked for one target, the last of `holders` that says something counting.

    Args:
        holders: the stage first, then the entries that select a module.
        target: weight, input or output.
        algorithm: its row.
    """
    schemes = (of_target(holder.scheme, target) for holder in reversed(holders))
    scheme = next((each for each in schemes if each is not None), None)
    default = "symmetric" if target == "weight" or algorithm.schemes == ("symmetric",) else "affine"
    if len(algorithm.schemes) == 1:
        default = algorithm.schemes[0]
    for holder in reversed(holders):
        if (dtype := of_target(holder.quant_dtype, target)) is not None:
            match = _DTYPE.fullmatch(dtype)
            assert match is not None
            signed = not match.group(1)
            return Numbers(int(match.group(2)), signed, scheme or (default if signed else "affine"))
        if (bits := of_target(holder.quant_bits, target)) is not None:
            return Numbers(bits, (scheme or default) == "symmetric", scheme or default)
    return Numbers(min(8, algorithm.bits[1]), (scheme or default) == "symmetric", scheme or default)


class QuantizeRules(StageRules[Quantize]):
    """Gives layers few bits, behind a calibration or along a training."""

    name = "quantize"
    block = Quantize
    runner = "modelpress_runner.stages.quantize:KIND"
    goes_along = True
    freezes = True

    def problems(self, block: Quantize, path: str) -> Iterator[Problem]:
        """Entries, numbers and the algorithm, as far as can be said without the model."""
        wrong = [*backend_problems(block, path)]
        yield from wrong
        for index, entry in enumerate(block.config_list):
            yield from selector_problems(entry, f"{path}.configList[{index}]")
        if all(entry.exclude for entry in block.config_list):
            message = "every entry excludes, so nothing is quantized"
            yield Problem(f"{path}.configList", message, "add an entry that selects, such as {opTypes: [default]}")
            return
        row = algorithms.algorithm("quantize", block.algorithm)
        if mapped := [*_map_problems(block, path)]:
            yield from mapped
            return
        if wrong:
            return
        holders: list[tuple[Quantize | QuantizeEntry, str]] = [(block, path)]
        holders += [(entry, f"{path}.configList[{index}]") for index, entry in enumerate(block.config_list)]
        for holder, where in holders:
            wrong = [*_map_problems(holder, where)]
            yield from wrong
            if not wrong and not (isinstance(holder, QuantizeEntry) and holder.exclude):
                yield from _holder_problems(block, holder, where, row)
            elif isinstance(holder, QuantizeEntry) and holder.exclude:
                for name, alias in (("quant_dtype", "quantDtype"), ("quant_bits", "quantBits"), ("scheme", "scheme")):
                    if getattr(holder, name) is not None:
                        message = "an excluding entry takes nothing but selectors"
                        yield Problem(f"{where}.{alias}", message, "remove it or 'exclude'")
        yield from _calibration_problems(block, path, row)
        yield from _search_problems(block, path, row)
        if not row.trains and block.start_step:
            yield Problem(f"{path}.startStep", f"{row.name} trains nothing", f"remove it, or use {_training()}")
        if not row.trains:
            yield from length.refused(block, path, f"{row.name} trains nothing")

    def problems_along(self, block: Quantize, path: str) -> Iterator[Problem]:
        """Only what trains has something to do there, and others say how long."""
        row = algorithms.algorithm("quantize", block.algorithm)
        if not row.trains:
            message = f"{row.name} needs no training, and the one that it goes along with would change the weights"
            yield Problem(f"{path}.algorithm", message, f"put it into a stage of its own behind, or use {_training()}")
        else:
            yield from length.refused(block, path, "the training that it goes along with says how long")

    def problems_outside(self, block: Quantize, path: str) -> Iterator[Problem]:
        """What trains says how long."""
        if algorithms.algorithm("quantize", block.algorithm).trains:
            yield from length.needed(block, path)

    def training(self, block: Quantize) -> Iterator[str]:
        """All of it, of what trains."""
        if algorithms.algorithm("quantize", block.algorithm).trains:
            yield ""

    def sentence(self, block: Mapping[str, Any]) -> str:
        """By which algorithm, to which numbers."""
        parsed = Quantize.model_validate(dict(block))
        row = row_of(parsed)
        found: dict[str, list[str]] = {}
        for entry in parsed.config_list:
            for target in () if entry.exclude else entry.targets or parsed.targets or row.targets:
                found.setdefault(target, []).append(numbers([parsed, entry], target, row).dtype)
        what = ", ".join(f"{target}s to {' and '.join(dict.fromkeys(each))}" for target, each in found.items())
        by = "" if parsed.backend == "torch" else f" by {parsed.backend}"
        return f"quantized{by} with {row.name} ({what}){length.in_words(block)}"


def _behind() -> str:
    return in_words(row.name for row in algorithms.algorithms("quantize") if not row.trains)


def _training() -> str:
    return in_words(row.name for row in algorithms.algorithms("quantize") if row.trains)


def _map_problems(holder: Quantize | QuantizeEntry, where: str) -> Iterator[Problem]:
    """Maps of targets whose keys or values are none."""
    judged: tuple[tuple[str, Any, Any, str], ...] = (
        ("quantBits", holder.quant_bits, lambda v: type(v) is int and 1 <= v <= 8, "a number from 1 to 8"),
        ("quantDtype", holder.quant_dtype, lambda v: isinstance(v, str) and _DTYPE.fullmatch(v), "int2 to uint8"),
        ("scheme", holder.scheme, lambda v: v in _SCHEMES, "affine or symmetric"),
    )
    for alias, value, fits, wanted in judged:
        for key, item in value.items() if isinstance(value, Mapping) else ():
            if key not in TARGETS:
                yield Problem(f"{where}.{alias}", f"'{key}' is no target", f"write {in_words(TARGETS)}")
            elif not fits(item):
                fix = FP8 if alias == "quantDtype" and is_fp8(str(item)) else f"write {wanted}"
                yield Problem(f"{where}.{alias}.{key}", f"{str(item)[:64]!r} is not {wanted}", fix)


def _holder_problems(
    block: Quantize, holder: Quantize | QuantizeEntry, where: str, row: algorithms.Algorithm
) -> Iterator[Problem]:
    """What the stage, or an entry, says of targets that its algorithm knows."""
    for target in TARGETS:
        if None not in (of_target(holder.quant_dtype, target), of_target(holder.quant_bits, target)):
            message = f"quantDtype says the bits of the {target} already"
            yield Problem(f"{where}.quantBits", message, "give one of the two")
    possible: tuple[str, ...] = ("weight", "input") if row.name == "ptq_dynamic" else TARGETS
    possible = ("weight",) if row.name in _WEIGHTS_ALONE else possible
    for target in holder.targets or ():
        if target not in possible:
            others = in_words(other.name for other in algorithms.algorithms("quantize") if other.name == "ptq_static")
            yield Problem(f"{where}.targets", f"{row.name} leaves {target}s as they are", f"remove it, or use {others}")
    chain = [block] if holder is block else [block, holder]
    targets = holder.targets or block.targets or row.targets
    for target in dict.fromkeys((*targets, "weight")):
        asked = numbers(chain, target, row)
        low, high = row.bits
        says = any(of_target(each, target) is not None for each in (holder.quant_bits, holder.quant_dtype))
        if says and not low <= asked.bits <= high:
            most = f"{low}" if low == high else f"{low} to {high}"
            yield Problem(f"{where}.quantBits", f"{row.name} takes {most} bits, not {asked.bits}", f"write {most}")
        if of_target(holder.scheme, target) is not None and asked.scheme not in row.schemes:
            message = f"{row.name} is {in_words(row.schemes)}"
            yield Problem(f"{where}.scheme", message, "remove it")
    granularity = holder.granularity or block.granularity
    if not row.keeps_zero and holder.granularity not in (None, "tensor"):
        yield Problem(f"{where}.granularity", f"{row.name} has one scale for a weight", "remove it")
    if holder.group_size is not None and granularity != "group":
        message = "there are groups only with granularity group"
        yield Problem(f"{where}.groupSize", message, "write 'granularity: group', or remove it")


def _search_problems(block: Quantize, path: str, row: algorithms.Algorithm) -> Iterator[Problem]:
    """What is wrong with a budget, and with tuning."""
    for field, what in (("budget", "a budget"), ("tune", "tuning")):
        if getattr(block, field) is not None and row.trains:
            fix = "use one that does not train, or a CompressionSweep"
            yield Problem(f"{path}.{field}", f"{row.name} would train for each trial of {what}", fix)
        if getattr(block, field) is not None and block.backend != "torch":
            message = f"{what} is for backend torch, which this version alone can measure layer by layer"
            yield Problem(f"{path}.{field}", message, "remove it, or write 'backend: torch'")
    if block.keep_only_if_faster:
        where = f"{path}.keepOnlyIfFaster"
        if row.trains:
            yield Problem(where, f"{row.name} trains, and layers are timed before", f"remove it, or use {_behind()}")
        elif block.backend == "compressed-tensors":
            message = "what servers make of one layer cannot be timed here"
            yield Problem(where, message, "remove it, or use another backend")
        elif block.budget is not None and not block.budget.keep_float:
            yield Problem(where, "budget.keepFloat lets no layer stay as it is", "remove one of the two")
    if (budget := block.budget) is not None and not row.trains:
        holders: list[tuple[Quantize | QuantizeEntry, str]] = [(block, path)]
        holders += [(entry, f"{path}.configList[{index}]") for index, entry in enumerate(block.config_list)]
        for holder, where in holders:
            for alias, value in (("quantBits", holder.quant_bits), ("quantDtype", holder.quant_dtype)):
                if of_target(value, "weight") is not None:
                    message = "the budget says the bits of weights"
                    yield Problem(f"{where}.{alias}", message, "give those of inputs and outputs only, or remove it")
        if len(set(budget.bits)) == 1 and not budget.keep_float:
            yield Problem(f"{path}.budget.bits", "with one number there is nothing to solve", "give more, or quantBits")


def _changed(block: ApiModel) -> set[str]:
    """Fields that are not at their default. Which ones were written nobody knows: API servers write defaults, too."""
    fields = type(block).model_fields
    return {name for name, field in fields.items() if getattr(block, name) != field.default}


def _calibration_problems(block: Quantize, path: str, row: algorithms.Algorithm) -> Iterator[Problem]:
    for field, owner in _OWN.items():
        if field in _changed(block) and row.name != owner:
            yield Problem(f"{path}.{to_camel(field)}", f"{row.name} takes none; {owner} does", "remove it")
    if block.weight_observer != "minMax" and row.name in ("lsq", "dorefa", "bnn", "hqq"):
        yield Problem(f"{path}.weightObserver", f"{row.name} finds the range of weights itself", "remove it")
    if block.calibration is None:
        return
    targets = {target for entry in block.config_list for target in entry.targets or block.targets or row.targets}
    if row.data_driven and row.name in _WEIGHTS_ALONE:
        if extra := _changed(block.calibration) - {"steps"}:
            message = f"{row.name} looks at inputs, and needs no range of them"
            yield Problem(f"{path}.calibration.{min(extra)}", message, "remove it; steps may stay")
        return
    if row.name == "ptq_dynamic" or row.name in ("dorefa", "bnn") or not targets & {"input", "output"}:
        message = f"{row.name} needs no range of activations here"
        yield Problem(f"{path}.calibration", message, "remove it, or use ptq_static")
    if block.calibration.observer != "percentile" and "percentile" in _changed(block.calibration):
        message = f"{block.calibration.observer} takes no percentile"
        yield Problem(f"{path}.calibration.percentile", message, "write 'observer: percentile', or remove it")
