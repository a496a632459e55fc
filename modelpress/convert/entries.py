"""Config lists of NNI, which Auptimizer's are, in the spellings of its versions 1, 2 and 3: entries of a prune stage.

Version 1: op_types, op_names, sparsity, exclude. Version 2: total_sparsity, sparsity_per_layer, max_sparsity_per_layer,
op_partial_names. Version 3: sparse_ratio, sparse_threshold, op_names_re, exclude_op_names, target_names, granularity.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from .notes import Field
from .spaces import Space

AMOUNTS = ("sparsity", "sparse_ratio", "sparsity_per_layer", "total_sparsity", "final_sparsity", "sparse_threshold")
# Keys of entries that schedules and searches read.
OF_METHODS = ("initial_sparsity", "start_epoch", "end_epoch", "frequency", "prune_iterations")
SELECTORS = ("op_types", "op_names", "op_names_re", "op_partial_names", "exclude")
_BY_ITSELF = "channels that depend on each other go together by themselves when the model is shrunk"
_LEFT = {
    "dependency_group_id": _BY_ITSELF,
    "align": _BY_ITSELF,
    "internal_metric_block": _BY_ITSELF,
    "apply_method": "what is pruned is zero; there is no other way to apply a mask",
    "target_settings": "what is pruned is the weight with all that belongs to its channel",
}


def prune_entries(fields: Sequence[Field], space: Space, pointer: str, weights: bool) -> list[dict[str, Any]]:
    """Entries of configList.

    Args:
        fields: the entries.
        pointer: JSON Pointer of the configList in the template's spec.
        weights: the algorithm scores single weights, so that blocks of them can be pruned.
    """
    out: list[dict[str, Any]] = []
    spared: list[dict[str, Any]] = []
    excluded: Field | None = None
    for field in fields:
        if not field.mapping():
            continue
        flag = field.take("exclude")
        if flag is not None and flag.boolean():
            out.append(selectors(field) | {"exclude": True})
            field.leave(dict.fromkeys(field.data, "an entry that excludes takes nothing but selectors"), SELECTORS)
            excluded = field
            continue
        if excluded is not None:
            excluded.say("changed", "excludes whatever entries behind it say, too; in NNI a later entry takes back")
            excluded = None
        space.expand = _expands(field)
        out.append(_prune_entry(field, space, f"{pointer}/{len(out)}", weights))
        space.expand = False
        spared += excluding(field)
    for entry in spared:
        if entry not in out:
            out.append(entry)
    return out


def selectors(field: Field) -> dict[str, Any]:
    """opTypes, opNames and opNamesRe of an entry."""
    out: dict[str, Any] = {}
    types, names = field.take("op_types"), field.take("op_names")
    if types is not None and (listed := types.names()):
        out["opTypes"] = [name.rpartition(".")[2] for name in listed]
    if names is not None and (listed := [name for name in names.names() if name]):
        out["opNames"] = listed
    patterns: list[str] = []
    if (given := field.take("op_names_re")) is not None:
        patterns += [_whole(pattern) for pattern in given.names()]
        given.say("changed", "a pattern matches a whole name here and its beginning in NNI, so '.*' was added")
    if (partial := field.take("op_partial_names")) is not None:
        patterns += [f".*{re.escape(part)}.*" for part in partial.names()]
        partial.say("translated", "parts of names became patterns")
    if patterns:
        out["opNamesRe"] = patterns
    return out


def _whole(pattern: str) -> str:
    """A pattern that matches a name's beginning, as one that matches whole names."""
    return pattern if pattern.endswith(("$", ".*")) else f"(?:{pattern}).*"


def _expands(field: Field) -> bool:
    """Whether a search has a value for each of the entry's layers: Auptimizer's expand_op_names, true if left out."""
    flag = field.take("expand_op_names")
    expand = True if flag is None else flag.boolean()
    searched = any(isinstance(field.data.get(key), dict) and "range" in field.data[key] for key in AMOUNTS)
    names = field.data.get("op_names")
    if not (searched and expand and isinstance(names, list) and len(names) > 1):
        return False
    (field.take("op_names") or field).say(
        "translated", "each layer has a parameter of its own (expand_op_names is true)"
    )
    return True


def _prune_entry(field: Field, space: Space, pointer: str, weights: bool) -> dict[str, Any]:
    entry = selectors(field)
    listed = entry.get("opNames", [])
    label = listed[0] if len(listed) == 1 else pointer.rpartition("/")[2]
    given = [key for key in AMOUNTS if field.has(key)]
    for key in given[1:]:
        field.take(key)
        if key != "final_sparsity":
            field.wrong(f"{given[0]} and {key} both say how much is pruned", "keep one of them")

    def share(value: Field) -> float | None:
        return value.number(0, 1, below=True)

    for key in given[:1]:
        amount = field.take(key)
        if key == "sparse_threshold":
            space.put(entry, "sparsityThreshold", amount, pointer, f"threshold_{label}", Field.number)
            continue
        space.put(entry, "sparsity", amount, pointer, f"sparsity_{label}", share)
        if key == "total_sparsity" and amount is not None:
            entry["scope"] = "global"
            amount.say(
                "changed", "is a share of what is ranked (channels, of methods that remove them), not of weights"
            )
    most = field.take("max_sparse_ratio", "max_sparsity_per_layer")
    if most is not None and isinstance(most.data, dict):
        most.say("missing", "a bound for each layer; give each an entry with maxSparsity")
    else:
        space.put(entry, "maxSparsity", most, pointer, f"max_sparsity_{label}", lambda value: value.number(0, 1))
    least = field.take("min_sparse_ratio")
    space.put(entry, "minSparsity", least, pointer, f"min_sparsity_{label}", lambda value: value.number(0, 1))
    if (group := field.take("global_group_id")) is not None:
        entry |= {"scope": "global", "globalGroup": f"group_{re.sub(r'[^A-Za-z0-9_]', '_', str(group.data))}"}
    _targets(field)
    _granularity(field, entry, weights)
    field.leave(_LEFT, (*OF_METHODS, "exclude_op_names", "exclude_op_names_re", "exclude_op_types"))
    return entry


def _targets(field: Field) -> None:
    targets = field.take("target_names")
    if targets is not None and (others := sorted(set(targets.names()) - {"weight", "bias"})):
        targets.say("missing", f"{', '.join(others)}: weights and their biases are pruned, and nothing else")


def _granularity(field: Field, entry: dict[str, Any], weights: bool) -> None:
    granularity = field.take("granularity")
    if granularity is None or granularity.data in ("default", "out_channel"):
        return
    block = granularity.data
    if weights and granularity.data == "in_channel":
        entry["pattern"] = "channelx1"
    elif weights and isinstance(block, list) and len(block) == 2 and all(isinstance(side, int) for side in block):
        entry["pattern"] = f"{block[0]}x{block[1]}"
    else:
        why = "blocks of weights go with methods that score weights (level)" if not weights else "has no such block"
        granularity.say("missing", f"{why}; it was left out")


def excluding(field: Field) -> list[dict[str, Any]]:
    """What an entry of version 3 leaves out, as entries of their own."""
    out: list[dict[str, Any]] = []
    for key, ours in (("exclude_op_names", "opNames"), ("exclude_op_types", "opTypes")):
        if (names := field.take(key)) is not None and (listed := names.names()):
            out.append({ours: listed, "exclude": True})
    if (patterns := field.take("exclude_op_names_re")) is not None and (listed := patterns.names()):
        out.append({"opNamesRe": [_whole(pattern) for pattern in listed], "exclude": True})
    if out:
        field.say("changed", "what it leaves out has an entry of its own, which holds against all others")
    return out
