"""Measures of a run: the dense model's, the compressed model's, and what follows from the two."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from modelpress.api.v1alpha1 import CompressionJobSpec
from modelpress_runner.engine.run import Outcome, score_aside
from modelpress_runner.errors import CompressionError, InvalidModelError, InvalidSpecError
from modelpress_runner.evaluators.base import Score
from modelpress_runner.export.layout import Layout, LayoutError
from modelpress_runner.export.pt2.program import NotPortableError, export_program, open_program
from modelpress_runner.measure import counts
from modelpress_runner.measure import static as measure
from modelpress_runner.runtime import distributed as ranks
from modelpress_runner.subject.subject import Subject

Metrics = dict[str, float]
MEASURED_PROGRAM = "measured.pt2"


@dataclass
class Measured:
    """What was measured of both models.

    Attributes:
        baseline: the dense model's metrics by name.
        compressed: the compressed model's.
        timing: how latency was measured, with its spread; empty: it was not.
        score: the evaluator's score of the compressed model.
        program: the compressed model as a program, where the target made one.
    """

    baseline: Metrics
    compressed: Metrics
    timing: dict[str, Any] = field(default_factory=dict)
    score: Score = field(default_factory=dict)
    program: Path | None = None

    @property
    def smaller(self) -> bool:
        """Whether something measured is smaller or faster than before."""
        return is_smaller(self.baseline, self.compressed, latency_margin(self.timing))


class Measuring:
    """Scores, counts and times models in the form that the recipe's target names.

    Args:
        spec: the recipe: target, benchmark and seed.
        subject: evaluator and example inputs.
        timed: whether latency is measured.

    Raises:
        InvalidModelError: something has to be measured with an example input, and there is none.
        InvalidSpecError: the target is transformers, and the model does not come from there.
    """

    def __init__(self, spec: CompressionJobSpec, subject: Subject, timed: bool) -> None:
        self._spec, self._timed = spec, timed
        self._evaluator, self._dummy_input = subject.evaluator, subject.dummy_input
        self._is_program, self._layout = spec.target.format == "pt2", subject.layout
        if spec.target.format == "transformers" and self._layout is None:
            message = "only a model that is given as huggingFace has this form; use eager or pt2"
            raise InvalidSpecError(message, "spec.target.format")
        if self._dummy_input is None and (timed or self._is_program):
            raise InvalidModelError(
                "there is no example input to measure with; give the Subject example_inputs, or the evaluator a "
                "dummy_input",
                "spec.benchmark" if timed else "spec.target.format",
            )

    def dense(self, model: nn.Module) -> Metrics:
        """Score and counts of the dense model: everything that does not depend on a clock."""
        with self._form(model, None) as form:
            return {**self._scored(form.model), **self._counted(model, form, None)}

    def compressed(self, outcome: Outcome, dense: nn.Module, baseline: Metrics, folder: Path) -> Measured:
        """Score, counts and, where asked for, times of the compressed model beside the dense one.

        Args:
            outcome: the recipe's.
            dense: the dense model, for timing both in turn.
            baseline: what `dense` gave for it.
            folder: where a program may be left.
        """
        with self._form(outcome.model, folder / MEASURED_PROGRAM) as form:
            score = self._scored(form.model)
            counted = self._counted(outcome.model, form, baseline)
            measured = Measured(dict(baseline), {**score, **counted}, score=score, program=form.program)
            if self._timed:
                # On rank 0 alone: processes side by side would slow each other down.
                timed = measure.Timed(
                    **ranks.by_main(
                        lambda: vars(
                            measure.timed_metrics(
                                dense, form.model, self._dummy_input, self._spec.target, self._spec.benchmark
                            )
                        )
                    )
                )
                measured.baseline |= timed.baseline
                measured.compressed |= timed.compressed
                measured.timing = timed.detail
        return measured

    @contextlib.contextmanager
    def _form(self, model: nn.Module, path: Path | None) -> Iterator[_Form]:
        """The model as the target has it."""
        if self._spec.target.format == "transformers":
            assert self._layout is not None
            with tempfile.TemporaryDirectory(prefix="modelpress-measure-") as folder:
                yield self._read_back(model, self._layout, Path(folder) / self._layout.name)
            return
        if not self._is_program:
            yield _Form(model)
            return
        with tempfile.TemporaryDirectory(prefix="modelpress-measure-") as folder:
            path = path or Path(folder) / MEASURED_PROGRAM
            try:
                export_program(model, self._dummy_input, path)
            except NotPortableError as error:
                raise CompressionError(
                    f"the model does not export ({error.reason}); make it exportable, or measure it with eager",
                    "spec.target.format",
                ) from error
            yield _Form(open_program(path), path, path.stat().st_size)

    def _read_back(self, model: nn.Module, layout: Layout, folder: Path) -> _Form:
        try:
            layout.write(model, self._dummy_input, folder)
        except LayoutError as error:
            message = f"the model cannot be measured as {layout.name} has it: {error}; use eager or pt2"
            raise CompressionError(message, "spec.target.format") from error
        size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        return _Form(layout.open(folder), size=size)

    def _counted(self, model: nn.Module, form: _Form, baseline: Metrics | None) -> Metrics:
        dense = {} if baseline is None else {name: baseline.get(key) for name, key in _DENSE.items()}
        if self._dummy_input is not None:
            return measure.static_metrics(model, self._dummy_input, self._spec.target, **dense, size=form.size)
        return _counted_without_input(model, **dense)

    def _scored(self, model: nn.Module) -> Score:
        if self._evaluator is None or not self._evaluator.can_evaluate:
            return {}
        return score_aside(self._evaluator, model, self._spec.seed)


@dataclass(frozen=True)
class _Form:
    """A model as it is measured, its program where it is one, and its size on disk where that is not the module's."""

    model: nn.Module
    program: Path | None = None
    size: int | None = None


_DENSE = {"dense_parameters": "parameters", "dense_size": "sizeBytes"}


def _counted_without_input(
    model: nn.Module, dense_parameters: float | None = None, dense_size: float | None = None
) -> Metrics:
    """The static metrics but for macs, of a model that nobody knows how to call."""
    total, nonzero = counts.parameters(model), counts.nonzero_parameters(model)
    size = counts.safetensors_bytes(model)
    dense = total if dense_parameters is None else dense_parameters
    metrics = {
        "parameters": float(total),
        "nonzeroParameters": float(nonzero),
        "sizeBytes": float(size),
        "sparsity": 1 - nonzero / dense if dense else 0.0,
    }
    return metrics if dense_size is None else {**metrics, "compressionRatio": dense_size / size}


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
