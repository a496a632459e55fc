"""A trial and the preparation of a sweep, from request to committed artifact."""

from __future__ import annotations

import contextlib
import difflib
import logging
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from modelpress.api.v1alpha1 import DEFAULT_METRIC, MEASURED, CompressionJobSpec, reasons
from modelpress.request import RunRequest
from modelpress.result import RunResult, missed_by_tuning
from modelpress.search import ConstraintError, Spread, goal_of, judge, verdict
from modelpress.store.base import ArtifactStore
from modelpress_runner.artifact import commit as upload
from modelpress_runner.artifact.identity import checkpoint_identity, dense_digest, stages_identity
from modelpress_runner.edits.copies import check_copies, copied
from modelpress_runner.engine.checkpoint import Checkpointer
from modelpress_runner.engine.outcome import RecipeOutcome
from modelpress_runner.engine.plan import plan_stages
from modelpress_runner.engine.run import run_stages
from modelpress_runner.engine.stage_cache import StageCache
from modelpress_runner.errors import InvalidSpecError
from modelpress_runner.in_process.reporting import reporting
from modelpress_runner.inputs.gather import Inputs, gathered
from modelpress_runner.measure.measuring import GIVE_INPUTS, Measured, Measuring
from modelpress_runner.process.progress import EventCallback
from modelpress_runner.process.stopping import StopFlag
from modelpress_runner.runs.dense import Dense, DenseCache
from modelpress_runner.runs.shared_files import StoredFiles
from modelpress_runner.runs.sizes import run_sizes, variants
from modelpress_runner.runs.tables import StoreTables
from modelpress_runner.runtime import distributed as ranks
from modelpress_runner.runtime import rng
from modelpress_runner.subject.entrypoint import ModelSource, find
from modelpress_runner.subject.subject import Subject
from modelpress_runner.usercode import location as code

log = logging.getLogger("modelpress")


def prepare(request: RunRequest, store: ArtifactStore, progress: EventCallback, stop: StopFlag) -> RunResult:
    """Builds the dense model and its baseline unless the store has them."""
    if request.spec.model.script is not None:
        from modelpress_runner.runs import script

        return script.prepare(request, store, stop)
    with _inputs(request, stop) as inputs:
        dense, code_digest = _dense(request, inputs, store, stop, timed=False)
        check_copies(dense.subject.model, "spec.model")
        check_constraints(request.spec, dense.baseline)
    check_objectives(request, dense.baseline)
    found = "was there already" if dense.cached else "is built"
    return RunResult(
        phase="Succeeded",
        reason=reasons.SUCCEEDED,
        message=f"the dense model {found}",
        code_digest=code_digest or None,
        baseline=dense.baseline,
    )


def run(request: RunRequest, store: ArtifactStore, progress: EventCallback, stop: StopFlag) -> RunResult:
    """Compresses, measures, writes the artifact and commits it.

    In a process group all ranks do so in step, until the numbers are there; what is left is rank 0's, and its result
    counts.
    """
    if request.spec.model.script is not None:
        from modelpress_runner.runs import script

        return script.run(request, store, progress, stop)
    sizes = variants(request.spec)
    with _inputs(request, stop) as inputs:
        if not sizes:
            return _run(request, inputs, store, progress, stop)
        if ranks.is_distributed():
            message = "several sizes are made one after the other by one process; give one budget, or one process"
            raise InvalidSpecError(message, "spec.runner")
        return run_sizes(request, store, sizes, lambda each: _run(each, inputs, store, progress, stop))


def _run(
    request: RunRequest, inputs: Inputs, store: ArtifactStore, progress: EventCallback, stop: StopFlag
) -> RunResult:
    spec, main = request.spec, ranks.is_rank_zero()
    dense, code_digest = _dense(request, inputs, store, stop, timed=True)
    for note in dense.notes:
        log.warning("%s", note)
    subject = dense.subject
    subject.sources = inputs.sources
    # What cannot work is said before anything is trained.
    plan_stages(subject, spec.stages)
    check_constraints(spec, dense.baseline)
    check_objectives(request, dense.baseline)
    measuring = Measuring(spec, subject, timed=True)
    original = copied(subject.model, "spec.model")
    measuring.try_exports(original)
    made_of = f"{dense.digest} {code_digest} {inputs.digest}"
    identity = checkpoint_identity(spec, made_of)
    checkpointer = Checkpointer(store, request.prefix, identity, request.attempt)
    shared = 0 if request.trial is None else request.trial.shared_stages
    cache = StageCache(store, request.root, stages_identity(spec, made_of, ranks.world_size()), shared)
    with reporting(progress) as events:
        outcome = run_stages(
            subject,
            spec.stages,
            seed=spec.seed,
            checkpointer=checkpointer,
            cache=cache,
            report=events,
            stop=stop,
            static=measuring.after_stage(original),
            goal=goal_of(DEFAULT_METRIC, spec.metrics),
            measures=measuring.measures(StoreTables(store, dense.folder)),
            dense=original,
            target_device=spec.target.device,
            uniform=spec.target.uniform,
            files=None if request.trial is None else StoredFiles(store, request.root),
        )
    with stop.at_once(), tempfile.TemporaryDirectory(prefix="modelpress-") as folder:
        rng.seed_all(spec.seed)
        log.info("measuring the dense and the compressed model")
        measured = measuring.compressed(outcome, original, dense.baseline, Path(folder))
        ranks.destroy_process_group()
        if not main:
            return RunResult(phase="Succeeded", reason=reasons.SUCCEEDED, message="rank 0 writes the artifact")
        made = FinishedRun(outcome, measured, subject, [*dense.notes, *outcome.notes], code_digest)
        return finish(request, store, made, checkpointer, Path(folder))


@dataclass(frozen=True)
class FinishedRun:
    """What a run made, with everything that its artifact needs."""

    outcome: RecipeOutcome
    measured: Measured
    subject: Subject
    notes: list[str]
    code_digest: str


def finish(
    request: RunRequest, store: ArtifactStore, made: FinishedRun, checkpointer: Checkpointer, folder: Path
) -> RunResult:
    """Judges the constraints, writes the artifact and commits it.

    Args:
        request: the run.
        store: where the artifact goes.
        made: what it is of.
        checkpointer: its checkpoints are deleted behind the commit.
        folder: for the files before they are uploaded.
    """
    spec, measured = request.spec, made.measured
    spread = Spread.of(measured.timing)
    judged = verdict(spec.constraints, spec.metrics, measured.baseline, measured.compressed, spread)
    tuning = missed_by_tuning(made.outcome.stages)
    log.info("writing the artifact")
    written = upload.write(folder / "artifact", request, made.outcome, measured, made.subject, made.notes)
    digest, ours = upload.commit(store, request, written, measured, made.outcome, made.code_digest)
    checkpointer.delete()
    if not ours:
        from modelpress.results.collect import collect

        log.warning("another attempt had committed its result before; that one is reported")
        return collect(request, store)
    return RunResult(
        phase="Succeeded",
        reason=reasons.SUCCEEDED,
        message=_summary(measured.baseline, measured.compressed),
        manifest_digest=digest,
        code_digest=made.code_digest or None,
        baseline=measured.baseline,
        compressed=measured.compressed,
        constraints_met=judged.met and not tuning if spec.constraints or tuning is not None else None,
        unmet=[*(violation.sentence for violation in judged.missed), *(tuning or ())],
        uncertain=list(judged.uncertain),
        smaller=measured.smaller,
        portable=written.portable,
        portable_reason=written.portable_reason,
    )


@contextlib.contextmanager
def _inputs(request: RunRequest, stop: StopFlag) -> Iterator[Inputs]:
    """The files that the recipe names; a signal while they are fetched ends the run at once."""
    with contextlib.ExitStack() as stack:
        with stop.at_once():
            found = stack.enter_context(gathered(request.spec, request.base_path or request.code_path))
        yield found


def _dense(request: RunRequest, inputs: Inputs, store: ArtifactStore, stop: StopFlag, timed: bool) -> tuple[Dense, str]:
    spec, path = request.spec, request.code_path
    code.use(path)
    code_digest = code.digest(path, (spec.model.entrypoint or "").partition(":")[0])
    rng.seed_all(spec.seed)
    entry = model_source(spec, path, inputs)
    cache = DenseCache(store, request.root, dense_digest(spec, code_digest, inputs.digest))
    log.info("building the dense model")
    return cache.obtain(spec, entry, request.base_path or path, stop, timed), code_digest


def model_source(spec: CompressionJobSpec, code_path: str | None, inputs: Inputs) -> ModelSource:
    """What gives the recipe's dense model: its code, or a pretrained model."""
    if spec.model.hugging_face is None:
        return find(spec.model, code_path, None if spec.data is None else inputs.data)
    from modelpress_runner.huggingface.entry import PretrainedModel

    return PretrainedModel(spec.model.hugging_face, inputs)


def check_objectives(request: RunRequest, baseline: dict[str, float]) -> None:
    """Raises InvalidSpecError if the sweep optimises a metric that no trial will have: it would search at random."""
    constrained = {constraint.metric for constraint in request.spec.constraints or ()}
    for metric in request.keep_metrics or ():
        if metric not in constrained and metric not in baseline and metric not in MEASURED:
            raise InvalidSpecError(_unknown(metric, baseline), "spec.objectives")


_WITH_INPUTS = frozenset({"macs", "latencyMs", "throughput", "speedup"})


def check_constraints(spec: CompressionJobSpec, baseline: dict[str, float]) -> None:
    """Raises InvalidSpecError if a constraint can never be judged: an unknown metric, a loss relative to zero."""
    for index, constraint in enumerate(spec.constraints or []):
        if "macs" not in baseline and constraint.metric in _WITH_INPUTS:
            raise InvalidSpecError(
                f"{constraint.metric} is measured with an example input, and there is none; {GIVE_INPUTS}",
                f"spec.constraints[{index}].metric",
            )
        if constraint.metric not in baseline and constraint.metric not in MEASURED:
            raise InvalidSpecError(_unknown(constraint.metric, baseline), f"spec.constraints[{index}].metric")
    try:
        # Measured metrics that are not known yet stand in as 1: only what can be judged matters here.
        known = {**dict.fromkeys(MEASURED, 1.0), **baseline}
        judge(spec.constraints or [], spec.metrics or {}, known, known)
    except ConstraintError as error:
        raise InvalidSpecError(error.message, error.path) from error


def _unknown(metric: str, baseline: dict[str, float]) -> str:
    near = difflib.get_close_matches(metric, [*baseline, *MEASURED], n=1)
    hint = f"did you mean {near[0]}?" if near else f"it returns {', '.join(baseline) or 'none'}"
    return f"the evaluator returns no metric {metric!r}; {hint}"


def _summary(baseline: dict[str, float], compressed: dict[str, float]) -> str:
    parts: list[str] = []
    for name, label in (("default", "score"), ("parameters", "parameters"), ("macs", "MACs"), ("latencyMs", "ms")):
        if name in baseline and name in compressed:
            parts.append(f"{label} {baseline[name]:.6g} -> {compressed[name]:.6g}")
    return "; ".join(parts)
