"""Measures of a run: the dense model's, the compressed model's, and what follows from the two."""

from __future__ import annotations

import contextlib
import os
import platform
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from modelpress.api.v1alpha1 import CompressionJobSpec
from modelpress_runner.engine.outcome import RecipeOutcome
from modelpress_runner.engine.scoring import score_aside
from modelpress_runner.errors import InvalidModelError, InvalidSpecError
from modelpress_runner.evaluators.base import Score
from modelpress_runner.export.formats import Form, exports, format_of, write_export
from modelpress_runner.export.weights import safetensors_bytes
from modelpress_runner.measure import counts
from modelpress_runner.measure.static import Timed, static_metrics, timed_metrics
from modelpress_runner.methods.context import Measures, Tables
from modelpress_runner.runtime import distributed as ranks
from modelpress_runner.runtime.example_inputs import batch_size
from modelpress_runner.subject.subject import Subject

Metrics = dict[str, float]
GIVE_INPUTS = "give the Subject example_inputs, the evaluator a dummy_input, or the CompressionModule example_inputs()"


@dataclass
class Measured:
    """What was measured of both models.

    Attributes:
        baseline: the dense model's metrics by name.
        compressed: the compressed model's.
        timing: how latency was measured, with its spread; empty: it was not.
        score: the evaluator's score of the compressed model.
        made: files of the compressed model that the target made, by their name in the artifact.
    """

    baseline: Metrics
    compressed: Metrics
    timing: dict[str, Any] = field(default_factory=dict)
    score: Score = field(default_factory=dict)
    made: dict[str, Path] = field(default_factory=dict)

    @property
    def smaller(self) -> bool:
        """Whether something measured is smaller or faster than before."""
        return is_smaller(self.baseline, self.compressed, latency_margin(self.timing))


class Measuring:
    """Scores, counts and times models in the form that the recipe's target names.

    Args:
        spec: the recipe: target, benchmark and seed.
        subject: evaluator and example inputs.
        timed: whether latency is measured, if there is an example input; else a note says why it is not.
        asked: whether somebody asked for it: then an example input is needed.

    Raises:
        InvalidModelError: the target is a program, or a latency was asked for, and there is no example input.
        InvalidSpecError: the target is transformers, and the model does not come from there.
    """

    def __init__(self, spec: CompressionJobSpec, subject: Subject, timed: bool, asked: bool = False) -> None:
        self._spec = spec
        self._evaluator, self._dummy_input, self._layout = subject.evaluator, subject.dummy_input, subject.layout
        self._format = format_of(spec.target.format)
        self._format.check(self._layout)
        self._exports = exports(spec.export.formats, spec.target.format)
        for each in self._exports:
            each.check(self._layout, "spec.export.formats")
        if timed and spec.target.device == "cuda" and not torch.cuda.is_available():
            message = "latency is to be measured on a GPU, and this process sees none; write cpu, or give it one"
            raise InvalidSpecError(message, "spec.target.device")
        if self._dummy_input is None and (asked or self._format.needs_example):
            raise InvalidModelError(
                f"there is no example input to measure with; {GIVE_INPUTS}",
                "spec.benchmark" if asked else "spec.target.format",
            )
        self._timed = timed and self._dummy_input is not None
        untimed = timed and not self._timed
        self._notes = [f"Latency was not measured, as there is no example input; {GIVE_INPUTS}"] if untimed else []

    def dense(self, model: nn.Module) -> Metrics:
        """Score and counts of the dense model: everything that does not depend on a clock."""
        with self._form(model) as form:
            return {**self._scored(form.model), **self._counted(model, form, None)}

    def compressed(self, outcome: RecipeOutcome, dense: nn.Module, baseline: Metrics, folder: Path) -> Measured:
        """Score, counts and, where asked for, times of the compressed model beside the dense one.

        Args:
            outcome: the recipe's.
            dense: the dense model, for timing both in turn.
            baseline: what `dense` gave for it.
            folder: where files of it may be left.
        """
        outcome.notes += self._notes
        keep = None if self._format.file is None else folder / self._format.file
        with self._form(outcome.model, keep) as form:
            score = self._scored(form.model)
            counted = self._counted(outcome.model, form, baseline)
            made = {} if keep is None else {path.name: path for path in self._format.files(keep)}
            measured = Measured(dict(baseline), {**score, **counted}, score=score, made=made)
            if self._timed:
                # On rank 0 alone: processes side by side would slow each other down.
                timed = Timed(**ranks.on_rank_zero(lambda: vars(self._time(dense, form.model, measured))))
                measured.baseline |= timed.baseline
                measured.compressed |= timed.compressed
                measured.timing = {**timed.detail, "target": self._format.name}
        return measured

    def try_exports(self, model: nn.Module) -> None:
        """Writes what the artifact will hold once, of the dense model: what cannot be is said before a long run.

        Raises:
            CompressionError: the model has no such form.
            InvalidModelError: there is no example input to write it with.
        """
        for each in self._exports:
            if each is not self._format:
                with tempfile.TemporaryDirectory(prefix="modelpress-export-") as folder:
                    write_export(
                        each, model, self._dummy_input, Path(folder), self._layout, self._spec.export.free_axes()
                    )

    def measures(self, tables: Tables | None = None) -> Measures:
        """What stages measure models with, in the target's format; figures are kept in `tables`."""
        target, benchmark = self._spec.target, self._spec.benchmark
        machine = f"{platform.machine()} {platform.processor()} {os.cpu_count()}"
        return Measures(
            self._of,
            f"{target.to_dict()} {benchmark.to_dict()} {machine} torch {torch.__version__}",
            tables,
            self._spec.export.free_axes(),
            self._latency,
            benchmark.batch_size,
            self._timed and self._format.name == "eager",
        )

    def after_stage(self, dense: nn.Module) -> Callable[[nn.Module], Metrics]:
        """A function model -> metrics for the records of stages: macs; of an eager target sizeBytes and latencyMs, too.

        What a stage leaves behind is no program yet, and a program for each stage would cost more than it tells.

        Args:
            dense: the dense model, timed in turn with the other.
        """
        counted = static_counts(self._dummy_input)
        if self._format.name != "eager":
            return counted
        brief = {"iterations": min(self._spec.benchmark.iterations, _BRIEF), "warmup": 2}
        benchmark = self._spec.benchmark.model_copy(update=brief)

        def measure(model: nn.Module) -> Metrics:
            found = {**counted(model), "sizeBytes": float(safetensors_bytes(model))}
            if self._timed:
                device = self._spec.target.device
                timed = ranks.on_rank_zero(
                    lambda: timed_metrics(dense, model, self._dummy_input, benchmark, device).compressed
                )
                found["latencyMs"] = timed["latencyMs"]
            return found

        return measure

    def _of(self, metric: str, models: Sequence[nn.Module]) -> list[float]:
        if metric == "parameters":
            return [float(counts.parameters(model)) for model in models]
        if metric == "macs":
            return [float(counts.macs(model, self._dummy_input)) for model in models]
        with contextlib.ExitStack() as stack:
            forms = [stack.enter_context(self._form(model)) for model in models]
            if metric == "sizeBytes":
                return [float(form.size) for form in forms]
            first, second = (form.model for form in forms)
            timed = timed_metrics(first, second, self._dummy_input, self._spec.benchmark, self._spec.target.device)
            return [timed.baseline[metric], timed.compressed[metric]]

    def _latency(self, one: nn.Module, other: nn.Module, inputs: Any) -> tuple[float, float]:
        """As Measures.latency; the inputs are taken as they are."""
        benchmark = self._spec.benchmark.model_copy(update={"batch_size": batch_size(inputs)})
        with self._format.form(one, inputs) as first, self._format.form(other, inputs) as second:
            timed = timed_metrics(first.model, second.model, inputs, benchmark, self._spec.target.device)
        return timed.baseline["latencyMs"], timed.compressed["latencyMs"]

    def _time(self, dense: nn.Module, compressed: nn.Module, measured: Measured) -> Timed:
        from modelpress.search import ConstraintError, Spread, verdict  # only what is timed is judged here

        spec = self._spec

        def is_settled(timed: Timed) -> bool:
            """Whether no constraint is left open."""
            baseline, result = {**measured.baseline, **timed.baseline}, {**measured.compressed, **timed.compressed}
            try:
                return not verdict(spec.constraints, spec.metrics, baseline, result, Spread.of(timed.detail)).uncertain
            except ConstraintError:  # said when the result is judged
                return True

        with self._form(dense) as form:
            device = spec.target.device
            inputs, benchmark = self._dummy_input, spec.benchmark
            return timed_metrics(form.model, compressed, inputs, benchmark, device, is_settled=is_settled)

    def _form(self, model: nn.Module, keep: Path | None = None) -> contextlib.AbstractContextManager[Form]:
        """The model as the target has it."""
        return self._format.form(model, self._dummy_input, self._layout, keep, self._spec.export.free_axes())

    def _counted(self, model: nn.Module, form: Form, baseline: Metrics | None) -> Metrics:
        dense = {} if baseline is None else {name: baseline.get(key) for name, key in _DENSE.items()}
        return static_metrics(model, self._dummy_input, size=form.size, **dense)

    def _scored(self, model: nn.Module) -> Score:
        if self._evaluator is None or not self._evaluator.can_evaluate:
            return {}
        return score_aside(self._evaluator, model, self._spec.seed)


_BRIEF = 10  # calls that a stage is timed by
_DENSE = {"dense_parameters": "parameters", "dense_size": "sizeBytes"}


def static_counts(dummy_input: Any) -> Callable[[nn.Module], Metrics]:
    """A function model -> {"macs"} for the records of stages; counts nothing without example inputs."""

    def count(model: nn.Module) -> Metrics:
        return {} if dummy_input is None else {"macs": float(counts.macs(model, dummy_input))}

    return count


def latency_margin(timing: Mapping[str, Any]) -> float:
    """By how many ms a median must be lower to count: the larger of both interquartile ranges."""
    return max((timing[side]["iqrMs"] for side in ("dense", "compressed") if side in timing), default=0.0)


def is_smaller(baseline: Mapping[str, float], compressed: Mapping[str, float], margin: float = 0.0) -> bool:
    """Whether the compressed model has fewer parameters, MACs or bytes, or is faster by more than `margin` (ms)."""
    for name in ("parameters", "macs", "sizeBytes"):
        if name in baseline and name in compressed and compressed[name] < baseline[name]:
            return True
    if "latencyMs" in baseline and "latencyMs" in compressed:
        return compressed["latencyMs"] + margin < baseline["latencyMs"]
    return False
