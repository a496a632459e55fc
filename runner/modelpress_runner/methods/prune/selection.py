"""Which modules a configList selects, and with which settings."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, replace

from torch import nn

from modelpress.api.v1alpha1 import ConfigEntry, EntrySchedule, Prune
from modelpress.api.v1alpha1.algorithms import schedule as facts
from modelpress_runner.errors import InvalidSpecError
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


@dataclass(frozen=True)
class Selection:
    """The selected modules in the order of model.named_modules(), and those that an entry excludes."""

    choices: dict[str, Choice]
    excluded: frozenset[str]


@dataclass(frozen=True)
class _Draft:
    algorithm: str
    sparsity: float | None
    scope: str
    schedule: EntrySchedule
    entry: int
    named: bool


def class_names(module: nn.Module) -> list[str]:
    """The names that opTypes knows a module by: its class and that class's bases, up to nn.Module."""
    return [cls.__name__ for cls in type(module).__mro__ if issubclass(cls, nn.Module) and cls is not nn.Module]


def select(model: nn.Module, prune: Prune, path: str) -> Selection:
    """Applies `prune.configList` to the modules of `model`; `path` (spec.stages[0].prune) serves for messages.

    Selected are (opNames and opNamesRe, else all) that are of opTypes, else of the method's own types; `default` stands
    for those. Later entries override earlier ones field by field; what no entry sets comes from the stage. An excluding
    entry without opTypes takes modules of any type that hold parameters. `exclude` always wins.

    Raises:
        InvalidSpecError: an entry matches nothing, an expression is no regular expression, a module is of a type that
            its method does not prune, or is left without a sparsity or with an initial one above it.
    """
    modules = dict(model.named_modules())
    drafts: dict[str, _Draft] = {}
    excluded: set[str] = set()
    for number, entry in enumerate(prune.config_list):
        where = f"{path}.configList[{number}]"
        names = _matches(modules, entry, prune, where)
        if entry.exclude:
            excluded.update(names)
            continue
        for name in names:
            before = drafts.get(name) or _Draft(
                prune.algorithm, prune.sparsity, prune.scope, prune.schedule, number, False
            )
            given = {
                field: value
                for field in ("algorithm", "sparsity", "scope", "schedule")
                if (value := getattr(entry, field)) is not None
            }
            named = before.named or name in (entry.op_names or ())
            drafts[name] = replace(before, **given, entry=number, named=named)
    choices = {
        name: _choice(name, modules[name], drafts[name], path)
        for name in modules
        if name in drafts and name not in excluded
    }
    if not choices:
        raise InvalidSpecError(
            "every selected module is excluded again; select one that is not, or remove the stage", f"{path}.configList"
        )
    return Selection(choices, frozenset(excluded))


def _choice(name: str, module: nn.Module, draft: _Draft, path: str) -> Choice:
    where = f"{path}.configList[{draft.entry}]"
    if draft.sparsity is None:
        raise InvalidSpecError(
            f"'{name}' is selected without a sparsity; give one here, or for the whole stage in {path}.sparsity",
            f"{where}.sparsity",
        )
    schedule = draft.schedule
    if not facts(schedule.type).at_once and schedule.initial_sparsity > draft.sparsity:
        raise InvalidSpecError(
            f"initialSparsity {schedule.initial_sparsity:g} is above the sparsity {draft.sparsity:g} of '{name}', and "
            "what is removed does not come back; lower it",
            f"{where}.schedule.initialSparsity",
        )
    pruner = method(draft.algorithm)
    if not _is_of(module, (*pruner.op_types, *pruner.also)):
        raise InvalidSpecError(f"'{name}' is a {type(module).__name__}; {_prunes(pruner)}", f"{where}.opTypes")
    return Choice(name, draft.algorithm, draft.sparsity, draft.scope, schedule, draft.entry, draft.named)


def _matches(modules: dict[str, nn.Module], entry: ConfigEntry, prune: Prune, where: str) -> list[str]:
    pruner = method(entry.algorithm or prune.algorithm)
    named = _named(modules, entry, where)
    if entry.op_types is not None:
        types: tuple[str, ...] = ()
        for type_ in entry.op_types:
            types += pruner.op_types if type_ == "default" else (type_,)
        found = [name for name in named if _is_of(modules[name], types)]
        if found:
            return found
        every = sorted({cls for module in modules.values() for cls in class_names(module)})
        wanted = ", ".join(f"'{type_}'" for type_ in entry.op_types)
        raise InvalidSpecError(
            f"no module {_of_those(entry)}is of type {wanted}{_near(entry.op_types, every)}", f"{where}.opTypes"
        )
    if entry.exclude:
        found = [name for name in named if any(True for _ in modules[name].parameters(recurse=False))]
    else:
        found = [name for name in named if _is_of(modules[name], pruner.op_types)]
    if found:
        return found
    field = "opNames" if entry.op_names else "opNamesRe"
    if not entry.op_names and not entry.op_names_re:
        field = "exclude" if entry.exclude else "algorithm"
    shown = [f"'{name}' is a {type(modules[name]).__name__}" for name in named[:3]]
    inside = [name for name in named[:1] if any(True for _ in modules[name].children())]
    tip = f"; opNamesRe: ['{re.escape(inside[0])}\\..*'] takes what is inside" if inside and inside[0] else ""
    what = "holds no parameters of its own" if entry.exclude else _prunes(pruner)
    raise InvalidSpecError(
        f"matches nothing: {'; '.join(shown) or 'the model is empty'}; {what}{tip}", f"{where}.{field}"
    )


def _named(modules: dict[str, nn.Module], entry: ConfigEntry, where: str) -> list[str]:
    """The names that opNames and opNamesRe match, all if neither is given, in the model's order."""
    if entry.op_names is None and entry.op_names_re is None:
        return list(modules)
    found: set[str] = set()
    for name in entry.op_names or ():
        if name not in modules:
            raise InvalidSpecError(f"the model has no module '{name}'{_near([name], modules)}", f"{where}.opNames")
        found.add(name)
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
        found.update(matched)
    return [name for name in modules if name in found]


def _is_of(module: nn.Module, types: tuple[str, ...]) -> bool:
    return not set(class_names(module)).isdisjoint(types)


def _prunes(pruner: PruneMethod) -> str:
    return f"{pruner.name} prunes {', '.join((*pruner.op_types, *pruner.also))}"


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
