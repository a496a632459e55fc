"""Text of others in what rich prints: neither markup nor anything that acts on a terminal."""

from __future__ import annotations

from rich import markup

from modelpress.shown import shown


def escape(text: str) -> str:
    """The text as it is to be read."""
    return markup.escape(shown(text))
