"""JSON schemas of what an API server and CustomResourceDefinitions say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import schemas

META = {"type": "object", "properties": {"name": {"type": "string"}}}
PORT = {
    "type": "object",
    "required": ["port"],
    "properties": {"port": {"type": "string", "format": "int-or-string"}, "name": {"type": "string"}},
}
SERVICE = {
    "type": "object",
    "x-kubernetes-group-version-kind": [{"group": "", "version": "v1", "kind": "Service"}],
    "properties": {
        "metadata": {"$ref": f"#/definitions/{schemas.META}"},
        "ports": {"type": "array", "items": {"$ref": "#/definitions/Port"}},
        "labels": {"type": "object", "additionalProperties": {"type": "string"}},
    },
}
OPENAPI = {"definitions": {schemas.META: META, "Port": PORT, "Service": SERVICE, "Unused": META}}


def written(folder: Path, *crds: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The schemas by the name of their file."""
    count = schemas.write(OPENAPI, crds, folder)
    found = {path.name: json.loads(path.read_text()) for path in folder.iterdir()}
    assert len(found) == count
    return found


def test_a_kind_has_what_it_refers_to_and_nothing_else(tmp_path: Path) -> None:
    """Known fields only, in the object and below it; a map takes any key; a port is a number or a name."""
    (service,) = written(tmp_path).values()
    assert set(service["definitions"]) == {schemas.META, "Port"}
    assert service["additionalProperties"] is False
    assert service["properties"]["kind"] == {"const": "Service"}
    assert service["properties"]["apiVersion"] == {"const": "v1"}
    assert service["properties"]["labels"] == {"type": "object", "additionalProperties": {"type": "string"}}
    port = service["definitions"]["Port"]
    assert (port["additionalProperties"], port["required"]) == (False, ["port"])
    assert port["properties"]["port"] == {"type": ["integer", "string"]}


def test_a_custom_kind_is_strict_but_where_it_is_open(tmp_path: Path) -> None:
    """Fields that are kept unknown, nullable ones, exclusive bounds and alternatives mean what they mean in OpenAPI."""
    spec = {
        "type": "object",
        "properties": {
            "free": {"type": "object", "properties": {}, "x-kubernetes-preserve-unknown-fields": True},
            "maybe": {"type": "string", "nullable": True},
            "share": {"type": "number", "minimum": 0, "exclusiveMinimum": True},
            "one": {
                "type": "object",
                "properties": {"a": {}, "b": {}},
                "oneOf": [{"required": ["a"], "properties": {}}],
            },
        },
    }
    schema = {"type": "object", "required": ["spec"], "properties": {"spec": spec}}
    version = {"name": "v1alpha1", "schema": {"openAPIV3Schema": schema}}
    crd = {"spec": {"group": "press.example", "names": {"kind": "Thing"}, "versions": [version]}}
    thing = written(tmp_path, crd)["thing-press-v1alpha1.json"]
    assert thing["required"] == ["apiVersion", "kind", "spec"]
    assert thing["properties"]["apiVersion"] == {"const": "press.example/v1alpha1"}
    found = thing["properties"]["spec"]["properties"]
    assert "additionalProperties" not in found["free"]
    assert found["maybe"] == {"type": ["string", "null"]}
    assert found["share"] == {"type": "number", "exclusiveMinimum": 0}
    assert found["one"]["additionalProperties"] is False
    assert found["one"]["oneOf"] == [{"required": ["a"], "properties": {}}]
