"""Which modules a configList selects, and with which settings."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import nn

from modelpress.api.stages.prune import kept_of
from modelpress.api.v1alpha1 import ConfigEntry, EntrySchedule, Prune
from modelpress.api.v1alpha1.algorithms import schedule as facts
from modelpress_runner.edits.computed import computed
from modelpress_runner.errors import InvalidSpecError
from modelpress_runner.methods.prune.channels import weight_of
from modelpress_runner.methods.prune.patterns import CHANNEL
from modelpress_runner.methods.prune.protocol import PruneMethod
from modelpress_runner.methods.prune.registry import method


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


def class_names(module: nn.Module) -> list[str]:
    """The names that opTypes knows a module by: its class and that class's bases, up to nn.Module."""
    return [cls.__name__ for cls in type(module).__mro__ if issubclass(cls, nn.Module) and cls is not nn.Module]


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
        names = _matches(modules, entry, prune, where)
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
    if not _is_of(module, (*pruner.op_types, *pruner.extra_op_types)):
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


def _matches(modules: dict[str, nn.Module], entry: ConfigEntry, prune: Prune, where: str) -> list[str]:
    """The names that an entry selects, in the model's order; each of its selectors has a part in that."""
    pruner = method(entry.algorithm or prune.algorithm)
    named = _named(modules, entry, where)
    everywhere = list(dict.fromkeys(name for names in named.values() for name in names))
    if entry.op_types is not None:
        types: tuple[str, ...] = ()
        for type_ in entry.op_types:
            types += (of := pruner.op_types if type_ == "default" else (type_,))
            if not any(_is_of(modules[name], of) for name in everywhere):
                raise InvalidSpecError(_no_such_type(modules, entry, type_, of), f"{where}.opTypes")

        def fits(name: str) -> bool:
            return _is_of(modules[name], types)
    elif entry.exclude:

        def fits(name: str) -> bool:
            return any(True for _ in modules[name].parameters(recurse=False))
    else:

        def fits(name: str) -> bool:
            return _is_of(modules[name], pruner.op_types)

    for selector, names in named.items():
        if not any(map(fits, names)):
            raise _without_part(modules, entry, pruner, selector, names, where)
    return [name for name in modules if name in set(everywhere) and fits(name)]


def _no_such_type(modules: dict[str, nn.Module], entry: ConfigEntry, type_: str, types: tuple[str, ...]) -> str:
    every = sorted({cls for module in modules.values() for cls in class_names(module)})
    wanted = f"'{type_}'" if type_ != "default" else f"'default' ({', '.join(types)})"
    if type_ == "default" and not (entry.op_names or entry.op_names_re):
        wanted = f"{wanted} in the model, which"
        return f"no module is of type {wanted} has {', '.join(every[:5])}"
    message = f"no module {_of_those(entry)}is of type {wanted}{_near([type_], every)}"
    scripted = any(isinstance(module, torch.jit.ScriptModule) for module in modules.values())
    return f"{message}; give the model as it was before torch.jit, which hides the types" if scripted else message


def _without_part(
    modules: dict[str, nn.Module],
    entry: ConfigEntry,
    pruner: PruneMethod,
    selector: tuple[str, str],
    names: list[str],
    where: str,
) -> InvalidSpecError:
    """The error of a name or an expression (or of an entry with neither) all of whose modules are of other types."""
    field, text = selector
    shown = [f"'{name}' is a {type(modules[name]).__name__}" for name in names[:3]]
    inside = [name for name in names[:1] if any(True for _ in modules[name].children())]
    tip = f"; opNamesRe: ['{re.escape(inside[0])}\\..*'] takes what is inside" if inside and inside[0] else ""
    if entry.op_types is not None:
        what = f"the entry takes only {', '.join(entry.op_types)}"
    else:
        what = "it holds no parameters of its own" if entry.exclude else _prunes(pruner)
    if not field:
        field = "exclude" if entry.exclude else "algorithm"
    subject = f"'{text}' selects nothing" if field == "opNamesRe" else "selects nothing"
    return InvalidSpecError(f"{subject}: {'; '.join(shown) or 'the model is empty'}; {what}{tip}", f"{where}.{field}")


def _named(modules: dict[str, nn.Module], entry: ConfigEntry, where: str) -> dict[tuple[str, str], list[str]]:
    """What each name and expression matches, by its field and text; all under ("", "") if there is neither."""
    if entry.op_names is None and entry.op_names_re is None:
        return {("", ""): list(modules)}
    found: dict[tuple[str, str], list[str]] = {}
    for name in entry.op_names or ():
        if name not in modules:
            raise InvalidSpecError(f"the model has no module '{name}'{_instead(name, modules)}", f"{where}.opNames")
        found["opNames", name] = [name]
    for text in entry.op_names_re or ():
        try:
            pattern = re.compile(text)
        except re.error as error:
            raise InvalidSpecError(f"'{text}' is no regular expression: {error}", f"{where}.opNamesRe") from None
        matched = [name for name in modules if pattern.fullmatch(name)]
        if not matched:
            raise InvalidSpecError(
                f"'{text}' matches no module; it must match a whole name{_near([text], modules)}", f"{where}.opNamesRe"
            )
        found["opNamesRe", text] = matched
    return found


def _instead(name: str, modules: dict[str, nn.Module]) -> str:
    if set(name) & set("*+?[](){}|^$\\"):
        return "; it looks like an expression: opNamesRe takes those"
    return _near([name], modules)


def _is_of(module: nn.Module, types: tuple[str, ...]) -> bool:
    return not set(class_names(module)).isdisjoint(types)


def _prunes(pruner: PruneMethod) -> str:
    return f"{pruner.name} prunes {', '.join((*pruner.op_types, *pruner.extra_op_types))}"


def _of_those(entry: ConfigEntry) -> str:
    return "that the entry names " if entry.op_names or entry.op_names_re else ""


def _near(wanted: list[str], known: object) -> str:
    names = [name for name in known if name]  # type: ignore[attr-defined]
    near: list[str] = []
    for text in wanted:
        near += [name for name in difflib.get_close_matches(text, names, n=3, cutoff=0.5) if name not in near]
    if near:
        return f"; near: {', '.join(near[:5])}"
    return f"; it has {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}" if names else ""
