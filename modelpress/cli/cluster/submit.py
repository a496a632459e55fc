"""`modelpress submit`: checks a file as far as that goes here, creates its objects, and may wait for their end."""

from __future__ import annotations

import datetime as dt
import sys
import time
from collections.abc import Sequence
from typing import Any

from modelpress.api.errors import SpecError
from modelpress.api.semantic import job_problems, sweep_problems
from modelpress.api.v1alpha1 import CompressionSweep
from modelpress.cli.exits import Exit
from modelpress.cli.tables import console
from modelpress.local.sources import Document, load_documents
from modelpress.trials import SWEEP_LABEL

from . import tables, views
from .connection import JOB, KINDS, Cluster, Kind, Raw
from .errors import ClusterError, ExistsError, MissingError, RequestError, UnreachableError
from .output import as_list, print_document, tidy

POLL_SECONDS = 2.0
PATIENCE = 30  # looks in a row that a cluster may leave unanswered while we wait


def submit(cluster: Cluster, source: str, *, namespace: str | None, wait: bool, output: str) -> int:
    """Create all objects of a file; the exit code, with `wait` the worst of their results.

    Args:
        namespace: where objects go, whatever the file says; None: where it says, else the context's.

    Raises:
        SpecError: something in the file is wrong; nothing was created.
        LocalError: the cluster refused or failed.
    """
    documents = load_documents(source)
    problems = [problem for document in documents for problem in document.locate(_problems(document))]
    if problems:
        raise SpecError(problems)
    bodies = [_body(document, namespace or cluster.namespace, namespace is not None) for document in documents]
    created: list[tuple[Kind, Raw]] = []
    for body in bodies:
        kind = KINDS[body["kind"]]
        obj, is_new = _create(cluster, kind, body)
        created.append((kind, obj))
        said = "created" if is_new else "is there already, unchanged"
        _say(f"{kind.words[0]}/{views.name(obj)} in {views.meta(obj)['namespace']}: {said}", output)
    if wait:
        created = [(kind, _wait(cluster, kind, obj, output)) for kind, obj in created]
    elif created and output == "table":
        kind, obj = created[-1]
        _say(f"watch it with: modelpress status {kind.words[0]}/{views.name(obj)} {_where(obj)}", output)
    objects = [tidy(obj) for _, obj in created]
    if output != "table":
        print_document(objects[0] if len(objects) == 1 else as_list(objects), output)
    elif wait:
        for kind, obj in created:
            _show(cluster, kind, obj)
    return _worst([views.exit_code_of(obj) for _, obj in created]) if wait else Exit.DONE


def _problems(document: Document) -> list[Any]:
    spec = document.obj.spec
    if isinstance(document.obj, CompressionSweep):
        return sweep_problems(document.obj.spec, cluster=True)
    return job_problems(spec, cluster=True)  # type: ignore[arg-type]


def _body(document: Document, namespace: str, forced: bool) -> Raw:
    """The object as the file has it, so that the API server judges what the user wrote."""
    data = document.text.data if document.text is not None else document.obj.to_dict()
    body = _without_nulls({key: value for key, value in data.items() if key != "status"})
    meta = dict(body["metadata"])
    if forced and meta.get("namespace") not in (None, namespace):
        raise RequestError(
            f"{document.file}: metadata.namespace of {meta['name']} is {meta['namespace']}, but -n says {namespace}; "
            "leave one of them out"
        )
    meta.setdefault("namespace", namespace)
    return {**body, "metadata": meta}


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _create(cluster: Cluster, kind: Kind, body: Raw) -> tuple[Raw, bool]:
    """The object, and whether it is new. An equal one that is there already is as good: submitting twice is no error.

    Raises:
        RequestError: one of that name is there with another spec.
    """
    try:
        return cluster.create(kind, body), True
    except ExistsError:
        there = cluster.get(kind, body["metadata"]["name"], namespace=body["metadata"]["namespace"])
    changed = sorted(_differences(body["spec"], there.get("spec") or {}, "spec"))
    if changed:
        shown = ", ".join(changed[:5]) + (" and others" if len(changed) > 5 else "")
        raise RequestError(
            f"there is a {kind.name} {views.name(there)} with another spec already (it differs in {shown}), and a spec "
            "stays as it is; give this one another metadata.name, or delete the other first"
        )
    return there, False


def _differences(wanted: Any, found: Any, path: str) -> list[str]:
    """Paths at which the object lacks what is wanted; what the API server added, such as defaults, does not count."""
    if isinstance(wanted, dict) and isinstance(found, dict):
        return [
            difference
            for key, value in wanted.items()
            for difference in _differences(value, found.get(key), f"{path}.{key}")
        ]
    if isinstance(wanted, list) and isinstance(found, list) and len(wanted) == len(found):
        pairs = enumerate(zip(wanted, found, strict=True))
        return [item for index, (a, b) in pairs for item in _differences(a, b, f"{path}[{index}]")]
    return [] if wanted == found and isinstance(wanted, bool) == isinstance(found, bool) else [path]


# Waiting -------------------------------------------------------------------------------------------------------------


def _wait(cluster: Cluster, kind: Kind, obj: Raw, output: str) -> Raw:
    """Look at the object until it has ended; a line for each change."""
    uid, name, namespace = views.meta(obj).get("uid"), views.name(obj), views.meta(obj)["namespace"]
    said = ""
    silent = 0
    while True:
        line = _line(obj)
        if line != said:
            _say(f"{dt.datetime.now().astimezone():%H:%M:%S} {name}: {line}", output)
            said = line
        if views.is_finished(obj):
            return obj
        try:
            time.sleep(POLL_SECONDS)
            obj = cluster.get(kind, name, namespace=namespace)
            silent = 0
        except UnreachableError as error:
            silent += 1
            if silent == 1:
                _say(f"{error}; still waiting", output)
            if silent >= PATIENCE:
                raise
        except MissingError:
            raise ClusterError(f"{kind.name} {name} was deleted while it ran; submit it again") from None
        except KeyboardInterrupt:
            print(
                f"stopped waiting; {name} goes on. Look at it with: modelpress status {kind.words[0]}/{name} "
                f"{_where(obj)}",
                file=sys.stderr,
            )
            raise
        if views.meta(obj).get("uid") != uid:
            raise ClusterError(f"{kind.name} {name} was replaced by another of that name; look at it with status")


def _line(obj: Raw) -> str:
    parts = [views.phase(obj), tables.progress(obj), tables.best(obj)]
    if views.phase(obj) in ("Pending", "Failed") or views.holds(obj, "Stalled"):
        parts.append(views.why(obj))
    return "  ".join(part for part in parts if part)


def _show(cluster: Cluster, kind: Kind, obj: Raw) -> None:
    trials = [] if kind is JOB else cluster.all(JOB, labels={SWEEP_LABEL: views.name(obj)})
    tables.print_object(console(), obj, trials, dt.datetime.now(dt.UTC))


def _say(text: str, output: str) -> None:
    # Standard output belongs to the document when one is asked for.
    print(text, file=sys.stdout if output == "table" else sys.stderr, flush=True)


def _where(obj: Raw) -> str:
    return f"-n {views.meta(obj)['namespace']}"


def _worst(codes: Sequence[int]) -> int:
    return next((code for code in (Exit.FAILED, Exit.INVALID, Exit.MISSED) if code in codes), Exit.DONE)
