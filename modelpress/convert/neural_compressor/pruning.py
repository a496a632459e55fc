"""Pruning of Neural Compressor 1.x and 2.x: a prune stage that goes along with a training loop of the user's own.

Patterns and the order of names are those of its WeightPruningConfig. Its N:M says how many of M weights are pruned, and
ours how many are kept.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from modelpress.api.v1alpha1 import algorithms
from modelpress.convert.notes import Computed, Field
from modelpress.convert.scripts import ARGUMENTS, CALL, OF

# Spellings of 2.x, then of 1.x.
_KEYS: dict[str, tuple[str, ...]] = {
    "sparsity": ("target_sparsity",),
    "algorithm": ("pruning_type", "prune_type"),
    "pattern": ("pattern",),
    "names": ("op_names", "names"),
    "excluded": ("excluded_op_names", "excluded_names"),
    "types": ("pruning_op_types", "prune_layer_type"),
    "start": ("start_step", "start_epoch"),
    "end": ("end_step", "end_epoch"),
    "scope": ("pruning_scope", "prune_domain"),
    "frequency": ("pruning_frequency", "update_frequency_on_step", "update_frequency"),
    "minSparsity": ("min_sparsity_ratio_per_op",),
    "maxSparsity": ("max_sparsity_ratio_per_op", "max_sparsity_ratio_per_layer"),
    "decay": ("sparsity_decay_type",),
    "penalty": ("reg_type",),
}
_DEFAULTS: dict[str, Any] = {
    "sparsity": 0.9,
    "algorithm": "snip_momentum",
    "pattern": "4x1",
    "scope": "global",
    "maxSparsity": 0.98,
    "decay": "exp",
    "types": ["Conv", "Linear"],
}
_ALGORITHMS = {"magnitude": "level", "basic_magnitude": "level", "group_lasso": "level"}
_LEFT = {
    "low_memory_usage": "scores take the memory that they need",
    "criterion_type": "scores are those of pruning_type",
    "resume_from_pruned_checkpoint": "a run that was interrupted goes on by itself",
    "initial_sparsity": "write it as initialSparsity into the schedule",
    "parameters": "further settings of a pruner",
}
_WAIT = 10  # optimizer steps that gradients are looked at before a pruning at once
_HOISTED = ("algorithm", "pattern", "scope", "sparsity", "minSparsity", "maxSparsity", "schedule")


class _Settings:
    """A pruner's own settings, else those of all, else the tool's."""

    def __init__(self, own: Field, common: Field) -> None:
        self._own, self._common = own, common

    def field(self, key: str) -> Field | None:
        """What the configuration says."""
        own, common = self._own.take(*_KEYS[key]), self._common.take(*_KEYS[key])
        return own if own is not None else common

    def said(self, key: str) -> bool:
        """Whether it says anything."""
        return self._own.has(*_KEYS[key]) or self._common.has(*_KEYS[key])

    def place(self) -> Field:
        """Where to say something about all of it."""
        return self._own


def prune_block(common: Field, own: Sequence[Field]) -> dict[str, Any]:
    """The block of a prune stage.

    Args:
        common: settings of all pruners.
        own: of each; none: there is one, with the common settings.
    """
    entries = []
    pruners = [field for field in own if field.mapping()] or [common]
    for field in pruners:
        entries.append(_entry(_Settings(field, common)))
        if field is not common:
            field.leave(_LEFT, (CALL, ARGUMENTS, OF))
    block: dict[str, Any] = {}
    for key in _HOISTED:
        values = [entry.get(key) for entry in entries]
        if values[0] is not None and all(value == values[0] for value in values):
            block[key] = values[0]
            for entry in entries:
                del entry[key]
    block["configList"] = entries
    penalties = [_Settings(field, common).field("penalty") for field in pruners]
    penalty = next((field for field in penalties if field is not None), None)
    if penalty is not None and penalty.data == "group_lasso":
        block["sparsify"] = {"penalty": "group_lasso"}
    if any(block.get("pattern", entry.get("pattern")) != "1xchannel" for entry in entries):
        block["shrink"] = False
    common.say(
        "changed",
        "the last Linear layer is left alone by Neural Compressor; here, name it: {opNames: [...], exclude: true}",
    )
    common.leave(_LEFT, (CALL, ARGUMENTS, OF, "pruners"))
    return block


def _entry(settings: _Settings) -> dict[str, Any]:
    entry: dict[str, Any] = _selectors(settings)
    defaults = [key for key in ("sparsity", "algorithm", "pattern") if not settings.said(key)]
    algorithm, progressive = _algorithm(settings)
    entry["algorithm"] = algorithm
    pattern, most = _pattern(settings)
    if pattern != "1x1":
        entry["pattern"] = pattern
    elif not settings.said("pattern"):
        entry["pattern"] = "4x1"
    if algorithms.algorithm("prune", algorithm).threshold is None:
        given = settings.field("sparsity")
        sparsity = given.number(0, 1, below=True) if given is not None else _DEFAULTS["sparsity"]
        if sparsity is not None and most is not None and sparsity > most:
            (given or settings.place()).say("changed", f"{pattern} removes {most:g} at most, which was taken")
            sparsity = most
        if sparsity is not None:
            entry["sparsity"] = sparsity
        for key in ("minSparsity", "maxSparsity"):
            bound = settings.field(key)
            value = bound.number(0, 1) if bound is not None else _DEFAULTS.get(key)
            if value and not (key == "maxSparsity" and most is not None):
                entry[key] = value
    else:
        settings.field("sparsity"), settings.field("minSparsity"), settings.field("maxSparsity")
    scope = settings.field("scope")
    entry["scope"] = "local" if scope is not None and scope.data == "local" else "global"
    entry["schedule"] = _schedule(settings, algorithm, progressive)
    if defaults:
        written = ", ".join(f"{_KEYS[key][0]} {_DEFAULTS[key]}" for key in defaults)
        settings.place().say("translated", f"what it leaves to Neural Compressor is written out: {written}")
    return entry


def _selectors(settings: _Settings) -> dict[str, Any]:
    names, excluded, types = settings.field("names"), settings.field("excluded"), settings.field("types")
    out: dict[str, Any] = {}
    listed = types.names() if types is not None else _DEFAULTS["types"]
    if set(listed) != {"Conv", "Linear"}:  # those are the method's own types, and a type that nothing has is an error
        out["opTypes"] = ["_ConvNd" if name == "Conv" else name for name in listed]
    included = [_anywhere(pattern) for pattern in (names.names() if names is not None else ())]
    spared = [_anywhere(pattern) for pattern in (excluded.names() if excluded is not None else ())]
    if spared:
        out["opNamesRe"] = [f"(?!(?:{'|'.join(spared)})$){pattern}" for pattern in included or [".*"]]
        (excluded or settings.place()).say("translated", "what it spares is left out of the patterns, as (?!...)")
    elif included:
        out["opNamesRe"] = included
    if included:
        (names or settings.place()).say(
            "changed", "a pattern matches a whole name here and any part of it in Neural Compressor, so '.*' was added"
        )
    return out


def _anywhere(pattern: str) -> str:
    """A pattern that is searched in a name, as one that matches whole names."""
    before = "" if pattern.startswith(("^", ".*")) else ".*"
    behind = "" if pattern.endswith(("$", ".*")) else ".*"
    bare = pattern.removeprefix("^").removesuffix("$")
    return f"{before}{f'(?:{bare})' if '|' in bare else bare}{behind}"


def _algorithm(settings: _Settings) -> tuple[str, bool]:
    """The algorithm, and whether it prunes in parts between two prunings."""
    field = settings.field("algorithm")
    text = (field.text() if field is not None else None) or str(_DEFAULTS["algorithm"])
    bare = text.removesuffix("_progressive")
    name = _ALGORITHMS.get(bare, bare)
    if name not in algorithms.names("prune"):
        listed = ", ".join(sorted({*_ALGORITHMS, "snip", "snip_momentum", "gradient", "pattern_lock", "wanda"}))
        (field or settings.place()).wrong(
            f"there is no counterpart to the pruning type {text}", f"write one of {listed}"
        )
        return "level", False
    if name != bare and field is not None:
        field.say("translated", f"{text} is algorithm: {name}")
    return name, bare != text


def _pattern(settings: _Settings) -> tuple[str, float | None]:
    """The pattern, and the most that it can remove."""
    field = settings.field("pattern")
    text = (field.text() if field is not None else None) or str(_DEFAULTS["pattern"])
    bare = re.sub(r"^(ic|tile)_pattern_", "", text)
    if found := re.fullmatch(r"(\d+):(\d+)", bare):
        pruned, of = int(found[1]), int(found[2])
        if not 0 < pruned < of:
            (field or settings.place()).wrong(f"{text} prunes {pruned} of every {of}", "write N below M, as 2:4")
            return "2:4", None
        kept = f"{of - pruned}:{of}"
        (field or settings.place()).say(
            "changed", f"{text} says how many of every {of} weights are pruned; here {kept} says how many are kept"
        )
        return kept, pruned / of
    if not re.fullmatch(r"\d+x\d+|channelx1|1xchannel", bare):
        (field or settings.place()).wrong(
            f"there is no counterpart to the pattern {text}", "write 4x1, 2:4 or 1xchannel"
        )
        return "1x1", None
    if bare != text and field is not None:
        field.say("translated", f"{text} is pattern: {bare}")
    return bare, None


def _schedule(settings: _Settings, algorithm: str, progressive: bool) -> dict[str, Any]:
    start, end = settings.field("start"), settings.field("end")
    decay, every = settings.field("decay"), settings.field("frequency")
    first = (start.whole() if start is not None else 0) or 0
    last = (end.whole() if end is not None else 0) or 0
    frequency = (every.whole(1) if every is not None else 1) or 1
    kind = (decay.text() if decay is not None else None) or "exp"
    row = algorithms.algorithm("prune", algorithm)
    place = end if end is not None else settings.place()
    if last <= first or row.threshold is not None:
        if row.data_driven and not first:
            text = f"{algorithm} looks at training steps, and before the first there are none; it waits for {_WAIT}"
            place.say("mended" if end is not None or not settings.said("end") else "changed", text)
            first = _WAIT
        if progressive:
            place.say("missing", "one pruning has no parts between it and the next")
        return {"startStep": first} if first else {}
    if kind not in algorithms.gradual():
        (decay or place).wrong(f"there is no counterpart to the decay {kind}", "write exp, cos, linear or cube")
        return {}
    schedule: dict[str, Any] = {"type": kind, "startStep": first, "endStep": last}
    if frequency != 1:
        schedule["frequency"] = frequency
    if progressive:
        parts = min(4, frequency)
        if parts > 1:
            schedule["progressiveSteps"] = parts
        else:
            place.say("missing", "with a pruning at every step there are no parts between two of them")
    return schedule


def is_computed(field: Field | None) -> bool:
    """Whether a script computes it when it runs."""
    return field is not None and isinstance(field.data, Computed)
