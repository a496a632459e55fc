"""Which modules a configList selects, and with which settings."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

from torch import nn

from modelpress.api.stages.prune import kept_of
from modelpress.api.v1alpha1 import EntrySchedule, Prune
from modelpress.api.v1alpha1.algorithms import schedule as facts
from modelpress_runner.edits.computed import computed
from modelpress_runner.errors import InvalidSpecError
from modelpress_runner.methods.prune.channels import weight_of
from modelpress_runner.methods.prune.patterns import CHANNEL
from modelpress_runner.methods.prune.protocol import PruneMethod
from modelpress_runner.methods.prune.registry import method
from modelpress_runner.methods.selectors import is_of, matches


@dataclass(frozen=True)
class Choice:
    """How one module is pruned. `entry` is the number of the last entry that selected it."""

    module: str
    algorithm: str
    sparsity: float
    scope: str
    schedule: EntrySchedule
    entry: int
    named: bool  # by its exact name, so that leaving it out needs more than a note
    threshold: float | None = None  # what scores below it goes; sparsity is the most that may go then
    bounds: tuple[float, float] = (0.0, 1.0)  # the least and the most share that is removed of a layer
    pattern: str | None = None
    group: str | None = None
    round_to: str | None = None

    @property
    def structured(self) -> bool:
        """Whether it loses output channels; else single weights, or blocks of them."""
        return method(self.algorithm).structured or self.pattern == CHANNEL


@dataclass(frozen=True)
class Selection:
    """The selected modules in the order of model.named_modules(), and those that an entry excludes."""

    choices: dict[str, Choice]
    excluded: frozenset[str]
    notes: tuple[str, ...] = ()  # why a module that was selected by type or expression is left


@dataclass(frozen=True)
class _ChoiceDraft:
    algorithm: str
    sparsity: float | None
    scope: str
    schedule: EntrySchedule
    entry: int
    named: bool
    sparsity_threshold: float | None = None
    min_sparsity: float | None = None
    max_sparsity: float | None = None
    pattern: str | None = None
    global_group: str | None = None
    round_to: str | None = None


# What an entry may set; the rest of a draft says which entry it was.
_SETTINGS = [field.name for field in fields(_ChoiceDraft) if field.name not in ("entry", "named")]


def select(model: nn.Module, prune: Prune, path: str) -> Selection:
    """Applies `prune.configList` to the modules of `model`; `path` (spec.stages[0].prune) serves for messages.

    Selected are (opNames and opNamesRe, else all) that are of opTypes, else of the method's own types; `default` stands
    for those. Later entries override earlier ones field by field; what no entry sets comes from the stage. An excluding
    entry without opTypes takes modules of any type that hold parameters. `exclude` always wins.

    Raises:
        InvalidSpecError: an entry, or one of its selectors, matches nothing; an expression is no regular expression; a
            module is of a type that its method does not prune, is left without a sparsity or with an initial one above
            it, or is named and has a computed weight.
    """
    modules = dict(model.named_modules())
    drafts: dict[str, _ChoiceDraft] = {}
    excluded: set[str] = set()
    for number, entry in enumerate(prune.config_list):
        where = f"{path}.configList[{number}]"
        pruner = method(entry.algorithm or prune.algorithm)
        names = matches(modules, entry, pruner.op_types, _prunes(pruner), where)
        if entry.exclude:
            excluded.update(names)
            continue
        for name in names:
            of_stage: dict[str, Any] = {field: getattr(prune, field, None) for field in _SETTINGS}
            before = drafts.get(name) or _ChoiceDraft(entry=number, named=False, **of_stage)
            given = {field: value for field in _SETTINGS if (value := getattr(entry, field)) is not None}
            if "sparsity" in given:  # of the two ways to say how much the later one holds
                given["sparsity_threshold"] = None
            elif "sparsity_threshold" in given:
                given["sparsity"] = None
            named = before.named or name in (entry.op_names or ())
            drafts[name] = replace(before, **given, entry=number, named=named)
    choices: dict[str, Choice] = {}
    notes: list[str] = []
    for name in modules:
        if name not in drafts or name in excluded:
            continue
        choice = _choice(name, modules[name], drafts[name], path)
        reason = next((str(each) for each in computed(modules[name], name)), None)
        if reason is None and not isinstance(modules[name], nn.MultiheadAttention) and weight_of(modules[name]) is None:
            reason = f"'{name}' ({type(modules[name]).__name__}) has no weight"
        if reason is None:
            choices[name] = choice
        elif choice.named:
            raise InvalidSpecError(reason, f"{path}.configList[{choice.entry}].opNames")
        else:
            notes.append(f"Left as it was: {reason}")
    if not choices and notes:
        why = "; ".join(note.removeprefix("Left as it was: ") for note in notes[:3])
        raise InvalidSpecError(f"no selected module can be pruned: {why}", f"{path}.configList")
    if not choices:
        raise InvalidSpecError(
            "every selected module is excluded again; select one that is not, or remove the stage", f"{path}.configList"
        )
    return Selection(choices, frozenset(excluded), tuple(notes))


def _choice(name: str, module: nn.Module, draft: _ChoiceDraft, path: str) -> Choice:
    where = f"{path}.configList[{draft.entry}]"
    pruner, schedule = method(draft.algorithm), draft.schedule
    threshold, sparsity = draft.sparsity_threshold, draft.sparsity
    if pruner.facts.threshold is not None:
        threshold, sparsity = pruner.facts.threshold, None
    bounds = (draft.min_sparsity or 0.0, 1.0 if draft.max_sparsity is None else draft.max_sparsity)
    _check_pattern(name, draft, where)
    if threshold is not None:
        sparsity = bounds[1]
        if not facts(schedule.type).at_once:
            raise InvalidSpecError(
                f"'{name}' goes by a threshold, and {schedule.type} goes to a sparsity; give one of them", where
            )
    elif sparsity is None and draft.pattern is not None and (numbers := kept_of(draft.pattern)) is not None:
        sparsity = 1 - numbers[0] / numbers[1]
    if sparsity is None:
        raise InvalidSpecError(
            f"'{name}' is selected without a sparsity; give one here, or for the whole stage in {path}.sparsity",
            f"{where}.sparsity",
        )
    if not facts(schedule.type).at_once and schedule.initial_sparsity > sparsity:
        raise InvalidSpecError(
            f"initialSparsity {schedule.initial_sparsity:g} is above the sparsity {sparsity:g} of '{name}', and "
            "what is removed does not come back; lower it",
            f"{where}.schedule.initialSparsity",
        )
    if bounds[0] > bounds[1]:
        raise InvalidSpecError(
            f"'{name}' would lose {bounds[0]:g} at least and {bounds[1]:g} at most; lower minSparsity",
            f"{where}.minSparsity",
        )
    if not is_of(module, (*pruner.op_types, *pruner.extra_op_types)):
        raise InvalidSpecError(f"'{name}' is a {type(module).__name__}; {_prunes(pruner)}", f"{where}.opTypes")
    return Choice(
        module=name,
        algorithm=draft.algorithm,
        sparsity=sparsity,
        scope=draft.scope,
        schedule=schedule,
        entry=draft.entry,
        named=draft.named,
        threshold=threshold,
        bounds=bounds,
        pattern=draft.pattern,
        group=draft.global_group,
        round_to=draft.round_to,
    )


def _check_pattern(name: str, draft: _ChoiceDraft, where: str) -> None:
    if draft.pattern is None:
        return
    if method(draft.algorithm).structured and draft.pattern != CHANNEL:
        raise InvalidSpecError(
            f"{draft.algorithm} scores the output channels of '{name}', which {draft.pattern} would divide; take a "
            "method that scores single weights, such as level, or remove the pattern",
            f"{where}.pattern",
        )
    numbers = kept_of(draft.pattern)
    if numbers is not None and (draft.sparsity or 0.0) > 1 - numbers[0] / numbers[1] + 1e-9:
        raise InvalidSpecError(
            f"{draft.pattern} removes {1 - numbers[0] / numbers[1]:g} of '{name}' at most; lower the sparsity",
            f"{where}.sparsity",
        )


def _prunes(pruner: PruneMethod) -> str:
    return f"{pruner.name} prunes {', '.join((*pruner.op_types, *pruner.extra_op_types))}"
