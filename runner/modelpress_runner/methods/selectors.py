"""Which modules an entry of a configList selects."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import torch
from torch import nn

from modelpress_runner.errors import InvalidSpecError


class Entry(Protocol):
    """What an entry selects by."""

    @property
    def op_types(self) -> Sequence[str] | None:
        """Class names; 'default' stands for the method's own."""

    @property
    def op_names(self) -> Sequence[str] | None:
        """Exact names."""

    @property
    def op_names_re(self) -> Sequence[str] | None:
        """Expressions that match whole names."""

    @property
    def exclude(self) -> bool:
        """Whether what is selected is left alone."""


def class_names(module: nn.Module) -> list[str]:
    """The names that opTypes knows a module by: its class and that class's bases, up to nn.Module."""
    return [cls.__name__ for cls in type(module).__mro__ if issubclass(cls, nn.Module) and cls is not nn.Module]


def is_of(module: nn.Module, types: Sequence[str]) -> bool:
    """Whether a module is of one of these types."""
    return not set(class_names(module)).isdisjoint(types)


def matches(
    modules: Mapping[str, nn.Module], entry: Entry, default_types: Sequence[str], takes: str, where: str
) -> list[str]:
    """The names that an entry selects, in the model's order; each of its selectors has a part in that.

    Args:
        modules: of the model, by name.
        entry: the entry.
        default_types: what it takes if it names no types.
        takes: what the method takes, as a clause for messages.
        where: the entry's path.

    Raises:
        InvalidSpecError: a selector matches nothing.
    """
    named = _named(modules, entry, where)
    everywhere = list(dict.fromkeys(name for names in named.values() for name in names))
    if entry.op_types is not None:
        types: tuple[str, ...] = ()
        for type_ in entry.op_types:
            types += (of := tuple(default_types) if type_ == "default" else (type_,))
            if not any(is_of(modules[name], of) for name in everywhere):
                raise InvalidSpecError(_no_such_type(modules, entry, type_, of), f"{where}.opTypes")

        def fits(name: str) -> bool:
            return is_of(modules[name], types)
    elif entry.exclude:

        def fits(name: str) -> bool:
            return any(True for _ in modules[name].parameters(recurse=False))
    else:

        def fits(name: str) -> bool:
            return is_of(modules[name], default_types)

    for selector, names in named.items():
        if not any(map(fits, names)):
            raise _without_part(modules, entry, takes, selector, names, where)
    return [name for name in modules if name in set(everywhere) and fits(name)]


def _no_such_type(modules: Mapping[str, nn.Module], entry: Entry, type_: str, types: tuple[str, ...]) -> str:
    every = sorted({cls for module in modules.values() for cls in class_names(module)})
    wanted = f"'{type_}'" if type_ != "default" else f"'default' ({', '.join(types)})"
    if type_ == "default" and not (entry.op_names or entry.op_names_re):
        wanted = f"{wanted} in the model, which"
        return f"no module is of type {wanted} has {', '.join(every[:5])}"
    message = f"no module {_of_those(entry)}is of type {wanted}{_near([type_], every)}"
    scripted = any(isinstance(module, torch.jit.ScriptModule) for module in modules.values())
    return f"{message}; give the model as it was before torch.jit, which hides the types" if scripted else message


def _without_part(
    modules: Mapping[str, nn.Module],
    entry: Entry,
    takes: str,
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
        what = "it holds no parameters of its own" if entry.exclude else takes
    if not field:
        field = "exclude" if entry.exclude else "algorithm"
    subject = f"'{text}' selects nothing" if field == "opNamesRe" else "selects nothing"
    return InvalidSpecError(f"{subject}: {'; '.join(shown) or 'the model is empty'}; {what}{tip}", f"{where}.{field}")


def _named(modules: Mapping[str, nn.Module], entry: Entry, where: str) -> dict[tuple[str, str], list[str]]:
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


def _instead(name: str, modules: Mapping[str, nn.Module]) -> str:
    if set(name) & set("*+?[](){}|^$\\"):
        return "; it looks like an expression: opNamesRe takes those"
    return _near([name], modules)


def _of_those(entry: Entry) -> str:
    return "that the entry names " if entry.op_names or entry.op_names_re else ""


def _near(wanted: list[str], known: Iterable[str]) -> str:
    names = [name for name in known if name]
    near: list[str] = []
    for text in wanted:
        near += [name for name in difflib.get_close_matches(text, names, n=3, cutoff=0.5) if name not in near]
    if near:
        return f"; near: {', '.join(near[:5])}"
    return f"; it has {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}" if names else ""
