"""Text of strangers before it reaches a terminal, a log or a status: what would act there is shown, not sent.

A pod's message, a server's answer, a model's class name may carry escape sequences, which set a terminal's title or
plant a link, or marks that turn the direction of writing, so that one reads another thing than stands there.
"""

from __future__ import annotations

import unicodedata

_KEPT = frozenset("\n\t\u200c\u200d")  # the last two join letters of Arabic and Indic scripts, and parts of emoji
# Controls, marks of direction and other invisible ones, halves of pairs, and separators of lines and paragraphs.
_ACTING = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


def escape_control_characters(text: str) -> str:
    r"""The text with every acting character written as Python escapes it: \x1b, \u202e. Line ends and tabs stay."""
    if text.isprintable():
        return text
    return "".join(
        character
        if character in _KEPT or unicodedata.category(character) not in _ACTING
        else character.encode("unicode_escape").decode("ascii")
        for character in text
    )
