"""Plug-ins: modules of other packages that add to modelpress, such as a kind of stage or a method.

A package names them as entry points of the group `modelpress.plugins`:

    [project.entry-points."modelpress.plugins"]
    mine = "my_package.modelpress_plugin"

Each is imported once in every process of modelpress (command line, runner, operator), before a recipe is read. It
calls what it needs, `modelpress.api.stages.register` for one, and loads torch in functions only.
"""

from __future__ import annotations

import functools
import importlib.metadata

from .errors import Problem, SpecError

GROUP = "modelpress.plugins"


class PluginError(SpecError):
    """An installed plug-in cannot be loaded."""


@functools.cache
def load() -> tuple[str, ...]:
    """Imports every plug-in that is installed, in order of their names; does so once.

    Returns:
        their names.

    Raises:
        PluginError: one cannot be imported.
    """
    found = sorted(importlib.metadata.entry_points(group=GROUP), key=lambda point: (point.name, point.value))
    for point in found:
        try:
            point.load()
        except Exception as error:
            package = point.dist.name if point.dist else "a package"
            what = f"the plug-in {point.name!r} of {package} ({point.value}) cannot be loaded"
            problem = Problem("", f"{what}: {type(error).__name__}: {error}", "mend or uninstall it")
            raise PluginError([problem]) from error
    return tuple(point.name for point in found)
