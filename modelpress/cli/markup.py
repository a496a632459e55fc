"""Text of others in what rich prints: neither markup nor anything that acts on a terminal."""

from __future__ import annotations

from rich import markup

from modelpress.control_characters import escape_control_characters


def escape(text: str) -> str:
    """The text as it is to be read."""
    return markup.escape(escape_control_characters(text))
