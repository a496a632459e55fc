"""The command line: `modelpress`, or `python -m modelpress.cli`."""

from __future__ import annotations


def main() -> None:
    """Entry point of the command `modelpress`. Exits with a code of modelpress.cli.exits."""
    from .interrupt import quiet

    with quiet():
        from .app import entry

    entry()
