"""mp.compress: the recipe of a CompressionJob on a model in memory."""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from modelpress.api.errors import SpecError
from modelpress.api.load import load_dict
from modelpress.api.semantic import job_problems
from modelpress.api.v1alpha1 import API_VERSION, ApiModel, CompressionJob, CompressionJobSpec
from modelpress_runner.artifact.identity import checkpoint_identity
from modelpress_runner.edits.base import Edit
from modelpress_runner.edits.copies import copied
from modelpress_runner.edits.cuts import Cut
from modelpress_runner.edits.masks import Masks
from modelpress_runner.edits.wrappers import unwrapped
from modelpress_runner.engine.checkpoint import Checkpointer
from modelpress_runner.engine.outcome import RecipeOutcome
from modelpress_runner.engine.run import run_stages
from modelpress_runner.errors import InvalidModelError
from modelpress_runner.export.state import state_digest
from modelpress_runner.in_process.reporting import reporting
from modelpress_runner.measure.measuring import Measured, Measuring
from modelpress_runner.process.progress import EventCallback, silent
from modelpress_runner.runtime import rng
from modelpress_runner.runtime import user_rng as generators
from modelpress_runner.subject.subject import Subject
from modelpress_runner.training.participants import check_masks

_ENTRYPOINT = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


@dataclass
class CompressionResult:
    """What mp.compress gives.

    Attributes:
        model: the compressed model.
        metrics: {"baseline": {...}, "compressed": {...}, "stages": [...]}, by metric name.
        masks: {"conv1": {"weight": tensor}} for what is masked and not cut away: 1 = kept, shaped like the parameter.
        edits: what makes its structure of the dense one's, in order of replay.
        notes: remarks.
    """

    model: nn.Module
    metrics: dict[str, Any]
    masks: Masks
    edits: list[Edit] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    _spec: CompressionJobSpec | None = field(default=None, repr=False)
    _dummy_input: Any = field(default=None, repr=False)

    @property
    def cuts(self) -> list[Cut]:
        """Those of the edits that took channels away."""
        return [edit for edit in self.edits if isinstance(edit, Cut)]

    def save(self, uri: str | Path) -> str:
        """Writes the artifact: weights, shrink.json, program where it exports, card, manifest.json last.

        Args:
            uri: a folder or an object store's folder; mp.load opens it again.

        Returns:
            The URI.

        Raises:
            ArtifactError: another artifact is there already.
            CompressionError: the model was trained further, and pruned weights are not zero any more.
            StoreError: the store refused or failed.
        """
        from modelpress_runner.artifact import files as artifact

        check_masks(self.model, self.masks, "further training")

        assert self._spec is not None
        saved = artifact.save(
            str(uri),
            model=self.model,
            dummy_input=self._dummy_input,
            edits=self.edits,
            masks=self.masks,
            metrics=self.metrics,
            spec=self._spec,
            stages=self.metrics["stages"],
            notes=self.notes,
            timing=self.metrics.get("timing"),
        )
        return saved.uri


def compress(
    model: nn.Module,
    stages: Sequence[Mapping[str, Any] | ApiModel],
    evaluator: Any = None,
    dummy_input: Any = None,
    *,
    calibration_data: Iterable[Any] | None = None,
    seed: int = 0,
    target: Mapping[str, Any] | ApiModel | None = None,
    benchmark: Mapping[str, Any] | ApiModel | None = None,
    teacher: nn.Module | None = None,
    checkpoint: str | Path | None = None,
    report: EventCallback = silent,
) -> CompressionResult:
    """Compresses a copy of `model`; the model, its optimizers and the random numbers of the process stay as they were.

    Args:
        model: the dense model; it is taken out of DistributedDataParallel and torch.compile, inside it too.
        stages: the recipe, as under `stages` of a CompressionJob; snake_case and older tools' spellings are fine.
        evaluator: a TorchEvaluator or another Evaluator, or a function model -> number; none: nothing trains or scores.
        dummy_input: an example input, batch first; else the evaluator's.
        calibration_data: batches for methods that need to see data, each as dummy_input; a list or DataLoader. None:
            the evaluator's evaluation shows them.
        seed: equal seeds give equal results.
        target: {"format": "eager" | "pt2" | "onnxruntime" | "openvino"}: what score and size are taken of.
        benchmark: {"warmup": ..., "iterations": ..., ...}: times dense and compressed model; none: nothing is timed.
        teacher: a model that distill stages learn from; none: the dense model, unless they name another.
        checkpoint: URI of a folder for checkpoints. A call that was cut short goes on from there when it is repeated
            with the same model, recipe and seed.
        report: gets progress events, and what the user's code gives to mp.report.

    Raises:
        SpecError: the recipe is not valid.
        RunnerError: it does not fit the model, a method failed, or the user's code raised; see its subclasses.
    """
    if not isinstance(model, nn.Module):
        raise InvalidModelError(f"the model is a {type(model).__name__}; it must be a torch.nn.Module")
    model = unwrapped(model)
    spec = recipe({"entrypoint": _entrypoint(model)}, stages, seed, target, benchmark)
    subject = Subject(model, evaluator, dummy_input, calibration_data, teacher=teacher)
    given = subject.evaluator
    if given is not None:
        given.record_parameter_names(model)
    subject.model = copied(model)
    store = _checkpoints(checkpoint, spec, model, subject.teacher)
    with rng.fork_rng(), reporting(report) as events, contextlib.ExitStack() as cleanup:
        if given is not None:
            cleanup.callback(given.unbind)
            cleanup.callback(generators.restore, given.rng_roots(), generators.save(given.rng_roots()))
        subject.find_inputs()
        measuring = Measuring(spec, subject, timed=benchmark is not None, asked=benchmark is not None)
        baseline = measuring.dense(model)
        # A score between the stages costs a pass over the data: only where somebody sees it.
        shown = report is not silent
        outcome = run_stages(
            subject,
            spec.stages,
            seed=seed,
            checkpointer=store,
            report=events,
            scores=shown,
            measures=measuring.measures(),
            target_device=spec.target.device,
            uniform=spec.target.uniform,
            dense=model,
        )
        with tempfile.TemporaryDirectory(prefix="modelpress-") as folder:
            measured = measuring.compressed(outcome, model, baseline, Path(folder))
    if store is not None:
        store.delete()
    return result_of(outcome, measured, spec, subject)


def result_of(
    outcome: RecipeOutcome, measured: Measured, spec: CompressionJobSpec, subject: Subject
) -> CompressionResult:
    """What came out of a recipe, with its measures."""
    if outcome.stages and measured.score and "score" not in outcome.stages[-1]:
        outcome.stages[-1]["score"] = measured.score
    metrics: dict[str, Any] = {
        "baseline": measured.baseline,
        "compressed": measured.compressed,
        "stages": outcome.stages,
        "training": outcome.training,
    }
    if measured.timing:
        metrics["timing"] = measured.timing
    return CompressionResult(
        model=outcome.model,
        metrics=metrics,
        masks=outcome.masks,
        edits=outcome.edits,
        notes=outcome.notes,
        _spec=spec,
        _dummy_input=subject.dummy_input,
    )


def recipe(
    model: Mapping[str, Any],
    stages: Any,
    seed: int,
    target: Mapping[str, Any] | ApiModel | None,
    benchmark: Mapping[str, Any] | ApiModel | None,
) -> CompressionJobSpec:
    """The spec of a recipe that was given in Python, `model` being its block of that name.

    Raises:
        SpecError: it is not valid.
    """
    spec = {
        "model": dict(model),
        "stages": [_plain(stage) for stage in stages] if isinstance(stages, Sequence) else stages,
        "seed": seed,
        "target": _plain(target),
        "benchmark": _plain(benchmark),
    }
    job = load_dict(
        {"apiVersion": API_VERSION, "kind": "CompressionJob", "metadata": {"name": "compress"}, "spec": spec},
        python_spelling=True,
    )
    assert isinstance(job, CompressionJob)
    problems = [problem for problem in job_problems(job.spec) if problem.path.startswith("spec.stages")]
    if problems:
        raise SpecError(problems)
    return job.spec


def _entrypoint(model: nn.Module) -> str:
    kind = type(model)
    named = _ENTRYPOINT.fullmatch(kind.__module__) and _ENTRYPOINT.fullmatch(kind.__qualname__)
    return f"{kind.__module__}:{kind.__qualname__}" if named else "python:model"


def _plain(value: Any) -> Any:
    return value.to_dict() if isinstance(value, ApiModel) else value


def _checkpoints(
    uri: str | Path | None, spec: CompressionJobSpec, model: nn.Module, teacher: nn.Module | None
) -> Checkpointer | None:
    if uri is None:
        return None
    from modelpress.store import open_store

    digest = state_digest(model) + ("" if teacher is None else f" {state_digest(teacher)}")
    return Checkpointer(open_store(str(uri)), "", checkpoint_identity(spec, digest))
