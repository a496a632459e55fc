"""From the pydantic types to CustomResourceDefinitions with structural OpenAPI v3 schemas.

What pydantic refuses, the API server must refuse too. So each validator of the types has a CEL counterpart beside it
(`cel_rules`), and everything is bounded, because the API server prices rules by the largest object possible.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from .messages import DNS_LABEL, PATTERNS
from .v1alpha1 import GROUP, VERSION, ApiModel, CompressionJob, CompressionSweep
from .v1alpha1.base import Cel

HEADER = "# Generated from modelpress/api/v1alpha1 by `modelpress crd`. Do not edit.\n"

_RAISED_ONLY = "may only be raised"

# What may change in a spec, and the rule it must obey then; everything else is immutable.
JOB_MUTABLE: dict[str, Cel | None] = {"suspend": None}
SWEEP_MUTABLE: dict[str, Cel | None] = {
    "suspend": None,
    "parallelism": None,
    "maxTrials": Cel("self.maxTrials >= oldSelf.maxTrials", f"maxTrials {_RAISED_ONLY}"),
    "budget": Cel(
        " && ".join(
            f"(!(has(self.budget) && has(self.budget.{kind})) || (has(oldSelf.budget) && has(oldSelf.budget.{kind}) && "
            f"self.budget.{kind} >= oldSelf.budget.{kind}))"
            for kind in ("wallClockSeconds", "gpuSeconds")
        ),
        f"budget {_RAISED_ONLY}; leaving it out means no limit",
    ),
}

_REASON = {
    "name": "Reason",
    "type": "string",
    "priority": 1,
    "description": "Why it is in this state.",
    "jsonPath": '.status.conditions[?(@.type=="Ready")].reason',
}
_AGE = {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}
_PHASE = {"name": "Phase", "type": "string", "jsonPath": ".status.phase"}


def _column(name: str, kind: str, path: str, description: str, *, wide: bool = False) -> dict[str, Any]:
    column: dict[str, Any] = {"name": name, "type": kind, "description": description, "jsonPath": path}
    return {**column, "priority": 1} if wide else column


JOB_COLUMNS = [
    _PHASE,
    _column("Attempts", "integer", ".status.started", "Attempts created so far."),
    _column("Failed", "integer", ".status.failures", "Attempts that count against backoffLimit."),
    _column("Score", "number", ".status.metrics.compressed.default", "The compressed model's own metric."),
    _column("Baseline", "number", ".status.metrics.baseline.default", "The dense model's.", wide=True),
    _column("Artifact", "string", ".status.artifact.uri", "Where the files are.", wide=True),
    _REASON,
    _AGE,
]
SWEEP_COLUMNS = [
    _PHASE,
    _column("Trials", "integer", ".status.trials.succeeded", "Trials that have a result."),
    _column("Max", "integer", ".spec.maxTrials", "Trials at most."),
    _column("Failed", "integer", ".status.trials.failed", "Trials that failed."),
    _column("Best", "string", ".status.best.name", "The best trial that meets every constraint."),
    _column("Active", "integer", ".status.active", "Trials running now.", wide=True),
    _column("Infeasible", "integer", ".status.trials.infeasible", "Trials that miss a constraint.", wide=True),
    _REASON,
    _AGE,
]


def render() -> dict[str, str]:
    """File name -> YAML of each CRD."""
    return {
        f"{crd['metadata']['name'].partition('.')[2]}_{crd['spec']['names']['plural']}.yaml": HEADER + _dump(crd)
        for crd in (job_crd(), sweep_crd())
    }


def write(directory: str | Path) -> list[Path]:
    """Write the CRDs into a folder, which is made if need be; the paths written."""
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, text in render().items():
        (folder / name).write_text(text, encoding="utf-8")
        written.append(folder / name)
    return written


def job_crd() -> dict[str, Any]:
    """The CRD of CompressionJob as data."""
    schema = _root_schema(CompressionJob, JOB_MUTABLE, 52)
    return _crd("CompressionJob", "cjob", schema, JOB_COLUMNS, {"status": {}})


def sweep_crd() -> dict[str, Any]:
    """The CRD of CompressionSweep as data."""
    scale = {
        "specReplicasPath": ".spec.parallelism",
        "statusReplicasPath": ".status.active",
        "labelSelectorPath": ".status.selector",
    }
    schema = _root_schema(CompressionSweep, SWEEP_MUTABLE, 46)
    return _crd("CompressionSweep", "csweep", schema, SWEEP_COLUMNS, {"status": {}, "scale": scale})


def unbounded(schema: dict[str, Any], path: str = "") -> Iterator[str]:
    """Paths of the strings, lists and maps in a structural schema that have no upper bound."""
    kind = schema.get("type")
    if kind == "string" and "maxLength" not in schema and "enum" not in schema and schema.get("format") != "date-time":
        yield f"{path}: string"
    if kind == "array":
        if "maxItems" not in schema:
            yield f"{path}: list"
        yield from unbounded(schema["items"], f"{path}[]")
    if kind == "object" and "additionalProperties" in schema:
        if "maxProperties" not in schema:
            yield f"{path}: map"
        yield from unbounded(schema["additionalProperties"], f"{path}{{}}")
    for key, value in schema.get("properties", {}).items():
        yield from unbounded(value, f"{path}.{key}")


def _crd(
    kind: str, short: str, schema: dict[str, Any], columns: list[dict[str, Any]], subresources: dict[str, Any]
) -> dict[str, Any]:
    plural = f"{kind.lower()}s"
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "names": {
                "kind": kind,
                "listKind": f"{kind}List",
                "plural": plural,
                "singular": kind.lower(),
                "shortNames": [short],
                "categories": ["all", "modelpress"],
            },
            "scope": "Namespaced",
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "additionalPrinterColumns": columns,
                    "subresources": subresources,
                    "schema": {"openAPIV3Schema": schema},
                }
            ],
        },
    }


def _root_schema(model: type[ApiModel], mutable: dict[str, Cel | None], name_length: int) -> dict[str, Any]:
    converted = _Converter(model).root()
    spec, status = converted["properties"]["spec"], _as_observed(converted["properties"]["status"])
    spec.setdefault("x-kubernetes-validations", []).extend(_transition_rules(spec, mutable))
    status["default"] = {"observedGeneration": -1}
    conditions = status["properties"]["conditions"]
    conditions["x-kubernetes-list-type"] = "map"
    conditions["x-kubernetes-list-map-keys"] = ["type"]
    return {
        "description": converted["description"],
        "type": "object",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": spec,
            "status": status,
        },
        "x-kubernetes-validations": [
            {
                "rule": f"size(self.metadata.name) <= {name_length}",
                "message": f"metadata.name must have at most {name_length} characters",
            },
            {
                "rule": f"self.metadata.name.matches('{DNS_LABEL}')",
                "message": "metadata.name must be lower-case letters, digits and '-', first a letter, last a letter "
                "or digit",
            },
        ],
    }


def _transition_rules(spec: dict[str, Any], mutable: dict[str, Cel | None]) -> Iterator[dict[str, str]]:
    required = spec.get("required", [])
    for key in spec["properties"]:
        if key not in mutable:
            same = f"self.{key} == oldSelf.{key}"
            rule = same if key in required else f"has(self.{key}) == has(oldSelf.{key}) && (!has(self.{key}) || {same})"
            yield {"rule": rule, "message": f"{key} is immutable; create a new object"}
        elif cel := mutable[key]:
            yield {"rule": cel.rule, "message": cel.message}


class _Converter:
    """Pydantic's JSON schema of one model, made structural."""

    _KNOWN = frozenset(
        {
            *("title", "$ref", "$defs", "anyOf", "const", "exclusiveMinimum", "exclusiveMaximum", "required"),
            *("items", "properties", "additionalProperties", "patternProperties", "propertyNames"),
            *("x-kubernetes-list-type", "x-kubernetes-list-map-keys", "x-kubernetes-int-or-string"),
        }
    )
    _KEPT = (
        "description",
        "type",
        "format",
        "enum",
        "pattern",
        "minLength",
        "maxLength",
        "minimum",
        "maximum",
        "minItems",
        "maxItems",
        "minProperties",
        "maxProperties",
        "default",
    )

    def __init__(self, model: type[ApiModel]) -> None:
        self._schema = model.model_json_schema(by_alias=True, mode="validation")
        self._definitions: dict[str, Any] = self._schema.get("$defs", {})
        self._models = _models_in(model)

    def root(self) -> dict[str, Any]:
        return self._convert(self._schema)

    def _convert(self, schema: dict[str, Any]) -> dict[str, Any]:
        schema = self._resolve(schema)
        if "anyOf" in schema:
            return self._union(schema)
        if not any(key in schema for key in ("type", "enum", "const")):
            return {**_described(schema), "x-kubernetes-preserve-unknown-fields": True, "nullable": True}
        if lost := schema.keys() - self._KNOWN - set(self._KEPT):
            raise NotImplementedError(f"{sorted(lost)} has no place in a structural schema")
        out = {key: schema[key] for key in self._KEPT if key in schema}
        if "const" in schema:
            out["enum"] = [schema["const"]]
        if "enum" in out:
            out.setdefault("type", "string")
        for bound, name in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
            if bound in schema:
                out[name], out[bound] = schema[bound], True
        if schema.get("x-kubernetes-int-or-string"):
            del out["type"]  # the bounds of texts then hold for texts, those of numbers for numbers
            out["x-kubernetes-int-or-string"] = True
        elif out["type"] == "array":
            out["items"] = self._convert(schema["items"])
            out["x-kubernetes-list-type"] = schema.get("x-kubernetes-list-type", "atomic")
            if "x-kubernetes-list-map-keys" in schema:
                out["x-kubernetes-list-map-keys"] = schema["x-kubernetes-list-map-keys"]
        elif "properties" in schema:
            self._properties(schema, out)
        elif out["type"] == "object":
            out["additionalProperties"] = self._convert(_map_values(schema))
            typed = out["additionalProperties"].keys() & {"type", "x-kubernetes-int-or-string"}
            if typed and "propertyNames" in schema:
                out["x-kubernetes-validations"] = [_key_rule(schema)]
        return out

    def _properties(self, schema: dict[str, Any], out: dict[str, Any]) -> None:
        if schema.get("required"):
            out["required"] = schema["required"]
        out["properties"] = {key: self._convert(value) for key, value in schema["properties"].items()}
        model = self._models.get(schema.get("title", ""))
        if model is None:
            return
        rules = list(model.cel_rules)
        for old, new in model.earlier_names.items():
            # No default of the API server's: it would stand beside the other name.
            default = out["properties"][new].pop("default", None)
            said = "" if default is None else f" Default: {json.dumps(default)}."
            described = out["properties"][new]["description"] + said
            out["properties"][old] = {**out["properties"][new], "description": f"Earlier name of {new}."}
            out["properties"][new]["description"] = described
            message = f"{old} is the earlier name of {new}; give one of them"
            rules.append(Cel(f"!(has(self.{old}) && has(self.{new}))", message))
        if rules:
            out["x-kubernetes-validations"] = [{"rule": rule, "message": message} for rule, message in rules]

    def _resolve(self, schema: dict[str, Any]) -> dict[str, Any]:
        """Inline a reference, and drop the branch for null; what stands beside a reference overrides it."""
        while True:
            if "$ref" in schema:
                rest = {key: value for key, value in schema.items() if key != "$ref"}
                schema = {**self._definitions[schema["$ref"].rpartition("/")[2]], **rest}
                continue
            branches = [branch for branch in schema.get("anyOf", ()) if branch.get("type") != "null"]
            if len(branches) == 1:
                rest = {key: value for key, value in schema.items() if key not in ("anyOf", "default")}
                schema = {**branches[0], **rest}
                continue
            return schema

    def _union(self, schema: dict[str, Any]) -> dict[str, Any]:
        """A value of several scalar types, or of one of them or a map.

        A structural schema has no such union. So the value is untyped, texts are bounded (a bound on texts says
        nothing of numbers), and bounds that no mapping and no list can meet leave scalars only.
        """
        branches = [branch for branch in schema["anyOf"] if branch.get("type") != "null"]
        kinds = {branch.get("type") for branch in branches}
        if kinds in ({"integer", "object"}, {"string", "object"}):
            return {**_described(schema), **_one_or_map(branches)}
        if kinds != {"boolean", "integer", "number", "string"}:
            raise NotImplementedError(f"a union of {kinds} has no structural schema")
        longest = next(branch["maxLength"] for branch in branches if branch.get("type") == "string")
        return {
            **_described(schema),
            "x-kubernetes-preserve-unknown-fields": True,
            "maxLength": longest,
            "minProperties": 1,
            "maxProperties": 0,
            "minItems": 1,
            "maxItems": 0,
        }


def _one_or_map(branches: list[dict[str, Any]]) -> dict[str, Any]:
    """A number or a text, or a map, whose content other rules judge: bounds that no other kind can meet."""
    out: dict[str, Any] = {"x-kubernetes-preserve-unknown-fields": True, "minItems": 1, "maxItems": 0}
    none = {"integer": {"minimum": 1, "maximum": 0}, "string": {"minLength": 1, "maxLength": 0}}
    for branch in branches:
        none.pop(branch["type"], None)
        kept = ("minimum", "maximum", "maxLength", "pattern", "minProperties", "maxProperties")
        out |= {key: branch[key] for key in kept if key in branch}
    return out | {key: value for bounds in none.values() for key, value in bounds.items()}


def _map_values(schema: dict[str, Any]) -> dict[str, Any]:
    if "patternProperties" in schema:  # keys with a pattern; a structural schema says nothing of keys
        return dict(next(iter(schema["patternProperties"].values())))
    values = schema.get("additionalProperties", True)
    return values if isinstance(values, dict) else {}


def _key_rule(schema: dict[str, Any]) -> dict[str, str]:
    """What propertyNames and patternProperties say, as CEL. It can be said only of maps with typed values."""
    longest = schema["propertyNames"]["maxLength"]
    pattern = next(iter(schema["patternProperties"]))
    return {
        "rule": f"self.all(key, size(key) <= {longest} && key.matches('{pattern}'))",
        "message": f"keys must have at most {longest} characters: {PATTERNS[pattern][0]}",
    }


def _described(schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": schema["description"]} if "description" in schema else {}


def _models_in(model: type[ApiModel]) -> dict[str, type[ApiModel]]:
    """Every API model by its name; names are unique within a version."""
    found: dict[str, type[ApiModel]] = {}
    queue = [ApiModel]
    while queue:
        for child in queue.pop().__subclasses__():
            if child.__module__.startswith(model.__module__.rpartition(".")[0] + "."):
                found[child.__name__] = child
            queue.append(child)
    return found


def _as_observed(schema: dict[str, Any]) -> dict[str, Any]:
    """A status says what was observed: an absent value stays absent, and rules for users' input have no place."""
    out = {key: value for key, value in schema.items() if key not in ("default", "x-kubernetes-validations")}
    if "properties" in out:
        out["properties"] = {key: _as_observed(value) for key, value in out["properties"].items()}
    for key in ("items", "additionalProperties"):
        if key in out:
            out[key] = _as_observed(out[key])
    return out


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        return super().increase_indent(flow, False)  # lists stand below their key, indented


def _dump(data: dict[str, Any]) -> str:
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True)
