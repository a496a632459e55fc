"""Commands on a cluster: `modelpress submit|status|logs|best|suspend|resume`, and the same as `kubectl modelpress`."""

from __future__ import annotations


def main() -> None:
    """Entry point of the command `kubectl-modelpress`, which kubectl runs as `kubectl modelpress`."""
    from modelpress.cli.interrupt import quiet

    with quiet():
        from modelpress.cli.app import entry

        from .commands import plugin

    entry(plugin)
