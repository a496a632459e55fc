"""Objects that an API server takes and nobody should have written: of the CRDs' open fields, and as raw JSON."""

from __future__ import annotations

import http.client
import json
import random
import ssl
import urllib.parse
from collections.abc import Callable
from typing import Any

from control_plane import ControlPlane
from hypothesis import strategies as st
from operator_cluster import PLURAL, job, sweep

OPEN = "@open@"  # is replaced by raw JSON, which may be deeper than Python's own encoder goes
MODELPRESS = "modelpress.dev"
OWNER = {"apiVersion": f"{MODELPRESS}/v1alpha1", "kind": "CompressionSweep", "controller": True}

# Strategies ----------------------------------------------------------------------------------------------------------

_texts = st.one_of(
    st.text(max_size=20),
    st.sampled_from(["", "\x00", "\u202e", "😀" * 50, "x" * 100_000, "9" * 5000, "[" * 2000, "NaN", "null", "{}"]),
)
_numbers = st.one_of(
    st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False, allow_infinity=False), st.sampled_from([1e308, -0.0])
)
_leaves = st.one_of(st.none(), st.booleans(), _numbers, _texts)
_values = st.recursive(
    _leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(_texts.map(lambda t: t[:60]), inner, max_size=4)
    ),
    max_leaves=12,
)


@st.composite
def _nested(draw: st.DrawFn) -> str:
    """Raw JSON of a depth that decoders differ about."""
    depth = draw(st.sampled_from([60, 65, 100, 400, 990, 1200, 5000, 9000]))
    head, tail = draw(st.sampled_from([("[", "]"), ('{"a":', "}"), ('[{"b":', "}]")]))
    return head * depth + draw(st.sampled_from(["1", '"x"', "{}", "[]"])) + tail * depth


@st.composite
def _large(draw: st.DrawFn) -> str:
    """Raw JSON of up to a mebibyte."""
    size = draw(st.sampled_from([1_000, 30_000, 60_000]))
    part = draw(st.sampled_from(['{"k":1}', "[[],[]]", '"abcdefgh"', "0", '"😀"']))
    return "[" + ",".join([part] * size) + "]"


opens = st.one_of(_values.map(json.dumps), _nested(), _large())


@st.composite
def objects(draw: st.DrawFn, victim: str = "victim", uid: str = "0") -> tuple[str, str]:
    """A kind and a body as text. `victim`: name of a sweep of this uid, which some of them claim to belong to."""
    number = draw(st.integers(0, 10**9))
    kind = draw(st.sampled_from(["CompressionJob", "CompressionJob", "CompressionSweep"]))
    body = job(f"h{number}") if kind == "CompressionJob" else sweep(f"h{number}", 3)
    meta, spec = body["metadata"], body["spec"]
    inner = spec if kind == "CompressionJob" else spec["template"]["spec"]
    where = draw(st.sampled_from(["args", "podTemplate", "annotation", "owner", "forged", "status", "name"]))
    raw = "0"
    if where == "args":
        inner["model"] = {"entrypoint": "digits:create", "args": {"a": OPEN}}
        raw = draw(opens)
    elif where == "podTemplate":
        inner["runner"] = {"podTemplate": {"spec": {draw(st.sampled_from(["containers", "x", "tolerations"])): OPEN}}}
        raw = draw(opens)
    elif where == "annotation":
        keys = ("parameters", "history", "spec")
        meta["annotations"] = {f"{MODELPRESS}/{key}": draw(_texts) for key in keys}
        meta["labels"] = {f"{MODELPRESS}/trial": "9" * draw(st.integers(1, 63))}
    elif where == "owner":
        kinds = st.sampled_from(["CompressionSweep", "CompressionJob", "Job", "Nonsense"])
        meta["ownerReferences"] = [
            OWNER | {"kind": draw(kinds), "name": draw(st.text(min_size=1, max_size=30)), "uid": "u"}
        ]
    elif where == "forged" and kind == "CompressionJob":
        meta["name"] = f"{victim}-{draw(st.integers(0, 20)):05d}"
        meta["ownerReferences"] = [OWNER | {"name": victim, "uid": uid}]
        meta["labels"] = {f"{MODELPRESS}/trial": str(draw(st.integers(0, 20))), f"{MODELPRESS}/sweep": victim}
        meta["annotations"] = {f"{MODELPRESS}/parameters": draw(_texts), f"{MODELPRESS}/history": draw(_texts)}
    elif where == "status":
        body["status"] = {"phase": "Succeeded", "trial": {"sweep": uid, "number": 0, "parameters": {}}}
    else:
        meta["name"] = draw(st.sampled_from([f"{number}", f"a.{number}", f"{'n' * 240}{number}", f"a{number}-00000"]))
        meta["finalizers"] = [f"example.org/{number}"] if draw(st.booleans()) else []
    return kind, json.dumps(body).replace(f'"{OPEN}"', raw)


# A fixed assortment --------------------------------------------------------------------------------------------------


def assortment(number: int, chance: random.Random, uid: str) -> tuple[str, str]:
    """The hostile object of that number: depth, size, forged trials of the sweep `search` and annotations in turn."""
    name = f"hostile-{number}"

    def with_args(raw: str) -> tuple[str, str]:
        body = job(name, model={"entrypoint": "digits:create", "args": {"a": OPEN}})
        return "CompressionJob", json.dumps(body).replace(f'"{OPEN}"', raw)

    def forged() -> tuple[str, str]:
        body = job(f"search-{number:05d}")
        body["metadata"]["ownerReferences"] = [OWNER | {"name": "search", "uid": uid}]
        return "CompressionJob", json.dumps(body)

    def annotated() -> tuple[str, str]:
        body = sweep(name, 2)
        notes = {"parameters": "9" * 5000, "history": "[" * 5000, "spec": "x" * 200_000}
        body["metadata"]["annotations"] = {f"{MODELPRESS}/{key}": text for key, text in notes.items()}
        body["spec"]["template"]["spec"]["model"] = {"entrypoint": "digits:create", "args": {"a": OPEN}}
        return "CompressionSweep", json.dumps(body).replace(f'"{OPEN}"', "[" * 800 + "]" * 800)

    depth = chance.choice([100, 400, 1200, 5000, 9000])
    makers: list[Callable[[], tuple[str, str]]] = [
        lambda: with_args("[" * depth + "]" * depth),
        lambda: with_args("[" + ",".join(['{"k":{}}'] * 80_000) + "]"),
        lambda: with_args("[" + ",".join(["[[]]"] * 140_000) + "]"),
        lambda: with_args('"' + "😀" * 170_000 + '"'),
        forged,
        annotated,
    ]
    return makers[number % len(makers)]()


class Poster:
    """Sends bodies as they are, as cluster admin; one connection for one thread."""

    def __init__(self, plane: ControlPlane) -> None:
        parts = urllib.parse.urlsplit(plane.url)
        context = ssl.create_default_context(cafile=str(plane.authority.certificate))
        context.load_cert_chain(plane.folder / "admin.crt", plane.folder / "admin.key")
        self._open = http.client.HTTPSConnection(parts.hostname or "", parts.port, timeout=30, context=context)

    def __call__(self, namespace: str, kind: str, body: str) -> tuple[int, str]:
        """Create an object; the status, and the name that it was given."""
        path = f"/apis/{MODELPRESS}/v1alpha1/namespaces/{namespace}/{PLURAL[kind]}"
        self._open.request("POST", path, body.encode(), {"Content-Type": "application/json"})
        response = self._open.getresponse()
        data = response.read()
        name = data.partition(b'"name":"')[2].partition(b'"')[0].decode()
        return response.status, name if response.status == 201 else data.decode("utf-8", "replace")[:300]

    def close(self) -> None:
        """Close the connection."""
        self._open.close()


def state(cluster_get: Callable[[], dict[str, Any]]) -> tuple[str, str]:
    """Whether an object is Stalled, and the reason."""
    conditions = cluster_get().get("status", {}).get("conditions", [])
    found = next((item for item in conditions if item["type"] == "Stalled"), {})
    return found.get("status", ""), found.get("reason", "")
