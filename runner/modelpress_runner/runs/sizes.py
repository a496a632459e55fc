"""Several sizes in one job: the recipe is run for each of its budgets, and one of the artifacts is the job's own."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pydantic.alias_generators import to_snake

from modelpress.api.v1alpha1 import CompressionJobSpec
from modelpress.request import RunRequest
from modelpress.result import RunResult
from modelpress.results.collect import collect
from modelpress.store import layout, manifest
from modelpress.store.base import ArtifactStore
from modelpress_runner import stages
from modelpress_runner.artifact import files as artifact
from modelpress_runner.errors import StoreError

log = logging.getLogger("modelpress")


def variants(spec: CompressionJobSpec) -> list[CompressionJobSpec]:
    """The recipe for each size that one of its stages makes, as if it were the only one, largest first; [] for one."""
    for index, stage in enumerate(spec.stages):
        if blocks := stages.kind(stage.method).sizes(stage.block):
            before, after = spec.stages[:index], spec.stages[index + 1 :]
            made = [stage.model_copy(update={to_snake(stage.method): block}) for block in blocks]
            return [spec.model_copy(update={"stages": [*before, one, *after]}) for one in made]
    return []


def run_sizes(
    request: RunRequest,
    store: ArtifactStore,
    sizes: Sequence[CompressionJobSpec],
    run: Callable[[RunRequest], RunResult],
) -> RunResult:
    """Runs the recipe for each size, each below a prefix of its own, and commits the best one's artifact as the job's.

    A size that was committed before, by an attempt that was cut short later, is not run again.

    Args:
        run: runs one request to its committed artifact.

    Returns:
        The result of the size that is the job's own.
    """
    results: list[RunResult] = []
    requests = []
    for number, spec in enumerate(sizes):
        one = request.model_copy(update={"spec": spec, "prefix": layout.size_prefix(request.prefix, number)})
        requests.append(one)
        if manifest.read(store, one.prefix) is None:
            log.info("size %d of %d", number + 1, len(sizes))
            results.append(run(one))
        else:
            results.append(collect(one, store))
    best = choose(results)
    digest = _commit(request, store, requests, results, best)
    message = f"size {best + 1} of {len(sizes)}: {results[best].message}"
    return results[best].model_copy(update={"manifest_digest": digest, "message": message})


def choose(results: Sequence[RunResult]) -> int:
    """Which size is the job's own: the smallest that meets all constraints; where none does, the largest."""
    meeting = [number for number, result in enumerate(results) if result.constraints_met in (True, None)]
    return max(meeting, default=0)


def _commit(
    request: RunRequest,
    store: ArtifactStore,
    requests: Sequence[RunRequest],
    results: Sequence[RunResult],
    best: int,
) -> str:
    """Copies the artifact of the best one to the job's place, with a list of all, and commits it; its digest."""
    found = manifest.read(store, requests[best].prefix)
    if found is None:
        raise StoreError(f"{store.uri}/{requests[best].prefix}/{layout.MANIFEST} was there, and is gone")
    standing, _ = found
    folder = layout.attempt_folder(request.attempt, request.run_uid)
    entries = []
    for entry in standing.files:
        path = layout.join(folder, standing.name_of(entry))
        store.copy(layout.join(requests[best].prefix, entry.path), layout.join(request.prefix, path))
        entries.append(entry.model_copy(update={"path": path}))
    with tempfile.TemporaryDirectory(prefix="modelpress-sizes-") as local:
        record = Path(local) / layout.SIZES_RECORD
        record.write_text(_listed(request, results, best), encoding="utf-8")
        entries.append(manifest.entry(layout.join(folder, layout.SIZES_RECORD), record))
        store.put_file(layout.join(request.prefix, entries[-1].path), record)
    ours = standing.model_copy(
        update={"attempt": request.attempt, "files": entries, "spec_digest": artifact.spec_digest(request.spec)}
    )
    winner, digest = manifest.commit(store, request.prefix, ours)
    if winner.folder != folder:
        store.delete_prefix(layout.join(request.prefix, folder))
    return digest


def _listed(request: RunRequest, results: Sequence[RunResult], best: int) -> str:
    budgets = next(s.prune.budgets for s in request.spec.stages if s.prune is not None and s.prune.budgets is not None)
    out: list[dict[str, Any]] = [
        {
            "budget": budget.to_dict(),
            "folder": f"{layout.SIZES}/{number:02d}",
            "manifestDigest": result.manifest_digest,
            "metrics": {"baseline": result.baseline, "compressed": result.compressed},
            "constraintsMet": result.constraints_met,
            "best": number == best,
        }
        for number, (budget, result) in enumerate(zip(budgets, results, strict=True))
    ]
    return json.dumps({"sizes": out}, indent=2, sort_keys=True, allow_nan=False) + "\n"
