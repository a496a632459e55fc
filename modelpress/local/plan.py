"""What is to be run, with all that the file leaves open settled: store, code folder, uid, state folder."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from modelpress.api.errors import Problem
from modelpress.api.semantic import job_problems, sweep_problems
from modelpress.api.semantic_locations import control_problems, uri_problems
from modelpress.api.v1alpha1 import Budget, Code, CompressionJobSpec, CompressionSweep, Runner, Store
from modelpress.api.v1alpha1.base import MAX_URI
from modelpress.request import job_root, uid8

from .cluster import Root, derived_uid
from .errors import UsageError
from .journal import Journal
from .sources import Document

DEFAULT_STORE = "modelpress-runs"
# What a user may change without it becoming another run; the API server allows the same.
MUTABLE = {"CompressionJob": ("suspend",), "CompressionSweep": ("suspend", "parallelism", "maxTrials", "budget")}


@dataclass(frozen=True)
class RunPlan:
    """One object, ready to run; it has no uid before its state folder is open."""

    obj: Root
    code_path: str | None
    base_path: str  # folder that other relative paths refer to: the code's, else the file's
    store: str  # absolute path, or URI
    states: Path  # folder of the state folders of its namespace
    problems: tuple[Problem, ...]

    @property
    def parallelism(self) -> int:
        """How many trials run at once."""
        return self.obj.spec.parallelism if isinstance(self.obj, CompressionSweep) else 1

    @property
    def runner(self) -> Runner | None:
        """How its trials run."""
        spec = self.obj.spec.template.spec if isinstance(self.obj, CompressionSweep) else self.obj.spec
        return spec.runner


def plan_run(document: Document, *, cwd: Path, store: str | None = None, parallel: int | None = None) -> RunPlan:
    """Settle what the file leaves open.

    Args:
        cwd: what a relative store is relative to.
        store: URI that overrides spec.store.path and spec.store.uri.
        parallel: overrides a sweep's parallelism.
    """
    obj = document.obj
    problems: list[Problem] = []
    if isinstance(obj, CompressionSweep):
        recipe, where = obj.spec.template.spec, "spec.template.spec"
        problems += sweep_problems(obj.spec)
    else:
        recipe, where = obj.spec, "spec"
        problems += job_problems(obj.spec)
    problems += _suspend_problems(obj)
    settled, store_problems = _settle_store(recipe.store, store, cwd, where)
    problems += store_problems
    code_path, code_problems = _settle_code(recipe, document.folder, where)
    problems += code_problems
    recipe = recipe.model_copy(update={"store": settled})
    if isinstance(obj, CompressionSweep):
        template = obj.spec.template.model_copy(update={"spec": recipe})
        changes: dict[str, Any] = {"template": template}
        if parallel is not None:
            changes["parallelism"] = parallel
        obj = obj.model_copy(update={"spec": obj.spec.model_copy(update=changes)})
    else:
        obj = obj.model_copy(update={"spec": recipe})
    home = Path(settled.uri) if _is_path(settled.uri) else cwd / DEFAULT_STORE
    states = home / ".state" / obj.metadata.namespace
    return RunPlan(
        obj, code_path, code_path or str(document.folder), settled.uri, states, tuple(document.locate(problems))
    )


def _suspend_problems(obj: Root) -> list[Problem]:
    if not obj.spec.suspend:
        return []
    return [Problem("spec.suspend", "is true, so a local run would do nothing", "remove it or set it to false")]


def _settle_store(given: Store | None, override: str | None, cwd: Path, where: str) -> tuple[Store, list[Problem]]:
    uri, path = override or DEFAULT_STORE, "--store"
    if given is not None and not override:
        uri, path = given.path or given.uri, f"{where}.store.{'path' if given.path else 'uri'}"
    if found := list(control_problems(uri, path)):
        return Store(uri=DEFAULT_STORE), found if override else []  # of a file, job_problems says it
    if len(uri) > MAX_URI:
        return Store(uri=DEFAULT_STORE), [_too_long(path)]
    scheme, separator, rest = uri.partition("://")
    if separator and scheme == "memory":
        problem = Problem(
            path=path,
            message="memory:// ends with the process that wrote it, and every trial is a process of its own",
            fix="give a folder",
        )
        return Store(uri=uri), [problem]
    if separator and scheme == "file":
        parts = urlsplit(uri)
        if parts.netloc not in ("", "localhost") or not parts.path:
            problem = Problem(path=path, message=f"{uri} names no file on this machine", fix="write file:///folder")
            return Store(uri=uri), [problem]
        rest = unquote(parts.path)
        if "\0" in rest:
            return Store(uri=DEFAULT_STORE), list(control_problems(rest, path)) if override else []
    elif not separator:
        rest = uri
    else:
        endpoint, region = (given.endpoint, given.region) if given else (None, None)
        # Of a file, job_problems says it.
        return Store(uri=uri, endpoint=endpoint, region=region), list(uri_problems(uri, path)) if override else []
    folder = Path(rest).expanduser()
    folder = (folder if folder.is_absolute() else cwd / folder).resolve()
    # A file system has no longer names than these, and what a run writes lies below.
    if len(str(folder)) > MAX_URI or any(len(os.fsencode(part)) > 255 for part in folder.parts):
        return Store(uri=DEFAULT_STORE), [_too_long(path)]
    for ancestor in (folder, *folder.parents):
        if ancestor.exists():
            if not ancestor.is_dir():
                problem = Problem(path=path, message=f"{ancestor} is a file", fix="name a folder")
                return Store(uri=str(folder)), [problem]
            break
    return Store(uri=str(folder)), []


def _too_long(path: str) -> Problem:
    message = f"the folder's path, or a name in it, is too long: at most {MAX_URI} characters, and 255 bytes a name"
    return Problem(path=path, message=message, fix="give a folder with a shorter path")


def _settle_code(recipe: CompressionJobSpec, folder: Path, where: str) -> tuple[str | None, list[Problem]]:
    if recipe.code is None:
        return None, []
    if recipe.code.path is None:
        return None, _config_map_problems(recipe.code, where)
    if any(control_problems(recipe.code.path, "")):
        return None, []  # job_problems says it
    path = Path(recipe.code.path).expanduser()
    path = (path if path.is_absolute() else folder / path).resolve()
    if not path.is_dir():
        problem = Problem(
            path=f"{where}.code.path",
            message=f"there is no folder {path}",
            fix="name the folder that holds the entrypoint's Python file, relative to the YAML file",
        )
        return None, [problem]
    return str(path), []


def _config_map_problems(code: Code, where: str) -> list[Problem]:
    """A runner fetches code from git and from an object store itself; a ConfigMap is a cluster's."""
    if code.config_map is None:
        return []
    message = "a local run has no ConfigMaps"
    fix = "add path beside it: the folder that the ConfigMap is made from"
    return [Problem(path=f"{where}.code.configMap", message=message, fix=fix)]


def _is_path(uri: str) -> bool:
    return "://" not in uri


# Identity ------------------------------------------------------------------------------------------------------------


def local_uid(obj: Root, incarnation: int = 0) -> str:
    """The uid of an object that no API server has named: the same for the same kind, namespace, name and spec.

    Fields that may change in a running object do not count, nor does a folder as store: the state lies in it. Fields
    at their default count as absent, so that a later version, which knows more fields, finds the same run.
    """
    spec = obj.spec.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
    for name in MUTABLE[obj.kind]:
        spec.pop(name, None)
    recipe = spec["template"]["spec"] if isinstance(obj, CompressionSweep) else spec
    if _is_path(recipe.get("store", {}).get("uri", "")):
        recipe.pop("store", None)
    canonical = json.dumps(spec, sort_keys=True, separators=(",", ":"))
    parts = [obj.kind, obj.metadata.namespace, obj.metadata.name, canonical]
    return derived_uid(*parts, *([str(incarnation)] if incarnation else []))


def incarnations(plan: RunPlan) -> Iterator[tuple[Root, Path]]:
    """The object under its first uid, its second, ...; each with its state folder."""
    for incarnation in count():
        uid = local_uid(plan.obj, incarnation)
        meta = plan.obj.metadata.model_copy(update={"uid": uid})
        yield plan.obj.model_copy(update={"metadata": meta}), plan.states / f"{plan.obj.metadata.name}-{uid8(uid)}"


def open_state(plan: RunPlan, notice: Callable[[str], None]) -> tuple[Root, Journal]:
    """Lock the state folder of the run that this plan goes on with: the last one, unless that failed; else a new one.

    A failed run is over, as on a cluster: whoever runs the same file again has changed the code, or wants another try.

    Raises:
        LockedError, StateError: see Journal.open.
        UsageError: a field was changed in a way that a running object does not allow.
    """
    for obj, folder in incarnations(plan):
        journal = Journal.open(folder)
        try:
            kept = journal.read("object.json")
            if kept is None:
                return obj, journal
            try:
                failed = kept["object"].get("status", {}).get("phase") == "Failed"
                if not failed:
                    _check_mutable(obj, kept["object"].get("spec", {}), folder)
            except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
                raise journal.damaged("object.json", f"it holds something unknown, {error!r}"[:200]) from error
            if not failed:
                return obj, journal
        except BaseException:
            journal.close()
            raise
        journal.close()
        notice(f"the last run of {obj.metadata.name} failed (its state and logs: {folder}); starting over")
    raise AssertionError("incarnations never end")


def _check_mutable(obj: Root, kept: dict[str, Any], folder: Path) -> None:
    if not isinstance(obj, CompressionSweep):
        return
    fix = f"give at least that, or another metadata.name (the run so far: {folder})"
    had = kept.get("maxTrials", 0)
    if obj.spec.max_trials < had:
        raise UsageError(
            f"spec.maxTrials: may only be raised; this sweep has {had}, the file says {obj.spec.max_trials}; {fix}"
        )
    before = Budget.model_validate(kept.get("budget") or {})
    after = obj.spec.budget or Budget()
    for key, old, new in (
        ("wallClockSeconds", before.wall_clock_seconds, after.wall_clock_seconds),
        ("gpuSeconds", before.gpu_seconds, after.gpu_seconds),
    ):
        if new is not None and (old is None or new < old):
            was = "none" if old is None else str(old)
            raise UsageError(f"spec.budget.{key}: may only be raised; this sweep has {was}, the file says {new}; {fix}")


def artifact_root(plan: RunPlan, obj: Root) -> str:
    """URI of the folder that the object's results go to."""
    meta = obj.metadata
    return f"{plan.store.rstrip('/')}/{job_root(meta.namespace, meta.name, meta.uid or '')}"
