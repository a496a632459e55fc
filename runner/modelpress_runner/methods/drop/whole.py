"""What layers and experts have in common: which modules are selected, and how many of them go."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from torch import nn

from modelpress.api.v1alpha1 import DropExperts, DropLayers
from modelpress_runner.errors import InvalidSpecError
from modelpress_runner.methods.selectors import class_names, matches


def selected(
    model: nn.Module, block: DropLayers | DropExperts, path: str, default: Sequence[str], takes: str
) -> dict[str, int | None]:
    """Names of the selected modules in the model's order, and of each the entry that names it exactly.

    Args:
        path: of the block.
        default: names that are taken where no entry selects.
        takes: what the stage takes, as a clause for messages.

    Raises:
        InvalidSpecError: a selector matches nothing, or everything is excluded again.
    """
    modules = dict(model.named_modules())
    types = tuple(dict.fromkeys(class_names(modules[name])[0] for name in default))
    every = tuple({each for module in modules.values() for each in class_names(module)[:1]})
    found: dict[str, int | None] = {}
    excluded: set[str] = set()
    entries = list(enumerate(block.config_list or ()))
    if all(entry.exclude for _, entry in entries):
        found = dict.fromkeys(default)
    for number, entry in entries:
        where = f"{path}.configList[{number}]"
        of = types
        if entry.op_names is not None or entry.op_names_re is not None:
            of = every if entry.op_types is None else types
        # Blocks hold no parameters of their own, which is what an excluding entry without types looks for.
        names = matches(modules, entry.model_copy(update={"exclude": False}), of, takes, where)
        if entry.exclude:
            excluded.update(names)
            continue
        for name in names:
            named = number if name in (entry.op_names or ()) else None
            found[name] = named if found.get(name) is None else found[name]
    left = {name: found[name] for name in modules if name in found and name not in excluded}
    if not left:
        raise InvalidSpecError(
            "every selected module is excluded again; select one that is not" if found else f"there are none: {takes}",
            f"{path}.configList" if block.config_list else path,
        )
    return left


def outermost(names: Iterable[str]) -> list[str]:
    """Those of the names that lie in no other of them."""
    every = list(names)
    return [name for name in every if not any(name.startswith(f"{other}.") for other in every if other != name)]


def wanted(block: DropLayers | DropExperts, total: int, most: int, what: str, path: str) -> int:
    """How many of `total` go, of which at most `most` may.

    Raises:
        InvalidSpecError: none, or too many.
    """
    if block.count is not None:
        if block.count > most:
            message = f"of {total} {what} {block.count} cannot go; give at most {most}"
            raise InvalidSpecError(message, f"{path}.count")
        return block.count
    assert block.sparsity is not None
    count = math.floor(total * block.sparsity + 1e-6)
    if not count:
        message = f"{block.sparsity:g} of {total} {what} is less than one; raise it, or give a count"
        raise InvalidSpecError(message, f"{path}.sparsity")
    if count > most:
        message = f"of {total} {what} {count} cannot go; lower it to {most / total:g} at most"
        raise InvalidSpecError(message, f"{path}.sparsity")
    return count
