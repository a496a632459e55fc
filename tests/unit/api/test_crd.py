"""The generated CRDs: structure, bounds, and agreement with the pydantic types."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from modelpress.api import crd
from modelpress.api.v1alpha1 import ApiModel, CompressionJobSpec, CompressionSweepSpec

COMMITTED = Path(__file__).parents[3] / "crds"
CRDS = {"job": crd.job_crd(), "sweep": crd.sweep_crd()}
SPECS: dict[str, type[ApiModel]] = {"job": CompressionJobSpec, "sweep": CompressionSweepSpec}


def version(kind: str) -> dict[str, Any]:
    return CRDS[kind]["spec"]["versions"][0]


def schema(kind: str) -> dict[str, Any]:
    return version(kind)["schema"]["openAPIV3Schema"]


def spec(kind: str) -> dict[str, Any]:
    return schema(kind)["properties"]["spec"]


def nodes(node: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, node
    for key, child in node.get("properties", {}).items():
        yield from nodes(child, f"{path}.{key}")
    for key in ("items", "additionalProperties"):
        if key in node:
            yield from nodes(node[key], f"{path}[]")


def test_committed_files_are_what_the_types_say(tmp_path: Path) -> None:
    """crds/ is regenerated whenever a type changes; `modelpress crd --output crds` does it."""
    written = crd.write(tmp_path / "out")
    assert sorted(path.name for path in written) == [
        "modelpress.dev_compressionjobs.yaml",
        "modelpress.dev_compressionsweeps.yaml",
    ]
    assert sorted(path.name for path in COMMITTED.glob("*.yaml")) == sorted(path.name for path in written)
    for path in written:
        assert (COMMITTED / path.name).read_text(encoding="utf-8") == path.read_text(encoding="utf-8")
        assert yaml.load(path.read_text(), Loader=yaml.CSafeLoader)["kind"] == "CustomResourceDefinition"


@pytest.mark.parametrize("kind", CRDS)
def test_everything_is_bounded(kind: str) -> None:
    """The API server prices a CEL rule by the largest object, so no string, list or map is without a limit."""
    assert list(crd.unbounded(spec(kind))) == []
    assert list(crd.unbounded(schema(kind)["properties"]["status"])) == []


def test_unbounded_finds_what_has_no_limit() -> None:
    """The check itself sees strings, lists and maps at any depth."""
    node = {
        "type": "object",
        "properties": {
            "a": {"type": "array", "items": {"type": "string"}},
            "b": {"type": "object", "additionalProperties": {"type": "string", "maxLength": 3}},
        },
    }
    assert list(crd.unbounded(node)) == [".a: list", ".a[]: string", ".b: map"]


@pytest.mark.parametrize("kind", CRDS)
def test_schema_is_structural(kind: str) -> None:
    """Every node has a type or keeps unknown fields; nothing that a structural schema forbids is left."""
    allowed = {*crd._Converter._KEPT, "items", "properties", "additionalProperties", "required", "nullable"}
    allowed |= {"exclusiveMinimum", "exclusiveMaximum"}
    for path, node in nodes(schema(kind)):
        untyped = ("x-kubernetes-preserve-unknown-fields", "x-kubernetes-int-or-string")
        assert "type" in node or any(node.get(key) for key in untyped), path
        assert {key for key in node if not key.startswith("x-kubernetes-")} <= allowed, path
        assert not ("properties" in node and "additionalProperties" in node), path
        for bound in ("exclusiveMinimum", "exclusiveMaximum"):
            assert node.get(bound, True) is True, path
        assert set(node.get("required", ())) <= set(node.get("properties", ())), path


@pytest.mark.parametrize("kind", CRDS)
def test_spec_holds_the_fields_and_defaults_of_the_type(kind: str) -> None:
    """Keys, required keys and simple defaults equal those of the pydantic model."""
    fields = {field.alias or name: field for name, field in SPECS[kind].model_fields.items()}
    assert set(spec(kind)["properties"]) == set(fields)
    assert set(spec(kind)["required"]) == {key for key, field in fields.items() if field.is_required()}
    for key, field in fields.items():
        node = spec(kind)["properties"][key]
        if isinstance(field.default, bool | int | float | str):
            assert node["default"] == field.default
        if field.default is None:
            assert "default" not in node, key


@pytest.mark.parametrize("kind", CRDS)
def test_every_rule_beside_a_validator_is_in_the_schema(kind: str) -> None:
    """No CEL counterpart gets lost on the way, and each model with a validator of its own has one."""
    rules = {rule["rule"] for _, node in nodes(spec(kind)) for rule in node.get("x-kubernetes-validations", ())}
    checked = 0
    for model in reachable(SPECS[kind]):
        own = [name for name in model.__pydantic_decorators__.model_validators if name != "_spell"]
        if own != ["_distinct"]:  # that one is expressed as a set
            assert bool(own) == bool(model.cel_rules), model
        assert {rule for rule, _ in model.cel_rules} <= rules, model
        checked += len(model.cel_rules)
    assert checked >= 6


def reachable(annotation: Any) -> set[type[ApiModel]]:
    if isinstance(annotation, type) and issubclass(annotation, ApiModel):
        return {annotation}.union(*(reachable(field.annotation) for field in annotation.model_fields.values()))
    return set[type[ApiModel]]().union(*(reachable(arg) for arg in get_args(annotation)))


@pytest.mark.parametrize(
    ("kind", "free", "raised"),
    [("job", {"suspend"}, set()), ("sweep", {"suspend", "parallelism"}, {"maxTrials", "budget"})],
)
def test_each_field_is_immutable_or_deliberately_not(kind: str, free: set[str], raised: set[str]) -> None:
    """One rule per top-level field; suspend and parallelism are free, maxTrials and budget may be raised only."""
    rules = {rule["message"].split()[0]: rule for rule in spec(kind)["x-kubernetes-validations"]}
    assert set(rules) == set(spec(kind)["properties"]) - free
    for field, rule in rules.items():
        assert "oldSelf" in rule["rule"]
        assert ("may only be raised" if field in raised else "is immutable") in rule["message"]
    model_rule = {"job": "model", "sweep": "template"}[kind]
    assert rules[model_rule]["rule"] == f"self.{model_rule} == oldSelf.{model_rule}"
    optional = {"job": "code", "sweep": "constraints"}[kind]
    assert rules[optional]["rule"] == (
        f"has(self.{optional}) == has(oldSelf.{optional}) && "
        f"(!has(self.{optional}) || self.{optional} == oldSelf.{optional})"
    )


@pytest.mark.parametrize(("kind", "length", "short"), [("job", 52, "cjob"), ("sweep", 46, "csweep")])
def test_names_and_length(kind: str, length: int, short: str) -> None:
    """Names are DNS-1035 labels short enough for what is named after them; kubectl knows a short name."""
    rules = [rule["rule"] for rule in schema(kind)["x-kubernetes-validations"]]
    assert rules == [
        f"size(self.metadata.name) <= {length}",
        "self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')",
    ]
    names = CRDS[kind]["spec"]["names"]
    assert (names["shortNames"], names["categories"]) == ([short], ["all", "modelpress"])


@pytest.mark.parametrize("kind", CRDS)
def test_columns_name_fields_that_exist(kind: str) -> None:
    """A printer column of a field that does not exist would stay empty for ever."""
    for column in version(kind)["additionalPrinterColumns"]:
        path = column["jsonPath"].removeprefix(".").partition("[?")[0].split(".")
        if path[0] == "metadata":
            continue
        node = schema(kind)
        for key in path:
            node = node["properties"][key] if "properties" in node else node["additionalProperties"]
        assert node["type"] == "array" or column["type"] == node["type"], column


def test_subresources() -> None:
    """Status is apart from the spec, and a sweep scales by its parallelism."""
    assert version("job")["subresources"] == {"status": {}}
    scale = version("sweep")["subresources"]["scale"]
    for path in scale.values():
        node = schema("sweep")
        for key in path.removeprefix(".").split("."):
            node = node["properties"][key]
        assert node["type"] in ("integer", "string")


@pytest.mark.parametrize("kind", CRDS)
def test_status_begins_unobserved(kind: str) -> None:
    """A new object must not look ready to kstatus, so observedGeneration starts at -1, alone."""
    status = schema(kind)["properties"]["status"]
    assert status["default"] == {"observedGeneration": -1}
    assert [path for path, node in nodes(status) if "default" in node] == [""]
    conditions = status["properties"]["conditions"]
    assert (conditions["x-kubernetes-list-type"], conditions["x-kubernetes-list-map-keys"]) == ("map", ["type"])
    assert conditions["items"]["properties"]["lastTransitionTime"]["format"] == "date-time"


def test_scalars_of_several_types_refuse_lists_and_mappings() -> None:
    """A union has no structural schema: untyped, but with bounds that no list and no mapping can meet."""
    values = spec("sweep")["properties"]["searchSpace"]["items"]["properties"]["categorical"]["properties"]["values"]
    assert values["x-kubernetes-list-type"] == "set"
    assert values["items"] == {
        "x-kubernetes-preserve-unknown-fields": True,
        "maxLength": 256,
        "minProperties": 1,
        "maxProperties": 0,
        "minItems": 1,
        "maxItems": 0,
    }


def test_what_has_no_structural_form_is_refused() -> None:
    """A type that the generator cannot express stops it, instead of being dropped silently."""

    class Odd(ApiModel):
        """Has a union that Kubernetes knows no schema for."""

        value: int | list[int]

    with pytest.raises(NotImplementedError, match="no structural schema"):
        crd._Converter(Odd).root()


def test_rules_are_complete() -> None:
    """Rules are templates of nothing: no format field was left in one."""
    for text in crd.render().values():
        assert "{" not in "".join(line for line in text.splitlines() if "rule:" in line)
