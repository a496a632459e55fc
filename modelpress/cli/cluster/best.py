"""`modelpress best`: the best model of a sweep, or a job's: parameters, numbers, where it is, how to load it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from modelpress import formatting
from modelpress.cli.exits import Exit
from modelpress.cli.markup import escape
from modelpress.cli.tables import console
from modelpress.store import StoreError, layout, manifest, open_store

from . import tables, views
from .connection import JOB, Cluster, Kind, Raw
from .errors import ClusterError, MissingError, RequestError
from .output import print_document


def best(cluster: Cluster, name: str, *, download: Path | None, endpoint: str | None, output: str) -> int:
    """Print the best result, and fetch its files with the caller's own credentials; the exit code.

    Args:
        download: folder to fetch to; what mp.load opens afterwards.
        endpoint: of the S3 server as it is reached from here, instead of spec.store.endpoint.

    Raises:
        LocalError: the cluster or the store refused or failed, or there is no result.
    """
    kind, obj = cluster.find(name)
    found = _result(cluster, kind, obj)
    if found["uri"] is None:
        raise MissingError(f"{views.name(obj)} has no model yet: {views.phase(obj)}. {views.why(obj)}".rstrip(". "))
    if download is not None:
        fetch(found["uri"], found["manifestDigest"], download, endpoint=endpoint, store=views.store_of(obj))
        found["folder"] = str(download)
    if output != "table":
        print_document(found, output)
    else:
        _print(console(), found)
    return Exit.DONE


def _result(cluster: Cluster, kind: Kind, obj: Raw) -> dict[str, Any]:
    """What is printed, as plain data."""
    status = views.status(obj)
    if kind is JOB:
        artifact = status.get("artifact") or {}
        baseline, compressed = views.metrics(obj)
        chosen, number = views.parameters(obj), views.trial_number(obj)
        feasible = not any(views.holds(obj, "ConstraintsMet", status) for status in ("False", "Unknown"))
    else:
        winner = status.get("best")
        if winner is None:
            done = (status.get("trials") or {}).get("succeeded") or 0
            raise MissingError(f"{views.name(obj)} has no best trial yet: {views.phase(obj)}, {done} trials succeeded")
        artifact, baseline, compressed = status.get("artifact") or {}, {}, winner.get("metrics") or {}
        chosen, number, feasible = winner.get("parameters") or {}, winner.get("number"), winner.get("feasible", True)
        trial = _trial(cluster, str(winner.get("name")))
        if trial is not None:
            baseline, compressed = views.metrics(trial)
            # Until the sweep publishes, the trial's own artifact is what there is.
            artifact = artifact or views.status(trial).get("artifact") or {}
        baseline = baseline or status.get("baseline") or {}
    return {
        "name": views.name(obj),
        "trial": number,
        "parameters": chosen,
        "feasible": feasible,
        "metrics": {"baseline": baseline, "compressed": compressed},
        "uri": artifact.get("uri"),
        "manifestDigest": artifact.get("manifestDigest"),
    }


def _trial(cluster: Cluster, name: str) -> Raw | None:
    try:
        return cluster.get(JOB, name)
    except MissingError:  # a sweep's result outlives its trials
        return None


def fetch(uri: str, digest: str | None, folder: Path, *, endpoint: str | None, store: dict[str, Any]) -> None:
    """Copy an artifact into a local folder, every file checked by its sha256, the manifest by the cluster's digest.

    Raises:
        RequestError: the folder holds another artifact, or cannot be written.
        ClusterError: the store refused or failed, or has another artifact than the cluster knows of.
    """
    _check_folder(folder)
    if "://" not in uri or uri.startswith("file:"):
        raise RequestError(
            f"--download: {uri} lies on a volume of the cluster, which is not reached from here; copy it from a pod "
            "that mounts the volume claim"
        )
    try:
        remote = open_store(uri, endpoint=endpoint or store.get("endpoint"), region=store.get("region"))
        found = manifest.read(remote, "")
        if found is None:
            raise ClusterError(f"there is no {uri}/{layout.MANIFEST}; the artifact was deleted from the store")
        standing, there = found
        if digest is not None and there != digest:
            raise ClusterError(
                f"{uri}/{layout.MANIFEST} is not the one that the cluster knows of (sha256 {there}, not {digest}); "
                "another best may have been published just now: try again"
            )
        manifest.fetch(remote, "", standing, folder / standing.folder, None)
        # Last, as everywhere: a folder with a manifest is whole.
        (folder / layout.MANIFEST).write_bytes(remote.get_bytes(layout.MANIFEST))
    except StoreError as error:
        raise ClusterError(f"--download: {error}") from error
    except OSError as error:
        raise RequestError(
            f"--download: cannot write into {folder}: {error.strerror}; name a writable folder"
        ) from error


def _check_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        taken = any(folder.iterdir())
    except OSError as error:
        raise RequestError(f"--download: cannot use {folder}: {error.strerror}; name a writable folder") from error
    if taken:
        raise RequestError(f"--download: {folder} is not empty; name a new folder")


def _print(out: Console, found: dict[str, Any]) -> None:
    whose = f"{found['name']}, trial {found['trial']}" if found["trial"] is not None else found["name"]
    out.print(escape(f"{whose}  {formatting.parameters(found['parameters'])}".rstrip()), style="bold", soft_wrap=True)
    if not found["feasible"]:
        out.print("It misses a constraint; nothing that meets all of them was found.", style="yellow")
    pair = found["metrics"]
    if pair["compressed"]:
        out.print(tables.metrics_table(pair["baseline"], pair["compressed"]))
    where = found.get("folder") or found["uri"]
    out.print(escape(f"The model is in {where}\nLoad it with:"), soft_wrap=True)
    out.print(escape(f"  import modelpress as mp; model = mp.load({where!r})"), soft_wrap=True)
