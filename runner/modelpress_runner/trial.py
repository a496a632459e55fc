"""A trial and the preparation of a sweep, from request to committed artefact."""

from __future__ import annotations

import copy
import difflib
import logging
import tempfile
from pathlib import Path

from torch import nn

from modelpress.api.v1alpha1 import MEASURED, CompressionJobSpec, reasons
from modelpress.request import RunRequest
from modelpress.result import RunResult
from modelpress.search import ConstraintError, judge
from modelpress.store.base import ArtifactStore
from modelpress_runner import code, seeding, upload
from modelpress_runner.checkpoint import Checkpointer
from modelpress_runner.dense import Dense, DenseCache
from modelpress_runner.engine import plan_stages, run_stages
from modelpress_runner.entrypoint import find
from modelpress_runner.errors import InvalidModelError, InvalidSpecError
from modelpress_runner.identity import checkpoint_identity, dense_digest
from modelpress_runner.progress import Report
from modelpress_runner.results import Measuring, static_counts
from modelpress_runner.stopping import StopFlag

log = logging.getLogger("modelpress")


def prepare(request: RunRequest, store: ArtifactStore, progress: Report, stop: StopFlag) -> RunResult:
    """Builds the dense model and its baseline unless the store has them."""
    dense, code_digest = _dense(request, store, stop, timed=False)
    found = "was there already" if dense.cached else "is built"
    return RunResult(
        phase="Succeeded",
        reason=reasons.SUCCEEDED,
        message=f"the dense model {found}",
        code_digest=code_digest or None,
        baseline=dense.baseline,
    )


def run(request: RunRequest, store: ArtifactStore, progress: Report, stop: StopFlag) -> RunResult:
    """Compresses, measures, writes the artefact and commits it."""
    spec = request.spec
    dense, code_digest = _dense(request, store, stop, timed=True)
    for note in dense.notes:
        log.warning("%s", note)
    subject = dense.subject
    # What cannot work is said before anything is trained.
    plan_stages(subject, spec.stages)
    _check_constraints(spec, dense.baseline)
    measuring = Measuring(spec, subject, timed=True)
    original = _copy(subject.model)
    identity = checkpoint_identity(spec, f"{dense.digest} {code_digest}")
    checkpointer = Checkpointer(store, request.prefix, identity, request.attempt)
    outcome = run_stages(
        subject,
        spec.stages,
        seed=spec.seed,
        checkpointer=checkpointer,
        report=progress,
        stop=stop,
        static=static_counts(subject.dummy_input),
    )
    with stop.at_once(), tempfile.TemporaryDirectory(prefix="modelpress-") as folder:
        seeding.seed_all(spec.seed)
        log.info("measuring the dense and the compressed model")
        measured = measuring.compressed(outcome, original, dense.baseline, Path(folder))
        violations = judge(spec.constraints or [], spec.metrics or {}, measured.baseline, measured.compressed)
        notes = [*dense.notes, *outcome.notes]
        log.info("writing the artefact")
        files = Path(folder) / "artefact"
        written = upload.write(files, request, outcome, measured, subject.dummy_input, notes)
        digest, ours = upload.commit(store, request, written, measured, outcome, code_digest)
    checkpointer.delete()
    if not ours:
        from modelpress_runner.collect import collect

        log.warning("another attempt had committed its result before; that one is reported")
        return collect(request, store)
    return RunResult(
        phase="Succeeded",
        reason=reasons.SUCCEEDED,
        message=_summary(measured.baseline, measured.compressed),
        manifest_digest=digest,
        code_digest=code_digest or None,
        baseline=measured.baseline,
        compressed=measured.compressed,
        constraints_met=None if not spec.constraints else not violations,
        unmet=[violation.sentence for violation in violations],
        smaller=measured.smaller,
        portable=written.portable,
        portable_reason=written.portable_reason,
    )


def _dense(request: RunRequest, store: ArtifactStore, stop: StopFlag, timed: bool) -> tuple[Dense, str]:
    spec, path = request.spec, request.code_path
    code.use(path)
    code_digest = code.digest(path, spec.model.entrypoint.partition(":")[0])
    seeding.seed_all(spec.seed)
    entry = find(spec.model, path)
    cache = DenseCache(store, request.root, dense_digest(spec, code_digest))
    log.info("building the dense model")
    return cache.obtain(spec, entry, path, stop, timed), code_digest


def _check_constraints(spec: CompressionJobSpec, baseline: dict[str, float]) -> None:
    """Raises InvalidSpecError if a constraint can never be judged: an unknown metric, a loss relative to zero."""
    for index, constraint in enumerate(spec.constraints or []):
        if constraint.metric not in baseline and constraint.metric not in MEASURED:
            near = difflib.get_close_matches(constraint.metric, [*baseline, *MEASURED], n=1)
            hint = f"did you mean {near[0]}?" if near else f"it returns {', '.join(baseline) or 'none'}"
            raise InvalidSpecError(
                f"the evaluator returns no metric {constraint.metric!r}; {hint}", f"spec.constraints[{index}].metric"
            )
    try:
        # Measured metrics that are not known yet stand in as 1: only what can be judged matters here.
        known = {**dict.fromkeys(MEASURED, 1.0), **baseline}
        judge(spec.constraints or [], spec.metrics or {}, known, known)
    except ConstraintError as error:
        raise InvalidSpecError(error.message, error.path) from error


def _copy(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except Exception as error:
        raise InvalidModelError(
            f"the model cannot be copied ({type(error).__name__}: {error}); a tensor attribute that is the result of a "
            "computation must be a buffer or be detached",
            "spec.model.entrypoint",
        ) from error


def _summary(baseline: dict[str, float], compressed: dict[str, float]) -> str:
    parts: list[str] = []
    for name, label in (("default", "score"), ("parameters", "parameters"), ("macs", "MACs"), ("latencyMs", "ms")):
        if name in baseline and name in compressed:
            parts.append(f"{label} {baseline[name]:.6g} -> {compressed[name]:.6g}")
    return "; ".join(parts)
