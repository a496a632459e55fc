"""JSON schemas for kubeconform, of what an API server says that it serves, and of CustomResourceDefinitions.

    kubectl get --raw /openapi/v2 | python tools/cluster/schemas.py FOLDER crds/*.yaml
    kubeconform -strict -schema-location 'FOLDER/{{.ResourceKind}}{{.KindSuffix}}.json' FILE...

They are strict: an object with known fields takes no other ones, where neither a map nor x-kubernetes-preserve-unknown-
fields allows them. CEL rules are the API server's own and are not in them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

Schema = dict[str, Any]
META = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"
QUANTITY = "io.k8s.apimachinery.pkg.api.resource.Quantity"
_DRAFT = "http://json-schema.org/draft-07/schema#"
_REF = "#/definitions/"
_INT_OR_STRING: Schema = {"type": ["integer", "string"]}


def write(openapi: Mapping[str, Any], definitions: Iterable[Mapping[str, Any]], folder: Path) -> int:
    """One file for each kind of the OpenAPI v2 document and of the CustomResourceDefinitions; how many.

    What a definition says of a kind goes before what the document says: the latter has lost part of it.
    """
    known = {name: _strict(schema) for name, schema in openapi["definitions"].items()}
    known[QUANTITY] = {"type": ["string", "number"]}
    written = set()
    for name, schema in openapi["definitions"].items():
        for kind in schema.get("x-kubernetes-group-version-kind", ()):
            _save(folder, kind["group"], kind["version"], kind["kind"], known[name], known)
            written.add((kind["group"], kind["version"], kind["kind"]))
    for crd in definitions:
        spec = crd["spec"]
        for version in spec["versions"]:
            own = _strict(version["schema"]["openAPIV3Schema"])
            own["properties"] = {
                **own.get("properties", {}),
                "apiVersion": {"type": "string"},
                "kind": {"type": "string"},
                "metadata": {"$ref": _REF + META},
            }
            own["additionalProperties"] = False
            _save(folder, spec["group"], version["name"], spec["names"]["kind"], own, known)
            written.add((spec["group"], version["name"], spec["names"]["kind"]))
    return len(written)


def _save(folder: Path, group: str, version: str, kind: str, schema: Schema, known: Mapping[str, Schema]) -> None:
    api_version = f"{group}/{version}" if group else version
    properties = dict(schema.get("properties", {}))
    properties |= {"apiVersion": {"const": api_version}, "kind": {"const": kind}}
    required = sorted({*schema.get("required", []), "apiVersion", "kind"})
    document = {**schema, "$schema": _DRAFT, "properties": properties, "required": required}
    used: dict[str, Schema] = {}
    waiting = list(_references(document))
    while waiting:
        name = waiting.pop()
        if name not in used:
            used[name] = known[name]
            waiting += _references(known[name])
    suffix = "-".join([kind.lower(), *([group.partition(".")[0]] if group else []), version])
    (folder / f"{suffix}.json").write_text(json.dumps({**document, "definitions": used}))


def _references(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict):
        if isinstance(schema.get("$ref"), str):
            yield schema["$ref"].removeprefix(_REF)
        for value in schema.values():
            yield from _references(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from _references(value)


def _strict(schema: Schema) -> Schema:
    """The same in JSON Schema's words, closed where its fields are known."""
    if schema.get("x-kubernetes-int-or-string") or schema.get("format") == "int-or-string":
        return dict(_INT_OR_STRING)
    kept = ("type", "enum", "required", "pattern", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
    kept += ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties", "multipleOf", "$ref")
    out: Schema = {key: value for key, value in schema.items() if key in kept}
    for bound in ("Minimum", "Maximum"):  # a flag in OpenAPI, a number in JSON Schema
        if isinstance(out.get(f"exclusive{bound}"), bool) and out.pop(f"exclusive{bound}"):
            out[f"exclusive{bound}"] = out.pop(bound.lower())
    if "properties" in schema:
        out["properties"] = {name: _strict(value) for name, value in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            out["additionalProperties"] = False
    if isinstance(schema.get("additionalProperties"), dict):
        out["additionalProperties"] = _strict(schema["additionalProperties"])
    if isinstance(schema.get("items"), dict):
        out["items"] = _strict(schema["items"])
    for word in ("allOf", "anyOf", "oneOf"):
        if word in schema:  # they restrict; what fields there are stands beside them
            out[word] = [_open(_strict(one)) for one in schema[word]]
    if "not" in schema:
        out["not"] = _open(_strict(schema["not"]))
    if schema.get("nullable") and isinstance(out.get("type"), str):
        out["type"] = [out["type"], "null"]
    return out


def _open(schema: Schema) -> Schema:
    return {key: value for key, value in schema.items() if not (key == "additionalProperties" and value is False)}


def main() -> int:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    streams = (yaml.load_all(Path(path).read_text(), Loader=yaml.CSafeLoader) for path in sys.argv[2:])
    definitions = [one for stream in streams for one in stream if one]
    print(f"{write(json.load(sys.stdin), definitions, folder)} schemas in {folder}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
