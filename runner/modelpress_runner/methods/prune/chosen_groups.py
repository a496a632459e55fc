"""Which dependency groups lose channels, and why others do not."""

from __future__ import annotations

from modelpress.api.messages import keys_in_words
from modelpress_runner.dependency.groups import ChannelDependencies, DependencyGroup
from modelpress_runner.errors import InvalidSpecError
from modelpress_runner.methods.prune.registry import method
from modelpress_runner.methods.prune.selection import Choice, Selection


def chosen_groups(
    dependencies: ChannelDependencies,
    choices: dict[str, Choice],
    excluded: frozenset[str],
    notes: list[str],
    path: str,
) -> list[DependencyGroup]:
    """The groups whose producers are all selected and of which nothing is excluded; `notes` say why the others stay.

    Raises:
        InvalidSpecError: a module that is selected by name cannot lose channels, or none that is selected can.
    """
    chosen: list[DependencyGroup] = []
    blocked: dict[str, str] = {}
    for group in dependencies.groups:
        selected = [name for name in (*group.producers, *group.followers) if name in choices]
        if not selected:
            continue
        reason = _obstacle(group, choices, excluded)
        if reason is None:
            chosen.append(group)
        else:
            blocked |= dict.fromkeys(selected, f"{_list(selected)} {reason}")
    for reason in dict.fromkeys(dependencies.refuted.values()):
        axes = [dependencies.output(name) for name in choices]
        names = [a.module for a in axes if a and reason in {dependencies.refuted.get(unit) for unit in a.units}]
        blocked |= dict.fromkeys(names, f"{_list(names)} cannot lose channels: {reason}")
    free = {name for group in chosen for name in (*group.producers, *group.followers)}
    for name, choice in choices.items():
        if name in free:
            continue
        reason = blocked.get(name) or f"'{name}' cannot lose channels: {_frozen_reason(dependencies, name)}"
        if choice.named:
            raise InvalidSpecError(reason, f"{path}.configList[{choice.entry}].opNames")
        note = f"Left as it was: {reason}"
        if note not in notes:
            notes.append(note)
    if not chosen and not dependencies.refuted:
        why = "; ".join(note.removeprefix("Left as it was: ") for note in notes[:3])
        raise InvalidSpecError(f"no selected module can lose channels: {why}", f"{path}.configList")
    return chosen


def prunable(dependencies: ChannelDependencies, selection: Selection) -> list[tuple[DependencyGroup, list[Choice]]]:
    """The dependency groups that lose channels, each with the choices of its selected modules."""
    choices = {name: c for name, c in selection.choices.items() if c.structured}
    return [
        (group, [choices[name] for name in (*group.producers, *group.followers) if name in choices])
        for group in dependencies.groups
        if any(name in choices for name in (*group.producers, *group.followers))
        and _obstacle(group, choices, selection.excluded) is None
    ]


def _obstacle(group: DependencyGroup, choices: dict[str, Choice], excluded: frozenset[str]) -> str | None:
    barred = [name for name in (*group.producers, *group.followers, *group.holders) if name in excluded]
    missing = [name for name in group.producers if name not in choices]
    if any(name in choices and method(choices[name].algorithm).takes_followers for name in group.followers):
        missing = []
    if barred:
        return f"can lose channels only together with {_list(barred)}, which is excluded"
    if missing:
        return f"can lose channels only together with {_list(missing)}; select that too, or set shrink: false"
    return None


def _frozen_reason(dependencies: ChannelDependencies, name: str) -> str:
    axis = dependencies.output(name)
    if axis is None:
        return "the dummy input does not reach it"
    return next(
        (dependencies.frozen[unit] for unit in axis.units if unit in dependencies.frozen), "nothing makes its channels"
    )


def _list(names: list[str]) -> str:
    return keys_in_words((f"'{name}'" for name in names), 6)
